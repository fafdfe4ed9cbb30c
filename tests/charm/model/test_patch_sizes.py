"""Patches of another size than the backbone's: its kernel resampled as in timm's FlexiViT."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import patch_embed, resample_abs_pos_embed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from charm.model.pos_embed import resample_pos_embed
from charm.model.vit import CharmViT

EDGE = 240


def build(depth: int = 2, **settings: Any) -> CharmViT:
    torch.manual_seed(0)
    return CharmViT("flexivit_small", False, num_scales=1, depth=depth, **settings).eval()


def draw(side: int, batch_size: int = 1) -> tuple[Tensor, list[Tensor]]:
    """Images, float (B, 3, 240, 240) on 0..1, and their tokens on a grid, but for positions."""
    size = EDGE // side
    image = np.random.default_rng(0).integers(0, 256, (batch_size, EDGE, EDGE, 3), np.uint8)
    patches = image.reshape(batch_size, side, size, side, size, 3).swapaxes(2, 3).reshape(batch_size, -1, size, size, 3)
    y, x = np.divmod(np.arange(side**2), side)
    coord = np.broadcast_to(np.stack([y, x], 1), (batch_size, side**2, 2))
    zeros = torch.zeros(batch_size, side**2, dtype=torch.uint8)
    tokens = [torch.from_numpy(patches), torch.from_numpy(coord.copy()), zeros, zeros == 0]
    return torch.from_numpy(image).permute(0, 3, 1, 2) / 255, tokens


def positions(model: CharmViT, side: int) -> Tensor:
    table = resample_pos_embed(model.pos_embed, (side, side), "bicubic", True, model.num_pos_prefix)
    return table.reshape(1, side**2, -1)


@pytest.mark.parametrize("side", [5, 8, 10, 12, 15, 20, 30])
def test_it_is_timms_model_of_that_patch_size(side: int) -> None:
    """Patches of 48, 30, 24, 20, 16, 12 and 8 pixels."""
    model, size = build(), EDGE // side
    weights = dict(model.vit.state_dict())
    kernel = weights["patch_embed.proj.weight"]
    weights["patch_embed.proj.weight"] = patch_embed.resample_patch_embed(kernel, [size, size])
    weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], [side, side], num_prefix_tokens=0)
    other = timm.create_model("flexivit_small", patch_size=size, img_size=EDGE, num_classes=0, depth=2).eval()
    other.load_state_dict(weights)
    image, tokens = draw(side)
    with torch.no_grad():
        found = model.features(*tokens[:4], positions(model, side))
        torch.testing.assert_close(found, other.forward_features(image)[:, 0], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_backbones_own_size_is_projected_by_its_own_kernel_to_the_bit(normalize: bool) -> None:
    model = build(normalize=normalize)
    _, (patches, *_) = draw(15, 2)
    pixels = patches.flatten(2).float() / 255
    if normalize:
        pixels = ((pixels.unflatten(2, (-1, 3)) - 0.5) / 0.5).flatten(2)
    proj = model.vit.patch_embed.proj
    expected = F.linear(pixels, proj.weight.permute(0, 2, 3, 1).flatten(1), proj.bias)
    assert torch.equal(model._embed(patches), expected)


@pytest.mark.parametrize(("size", "low", "high"), [(24, 0, 2e-6), (48, 0, 2e-6), (16, 0, 0), (12, 0.2, 1), (8, 0.5, 1)])
def test_enlarged_patches_keep_their_product_with_the_kernel(size: int, low: float, high: float) -> None:
    """Exactly where they are larger; where they are smaller, part of the detail of a random patch is gone."""
    torch.manual_seed(0)
    kernel, small = torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16)
    resized = F.interpolate(small, (size, size), mode="bicubic", antialias=True)
    resampled = build()._resample_kernel(kernel, [size, size])
    products = [torch.einsum("dchw,nchw->nd", *pair) for pair in ((resampled, resized), (kernel, small))]
    error = float((products[0] - products[1]).norm() / products[1].norm())
    assert low <= error <= high


def test_its_kernel_learns_through_the_resampling_once_per_size(monkeypatch: pytest.MonkeyPatch) -> None:
    inverted: list[tuple[int, ...]] = []
    pinv = torch.linalg.pinv
    monkeypatch.setattr(torch.linalg, "pinv", lambda matrix: inverted.append(tuple(matrix.shape)) or pinv(matrix))
    model = build().train()
    names = set(model.state_dict())
    for side in (10, 20, 10, 15):
        _, tokens = draw(side)
        model.zero_grad()
        model(*tokens, positions(model, side)).sum().backward()
        gradient = model.vit.patch_embed.proj.weight.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0
        assert gradient.shape == (384, 3, 16, 16)
    assert len(inverted) == 2  # none for its own size
    assert set(model.state_dict()) == names


def test_half_precision_does_not_round_the_kernel() -> None:
    model = build()
    _, (patches, *_) = draw(10)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model._embed(patches), model._embed(patches).float())
        found = model._embed(patches)
    assert torch.equal(found, model._embed(patches))


@pytest.mark.parametrize(
    ("side", "gmacs"), [(5, 0.6), (8, 1.5), (15, 5.3), (20, 10.1), (24, 15.4), (30, 26.7)], ids=str
)
def test_what_a_grid_costs(side: int, gmacs: float) -> None:
    """An image more, in twelve blocks, from what one and two of them need; the kernel is resampled once for all."""

    def count(depth: int, batch_size: int) -> float:
        model = build(depth)
        _, tokens = draw(side, batch_size)
        with FlopCounterMode(display=False) as products, torch.no_grad():
            model(*tokens, positions(model, side))
        return products.get_total_flops() / 2e9

    one, two = (count(depth, 2) - count(depth, 1) for depth in (1, 2))
    assert round(one + 11 * (two - one), 1) == gmacs


def test_flexivit_small_has_its_parameters() -> None:
    with torch.device("meta"):
        model = CharmViT("flexivit_small", False, num_scales=1)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 21.7
