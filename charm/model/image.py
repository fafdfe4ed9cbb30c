"""ImageModel: any backbone of timm that is no plain ViT, behind an input that shows whole images of one size.

Windows (Swin) and convolutions need all pixels in their order, so the image is put together again from its tokens.
"""

import math
import warnings
from typing import Any, Self

import timm
import torch
from timm.layers.drop import DropPath
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from charm.model.backbones import BackboneError
from charm.model.config import ViTConfig
from charm.model.protocol import Model
from charm.runtime.errors import first_line

_MOST_PATCH = 32  # pixels


class ImageModel(Model):
    """Scores square images that an input with a `whole_edge` has cut.

    In training, too, batch norms have the statistics of the pre-training and no paths are dropped: what a batch
    measures or draws would depend on micro-batches and processes.

    The head reads the "mean" of the backbone's last grid; or "first_mean", its first token (the top left corner, or the
    CLS token of a backbone that has one) beside the mean of the others, as in Charm's published code. The arguments
    are those of CharmViT.

    Raises:
        BackboneError: the backbone, or its way to give features, cannot be used with images of this size.
        ValueError: it cannot be used with these settings.
    """

    heads = ("mean", "first_mean")
    whole_image = True

    def __init__(
        self,
        backbone: str,  # of timm; one that is made for another size of images is changed to that of the input
        image_edge: int | None,  # side of the images, pixels; None if the input shows no whole images
        pretrained: bool = True,
        num_outputs: int = 1,
        head: str = "mean",
        normalize: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        if image_edge is None:
            problem = "needs an input that shows whole images of one size, for example standard"
            raise BackboneError(f"backbone={backbone!r} as an image model {problem}")
        axis, width = _try_features(backbone, image_edge, settings)
        if head not in self.heads:
            problem = "it has neither CLS token nor attention pooling of its own here"
            raise ValueError(f"head={head!r} of backbone={backbone!r}: {problem}: choose {' or '.join(self.heads)}")
        self.image_edge, self.head_kind, self._axis = image_edge, head, axis
        self.image_backbone = _create(backbone, image_edge, pretrained, settings)
        matcher = getattr(self.image_backbone, "group_matcher", None)
        # The layers of timm's own layer-wise decay; a model that does not tell them is a single one.
        self._layers: dict[str, int] = (
            group_parameters(self.image_backbone, matcher(coarse=False), reverse=True) if matcher else {}
        )
        self.scale_embed = self.resizer = None
        self._keep_normalization(normalize)
        self._add_head(width * (2 if head == "first_mean" else 1), num_outputs)

    @classmethod
    def from_config(cls, config: ViTConfig, pretrained: bool = False) -> Self:
        if config.pos_embed == "trainable" and config.image_edge is not None:
            raise ValueError("pos_embed: an image model has no position embeddings beside its own: leave it frozen")
        settings = {one: getattr(config, one) for one in ("num_outputs", "head", "normalize")}
        return cls(config.backbone, config.image_edge, pretrained, **settings)

    @property
    def backbone(self) -> nn.Module:
        found: nn.Module = self.image_backbone
        return found

    @property
    def body(self) -> nn.Module:
        return self.backbone

    @property
    def patch_size(self) -> int:
        """The side of the patches that an image is handed over in, pixels; the backbone never knows it."""
        edge = self.image_edge
        return 16 if edge % 16 == 0 else next(side for side in range(min(_MOST_PATCH, edge), 0, -1) if edge % side == 0)

    @property
    def num_layers(self) -> int:
        return max(self._layers.values(), default=0) + 2

    def layer_of(self, parameter: str) -> int:
        return self._layers.get(parameter.removeprefix("image_backbone."), self.num_layers - 1)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.image_backbone.modules():
            if isinstance(module, _BatchNorm | DropPath | nn.Dropout):
                module.eval()
        return self

    def features(
        self,
        patches: Tensor,
        patch_coord: Tensor,
        scale_id: Tensor,
        patch_valid: Tensor,
        pos_embed: Tensor,
        residuals: Tensor | None = None,
    ) -> Tensor:
        pixels = self._scale_pixels(patches, self.head.weight.dtype)
        features: Tensor = self.image_backbone(join_patches(pixels, patch_coord))
        tokens = features.movedim(self._axis, -1).flatten(1, -2)
        if self.head_kind == "first_mean":
            return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
        return tokens[:, getattr(self.image_backbone, "num_prefix_tokens", 0) :].mean(1)


def join_patches(patches: Tensor, patch_coord: Tensor) -> Tensor:
    """Puts square images together from all of their patches, (B, s * s, P, P, 3); returns (B, 3, s * P, s * P).

    The places, integer (B, s * s, 2), (y, x), are there once each, of turned images in any order. Raises ValueError if
    the number of patches is no square.
    """
    batch_size, count, patch_size = patches.shape[:3]
    side = math.isqrt(count)
    if side**2 != count:
        raise ValueError(f"{count} patches are no square image: expected an input that shows whole images of one size")
    y, x = patch_coord.long().unbind(-1)
    order = (y * side + x).argsort(dim=1)
    ordered = patches[torch.arange(batch_size, device=order.device)[:, None], order]
    grid = ordered.reshape(batch_size, side, side, patch_size, patch_size, 3)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch_size, 3, side * patch_size, side * patch_size)


def _try_features(name: str, edge: int, settings: dict[str, Any]) -> tuple[int, int]:
    """Runs a backbone without numbers, before its weights are made; returns the axis of its features and their width.

    Raises BackboneError if it takes no images of this size, or gives no features of places.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            model = _create(name, edge, False, settings).eval()
            features = model(torch.zeros(1, 3, edge, edge))
    except Exception as error:  # timm's models refuse a size as they like
        problem = f"takes no images of {edge} x {edge} pixels ({first_line(error)}): choose another size of the input"
        raise BackboneError(f"backbone={name!r} as an image model {problem}, or another backbone") from error
    width = getattr(model, "head_hidden_size", None) or model.num_features
    shape = tuple(features.shape) if isinstance(features, Tensor) else ()
    axis = next((axis for axis in (-1, 1) if 3 <= len(shape) <= 4 and shape[axis] == width), None)
    if axis is None:
        problem = f"gives {list(shape) or type(features).__name__}: expected {width} features of each place"
        raise BackboneError(f"backbone={name!r} as an image model {problem}")
    return axis, width


def _create(name: str, edge: int, pretrained: bool, settings: dict[str, Any]) -> Any:
    """Builds a backbone for square images of an edge, without classifier and pooling."""

    def create(**more: Any) -> Any:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="", **settings, **more)

    model = create()
    facts = model.pretrained_cfg or {}
    if not facts.get("fixed_input_size") or facts["input_size"][-1] == edge:
        return model
    if not hasattr(model, "set_input_size"):
        return create(img_size=edge)
    with warnings.catch_warnings(action="ignore"):  # timm's own, as it resizes tables of relative positions
        model.set_input_size(img_size=(edge, edge))  # windows keep their share of the image: Swin's are 12 wide at 384
    return model
