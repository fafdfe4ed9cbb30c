"""A published checkpoint in small: random, of stub classes with the parts of the real ones, and its forward pass."""

import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, DEPTH, GRID = 64, 2, 5


class Container(nn.Module):
    """Parts by their names; registered below as a class of a module that is gone when the file is read."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def _learnt(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.3)


def _build_layer() -> Container:
    attention = Container(
        num_attention_heads=2, **{name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
    )
    return Container(
        norm1=nn.LayerNorm(WIDTH, eps=1e-6),
        attention=Container(attention=attention, output=Container(dense=nn.Linear(WIDTH, WIDTH))),
        layer_scale1=Container(lambda1=_learnt(WIDTH)),
        norm2=nn.LayerNorm(WIDTH, eps=1e-6),
        mlp=Container(fc1=nn.Linear(WIDTH, 4 * WIDTH), fc2=nn.Linear(4 * WIDTH, WIDTH)),
        layer_scale2=Container(lambda1=_learnt(WIDTH)),
    )


def build_published(outputs: int) -> tuple[Container, Tensor]:
    """The module and its position embeddings, (1, 1 + GRID ** 2, WIDTH)."""
    torch.manual_seed(0)
    embeddings = Container(
        cls_token=_learnt(1, 1, WIDTH),
        mask_token=_learnt(1, 1, WIDTH),
        se=_learnt(1, 2, WIDTH),
        patch_embedder=nn.Conv2d(3, WIDTH, 14, 14),
        dataset="koniq10k",
    )
    layers = nn.ModuleList(_build_layer() for _ in range(DEPTH))
    encoder = Container(encoder=Container(layer=layers), layernorm=nn.LayerNorm(WIDTH, eps=1e-6))
    head = Container(linear=nn.Linear(2 * WIDTH, outputs))
    return Container(patch_embeddings=embeddings, encoder=encoder, mlp_head=head), torch.randn(1, 1 + GRID**2, WIDTH)


@torch.no_grad()
def run_published(model: Any, patches: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """The published forward pass, without its last activation.

    Args:
        patches: float (L, 3, 14, 14) on 0..1.
        positions: (1 + L, WIDTH), that of the CLS token first, 0 where padding.
        ids: (L,), 0 coarse, 1 native, 9 padding.
    """
    parts = model.patch_embeddings
    x = parts.patch_embedder(patches).flatten(1)
    x = torch.where((ids == 9)[:, None], parts.mask_token[0], x) + parts.se[0][torch.where(ids == 9, 0, ids)]
    x = (torch.cat([parts.cls_token[0], x]) + positions)[None]
    for layer in model.encoder.encoder.layer:
        own, y = layer.attention.attention, layer.norm1(x)
        q, k, v = (part(y).unflatten(-1, (2, -1)).transpose(1, 2) for part in (own.query, own.key, own.value))
        y = (q @ k.transpose(2, 3) / (WIDTH / 2) ** 0.5).softmax(-1) @ v
        x = x + layer.layer_scale1.lambda1 * layer.attention.output.dense(y.transpose(1, 2).flatten(2))
        y = layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.norm2(x))))
        x = x + layer.layer_scale2.lambda1 * y
    x = model.encoder.layernorm(x)
    output: Tensor = model.mlp_head.linear(torch.cat([x[:, 0], x[:, 1:].mean(1)], dim=1))
    return output


def save_published(folder: Path, outputs: int = 1, name: str = "koniq10k_charm.pth", **more: Any) -> Container:
    """Writes a checkpoint and its positions, pickled as objects of `gone.Container`; returns the module."""
    model, positions = build_published(outputs)
    gone = types.ModuleType("gone")
    gone.Container = Container  # type: ignore[attr-defined]
    Container.__module__, sys.modules["gone"] = "gone", gone
    try:
        torch.save({"epoch": 7, "model_state_dict": model} | more, folder / name)
    finally:
        Container.__module__ = __name__
        del sys.modules["gone"]
    for file in ("dino_small_pos.pt", "dino_large.pt"):
        torch.save(nn.Parameter(positions), folder / file)
    return model
