"""Frozen backbones: the features of chosen layers, and the model that a linear head on one of them makes.

What a block gives passes the backbone's own final norm before it is pooled, whichever block it is, as in DINOv2's
`get_intermediate_layers`. A head on a middle layer is therefore that of an ordinary model whose backbone ends there.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from charm.model.config import ViTConfig, ViTShape
from charm.model.registry import build_model
from charm.model.vit import CharmViT


def choose_layers(depth: int) -> list[int]:
    """Chooses the layers at a third, half, two thirds and the end of a backbone; layer n is the n-th block's output."""
    return sorted({max(1, round(depth * part)) for part in (1 / 3, 1 / 2, 2 / 3, 1)})


def list_parts(vit: CharmViT) -> list[str]:
    """Lists what the tokens of an image can be pooled to: names of charm.model.pooling.PARTS."""
    return ["cls"] * (vit.vit.cls_token is not None) + (["native", "coarse"] if vit.num_scales > 1 else ["mean"])


def list_heads(parts: Sequence[str]) -> list[str]:
    """Lists the kinds of heads on these parts: each alone, and all of them."""
    return list(dict.fromkeys([*parts, "_".join(parts)]))


def layer_features(
    vit: CharmViT,
    layers: Sequence[int],
    patches: Tensor,
    patch_coord: Tensor,
    scale_id: Tensor,
    patch_valid: Tensor,
    pos_embed: Tensor,
    residuals: Tensor | None = None,
) -> Tensor:
    """Computes the features of some layers, float (B, layers, parts, D); blocks after the last of them are not run.

    Args:
        vit: the model; its head is not used.
        layers: ascending, from 1 to the number of blocks.
        patches, patch_coord, scale_id, patch_valid, pos_embed, residuals: a batch, see CharmViT.forward.
    """
    attn_mask, parts = vit.attn_mask_of(patch_valid, patches.device), list_parts(vit)
    states = vit.run_blocks(patches, scale_id, patch_valid, pos_embed, attn_mask, residuals)
    found = []
    for layer, x in zip(range(layers[-1] + 1), states, strict=False):
        if layer in layers:
            pooled = vit.pool("_".join(parts), x, scale_id, patch_valid, attn_mask)
            found.append(pooled.unflatten(1, (len(parts), -1)))
    return torch.stack(found, dim=1)


def hash_weights(vit: CharmViT) -> str:
    """Returns the sha256 of all parameters but the head's."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vit.state_dict().items()):
        if not name.startswith("head."):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def build_solved(
    vit: CharmViT, config: ViTConfig, layer: int, head: str, solution: tuple[np.ndarray, float]
) -> tuple[CharmViT, ViTConfig]:
    """Builds the model whose backbone is that of `vit` up to a layer, with a linear head of one output.

    Args:
        vit: the model that the features are of.
        config: of `vit`.
        layer: that the head reads.
        head: what it reads of it, one of `list_heads`.
        solution: the head's weights, float (F,), and its bias.

    Returns:
        The model, and its config: an ordinary one, of a shallower backbone unless the layer is the last.
    """
    changed: dict[str, Any] = {"head": head, "num_outputs": 1, "shape": _cut_shape(vit, config, layer)}
    config = replace(config, **changed, activation="none")  # of the published code's models it is a sigmoid
    own: dict[str, Tensor] = vit.state_dict()
    weight, bias = solution
    own["head.weight"] = torch.from_numpy(weight).float()[None]
    own["head.bias"] = torch.tensor([bias], dtype=torch.float32)
    model: Any = build_model(config)
    model.load_state_dict({name: own[name] for name in model.state_dict()})
    return model, config


def _cut_shape(vit: CharmViT, config: ViTConfig, layer: int) -> ViTShape | None:
    """Returns the shape of the backbone up to a layer; that of the whole backbone if the layer is its last."""
    backbone: Any = vit.vit
    if layer == len(backbone.blocks):
        return config.shape
    edge = backbone.patch_embed.grid_size[0] * vit.patch_size
    return ViTShape(backbone.embed_dim, layer, backbone.blocks[0].attn.num_heads, edge)
