"""What a model is asked: training, the scorer, attribution and export know models by these attributes alone."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from charm.model.config import PosEmbedConfig, ViTConfig
from charm.model.resizer import Resizer

# Of the outputs: the published code trained scores on 0..1 through a sigmoid, Charm trains them as they are. It learnt
# KonIQ-10k's means, from 1 to 5, as fifths: 0.2 is the lowest score.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda output: output,
    "sigmoid": torch.sigmoid,
    "sigmoid_fifths": lambda output: (5 * torch.sigmoid(output) - 1) / 4,
}
LearntMode = Literal["bilinear", "bicubic", "bicubic_offset"]


class Model(nn.Module):
    """Scores images from their tokens; a kind of model is a module of charm.model, and a line in charm.model.registry.

    Called as `model(patches, patch_coord, scale_id, patch_valid, pos_embed)`, see CharmViT.forward.
    """

    heads: ClassVar[tuple[str, ...]]  # kinds of heads that it may have
    whole_image: ClassVar[bool] = False  # whether it reads all patches of an image of one size, not any tokens
    head: nn.Linear  # that gives the outputs
    head_kind: str  # what it reads, one of `heads`
    activation: str = "none"  # a key of ACTIVATIONS, of what it gives
    scale_embed: nn.Parameter | None  # float (num_scales, D), learnt; None with one scale
    resizer: Resizer | None  # what mixes residuals with the pixels; None for inputs without them
    pixel_mean: Tensor | None  # float (3,), that pixels are normalized with; None if they are not
    pixel_std: Tensor | None

    @classmethod
    def from_config(cls, config: ViTConfig, pretrained: bool = False) -> Self:
        """Builds the model that a config describes, with random or the backbone's published weights.

        Raises:
            BackboneError: it is a backbone for another kind of model.
            ValueError: the backbone cannot be used with these settings.
        """
        raise NotImplementedError

    @property
    def backbone(self) -> nn.Module:
        """The model of timm, without its classifier."""
        raise NotImplementedError

    @property
    def body(self) -> nn.Module:
        """The part of the backbone whose weights mixout mixes: what comes after a ViT's patch projection."""
        raise NotImplementedError

    @property
    def patch_size(self) -> int:
        """p, the side of a patch, pixels, that inputs are built for."""
        raise NotImplementedError

    @property
    def num_layers(self) -> int:
        """Number of layers that `layer_of` tells apart."""
        raise NotImplementedError

    def layer_of(self, parameter: str) -> int:
        """Returns the layer of a named parameter, counted from the pixels to the head."""
        raise NotImplementedError

    @property
    def learnt_grid(self) -> Tensor | None:
        """The position embeddings that are mixed for each grid, float (g, g, D); None if there are no learnt ones."""
        return None

    @property
    def trained_grid(self) -> Tensor | None:
        """`learnt_grid` if it is fine-tuned, and so may differ from the published one; else None."""
        return None

    def fixed_axis(self, length: int) -> Tensor:
        """Returns an axis for charm.model.axes without a learnt grid, (2, length, 0) if no positions are added."""
        return torch.zeros(2, length, 0)

    def pos_embed_config(self, mode: LearntMode, antialias: bool) -> PosEmbedConfig:
        """Returns how positions are made for a grid, if `mode` and `antialias` are asked for."""
        return PosEmbedConfig("none", False)

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Chooses whether activations are computed again for the gradient, which saves memory.

        Raises ValueError if the backbone cannot do it.
        """
        try:
            self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]
        except (AssertionError, AttributeError) as error:  # as timm's models say that they have none
            if enable:
                kind = type(self.backbone).__name__
                raise ValueError(f"grad_checkpointing: a {kind} of timm has none: choose false") from error

    def compile_backbone(self) -> None:
        """Compiles the backbone on its first call."""
        self.backbone.compile()

    def forward(
        self,
        patches: Tensor,
        patch_coord: Tensor,
        scale_id: Tensor,
        patch_valid: Tensor,
        pos_embed: Any,
        residuals: Tensor | None = None,
    ) -> Tensor:
        """Scores a batch."""
        return self.score_features(self.features(patches, patch_coord, scale_id, patch_valid, pos_embed, residuals))

    def features(
        self,
        patches: Tensor,
        patch_coord: Tensor,
        scale_id: Tensor,
        patch_valid: Tensor,
        pos_embed: Tensor,
        residuals: Tensor | None = None,
    ) -> Tensor:
        """Returns what the head reads of each image of a batch, float (B, F); arguments as of the model's call."""
        raise NotImplementedError

    def score_features(self, features: Tensor) -> Tensor:
        """Returns the outputs, float (B, num_outputs), of features, (B, F)."""
        # Not in bfloat16, which has 128 numbers from 0.5 to 1: scores would be tied.
        with torch.autocast(features.device.type, enabled=False):
            return ACTIVATIONS[self.activation](self.head(features.to(self.head.weight.dtype)))

    def _keep_normalization(self, normalize: bool) -> None:
        """Takes over the mean and deviation of the pixels that the backbone was pre-trained on, if wanted."""
        facts = getattr(self.backbone, "pretrained_cfg", None) or {}
        if normalize and "mean" not in facts:
            raise ValueError("normalize: nobody published the mean and deviation of this backbone's pixels")
        for name in ("mean", "std"):
            values = torch.tensor(facts[name]) if normalize else None
            self.register_buffer(f"pixel_{name}", values, persistent=False)

    def _scale_pixels(self, pixels: Tensor, dtype: torch.dtype, residuals: Tensor | None = None) -> Tensor:
        """Returns pixels, (..., 3) on 0..255, on 0..1 or normalized, with what a learnt resizer makes of residuals."""
        scaled = pixels.to(dtype) / 255
        if self.resizer is not None:
            if residuals is None:
                raise ValueError("residuals: this model mixes Tokens.residuals with the pixels, got none")
            scaled = self.resizer(scaled, residuals)
        if self.pixel_mean is None or self.pixel_std is None:
            return scaled
        return (scaled - self.pixel_mean) / self.pixel_std

    def _add_head(self, width: int, num_outputs: int) -> None:
        """Makes the head, which reads features of this width."""
        self.head = nn.Linear(width, num_outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
