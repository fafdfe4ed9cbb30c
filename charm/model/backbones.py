"""Backbones of timm that CharmViT can be built around: created by name, others refused."""

import difflib
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from charm.model import demo_backbone, musiq_backbone  # noqa: F401  (registers "charm_demo" and "musiq" with timm)
from charm.runtime.weights import name_as_vit

Backbone = VisionTransformer | Eva  # Eva is how timm builds DINOv3: the same, with rotary position embeddings


_CHOOSE = "Choose a plain ViT, for example vit_small_patch14_dinov2"


class BackboneError(ValueError):
    """Raised for a backbone that one kind of model cannot be built around; another kind may take it."""


def create_backbone(name: str, pretrained: bool = True, **settings: Any) -> Backbone:
    """Builds a timm vision transformer without its classifier; NaFlexVits that are plain ones, too (SigLIP 2).

    Args:
        name: as in `timm.list_models("vit_*")`; "charm_demo" for the small built-in one.
        pretrained: whether to load the published weights (downloaded to the hub's cache on first use).
        settings: passed on to timm.

    Raises:
        ValueError: timm has no such model, or it is not a vision transformer with position embeddings for any grid.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = ", ".join(difflib.get_close_matches(architecture, timm.list_models(), n=5))
        raise ValueError(f"backbone={name!r} is not a model of timm {timm.__version__}; near it: {near or 'none'}")
    published = timm.list_models(f"{architecture}.*", pretrained=True)
    if "." in name and name not in published:
        known = ", ".join(published) or "none"
        raise ValueError(f"backbone={name!r}: timm {timm.__version__} knows no such weights; known: {known}")
    if pretrained:  # a backbone that cannot be used is refused before its weights are downloaded
        with torch.device("meta"):
            check_backbone(_create(name, False, settings), name)
    return check_backbone(_create(name, pretrained, settings), name)


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> nn.Module:
    model = timm.create_model(name, pretrained=pretrained, num_classes=0, **settings)
    return unpack_naflex(model) if isinstance(model, NaFlexVit) else model


def unpack_naflex(naflex: NaFlexVit) -> nn.Module:
    """Returns the plain ViT with the parts and numbers of a NaFlexVit; itself if it is more than a plain ViT.

    A plain one adds learnt positions to projected patches. If it learnt them resampled with antialiasing, the attribute
    `antialias` of the ViT says so.
    """
    embeds: Any = naflex.embeds
    is_plain = (
        embeds.pos_embed_type == "learned"
        and not (embeds.pos_embed_ar_preserving or embeds.pos_embed_align_corners)
        and embeds.is_linear
        and embeds.channels_last
        and naflex.rope is None
        and all(isinstance(part, nn.Identity) for part in (embeds.norm_input or nn.Identity(), embeds.norm))
    )
    if not is_plain:
        return naflex
    side, patch_size = embeds.pos_embed.shape[1], embeds.patch_size[0]
    vit: Any = VisionTransformer(
        img_size=side * patch_size,
        patch_size=patch_size,
        embed_dim=naflex.embed_dim,
        depth=0,
        num_classes=0,
        class_token=embeds.has_class_token,
        reg_tokens=embeds.num_reg_tokens,
        no_embed_class=True,
        global_pool="",
        pre_norm=embeds.proj.bias is None,
    )
    for part in ("norm_pre", "blocks", "norm", "fc_norm", "attn_pool"):
        setattr(vit, part, getattr(naflex, part))
    vit.load_state_dict(name_as_vit(naflex.state_dict(), patch_size))
    vit.antialias, vit.pretrained_cfg = embeds.pos_embed_antialias, naflex.pretrained_cfg
    plain: nn.Module = vit
    return plain


def check_backbone(vit: Any, name: str) -> Backbone:
    """Returns the model unchanged; raises BackboneError if CharmViT cannot run it."""
    if not is_rotary(vit) and (not isinstance(vit, VisionTransformer) or vit.pos_embed is None):
        lacks = " without learnt position embeddings" if isinstance(vit, VisionTransformer) else ""
        raise BackboneError(
            f"backbone={name!r} is not supported (timm's {type(vit).__name__}{lacks}): only timm's VisionTransformer "
            "with learnt position embeddings on a grid and its DINOv3 are. Windows and merged patches, as Swin has "
            f"them, cannot be: they need a whole grid in a fixed order (paper, section 20). {_CHOOSE}"
        )
    projection = getattr(vit.patch_embed, "proj", None)
    if isinstance(projection, nn.Conv2d) and (projection.in_channels != 3 or len(set(projection.kernel_size)) > 1):
        height, width = projection.kernel_size
        raise BackboneError(
            f"backbone={name!r} takes patches of {height} x {width} pixels in {projection.in_channels} channels: "
            "expected square ones in 3"
        )
    num_tokens = int(vit.cls_token is not None) + (0 if vit.reg_token is None else vit.reg_token.shape[1])
    if not isinstance(vit.patch_embed, PatchEmbed) or vit.num_prefix_tokens != num_tokens:
        raise BackboneError(
            f"backbone={name!r} has more before its blocks than a projection of patches, a CLS token and registers "
            f"(convolutions or a distillation token, say). {_CHOOSE}"
        )
    grid = vit.patch_embed.grid_size
    if not is_rotary(vit) and grid[0] != grid[1]:
        raise BackboneError(
            f"backbone={name!r} has position embeddings for a grid of {grid[0]} x {grid[1]} tokens: expected a square "
            "grid; choose a square img_size"
        )
    found: Backbone = vit
    return found


def is_rotary(vit: nn.Module) -> bool:
    """Tells whether positions enter as DINOv3's rotary embeddings: coordinates from -1 to 1 on each image axis."""
    return (
        isinstance(vit, Eva)
        and vit.pos_embed is None
        and isinstance(vit.rope, RotaryEmbeddingDinoV3)
        and vit.rope.normalize_coords == "separate"
    )
