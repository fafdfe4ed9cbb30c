"""Attribution: exact for a linear model, complete for a real one, and maps that keep every contribution."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from charm.attribution import attribute_tokens, map_contributions
from charm.inputs.padding import PaddingInput
from charm.inputs.settings import PaddingSettings, SquareSettings, StandardSettings
from charm.inputs.square import SquareInput
from charm.inputs.standard import StandardInput
from charm.model.vit import CharmViT
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens, pad_tokens

# Noise that grows to the right on a ground that brightens downwards: unlike noise alone, far from its mean colour.
Y, X = np.mgrid[:160, :200]
IMAGE = (Y + X * np.random.default_rng(0).random((3, 160, 200)) / 3).astype(np.uint8).transpose(1, 2, 0).copy()
TWO = CharmTokenizer(patch_size=16, max_seq_len=40, budget="fill")
THREE = CharmTokenizer(patch_size=16, max_seq_len=70, num_scales=3, budget="fill")


class Linear(nn.Module):
    """Called as CharmViT; sums the pixels, those of padding too, by a weight each, (L, p, p, 3), and adds 3."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(weight).float())

    def forward(self, patches: Tensor, coord: Tensor, scale_id: Tensor, valid: Tensor, pos_embed: Tensor) -> Tensor:
        self.largest_batch = max(len(patches), getattr(self, "largest_batch", 0))
        return (patches * self.weight).flatten(1).sum(dim=1, keepdim=True) + 3


def build(name: str = "vit_tiny_patch16_224", num_scales: int = 2, **settings: Any) -> CharmViT:
    """A model whose every parameter matters."""
    small = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3, **settings}
    model = CharmViT(name, False, num_scales, **small).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
        model.head.weight.mul_(5)
    return model


def score(model: CharmViT, tokens: Tokens, patches: np.ndarray) -> Tensor:
    """The outputs for other pixels, (num_outputs,)."""
    arrays = (patches, tokens.patch_coord, tokens.scale_id, tokens.patch_valid)
    with torch.no_grad():
        outputs: Tensor = model(
            *(torch.from_numpy(array)[None] for array in arrays), [model.pos_embed_tables(tokens.grids)]
        )
    return outputs[0]


def contributions(model: CharmViT, tokens: Tokens, steps: int = 16) -> np.ndarray:
    return attribute_tokens(model, tokens, model.pos_embed_tables(tokens.grids), steps=steps).contributions


def gather(model: CharmViT, tokens: Tokens) -> Tensor:
    """The position embedding of each token, (1, L, D)."""
    tables = model.pos_embed_tables(tokens.grids)
    return torch.stack([tables[s][y, x] for s, (y, x) in zip(tokens.scale_id, tokens.patch_coord, strict=True)])[None]


def of_scales(grids: Sequence[tuple[int, int]], places: list[tuple[int, int, int]], padding: int = 1) -> Tokens:
    """Black tokens at places (scale, y, x), then padding."""
    scale_id, y, x = np.array(places, int).T
    return pad_tokens(
        Tokens(
            patches=np.zeros((len(places), 2, 2, 3), np.uint8),
            patch_coord=np.stack([y, x], axis=1).astype(np.int32),
            scale_id=scale_id.astype(np.uint8),
            patch_valid=np.ones(len(places), bool),
            grids=tuple(grids),
        ),
        len(places) + padding,
    )


def test_two_grey_pixels_and_a_sum() -> None:
    tokens = of_scales([(1, 2)], [(0, 0, 0), (0, 0, 1)], padding=1)
    tokens.patches[:2] = np.array([10, 30])[:, None, None, None]  # the mean is 20
    found = attribute_tokens(Linear(np.ones((3, 2, 2, 3))), tokens, torch.zeros(1, 3, 1))
    assert found.contributions.dtype == np.float32
    assert found.contributions.tolist() == pytest.approx([-120, 120, 0])  # 12 values, each 10 from the mean
    assert (found.score, found.baseline_score) == (483, 483)


@pytest.mark.parametrize("steps", [1, 5, 16])
@pytest.mark.parametrize("tokenizer", [TWO, THREE], ids=["two scales", "three scales"])
def test_a_linear_score_is_attributed_exactly(tokenizer: CharmTokenizer, steps: int) -> None:
    tokens = pad_tokens(tokenizer(IMAGE), 75)
    weight = np.random.default_rng(1).normal(size=tokens.patches.shape)
    model = Linear(weight)
    found = attribute_tokens(model, tokens, torch.zeros(1, 75, 1), steps=steps)
    colour = tokens.patches[tokens.patch_valid].reshape(-1, 3).mean(axis=0)
    expected = (weight * (tokens.patches - colour)).sum(axis=(1, 2, 3)) * tokens.patch_valid
    np.testing.assert_allclose(found.contributions, expected, rtol=1e-4, atol=1e-2)  # of numbers up to 6000
    assert model.largest_batch == min(4, max(2, steps))


@pytest.mark.parametrize(
    ("name", "tokenizer", "num_scales"),
    [
        pytest.param("vit_tiny_patch16_224", TWO, 2, id="two scales"),
        pytest.param("vit_tiny_patch16_224", THREE, 3, id="three scales"),
        pytest.param("vit_tiny_patch16_224", CharmTokenizer(16, max_seq_len=150), 2, id="whole and padded"),
        pytest.param("vit_tiny_patch16_224", StandardInput(16, StandardSettings(73, 64)), 1, id="one scale"),
        pytest.param("vit_small_patch16_dinov3", TWO, 2, id="rotary"),
    ],
)
def test_contributions_sum_to_the_difference_of_the_scores(name: str, tokenizer: Any, num_scales: int) -> None:
    model, tokens = build(name, num_scales), tokenizer(IMAGE)
    tables = model.pos_embed_tables(tokens.grids)
    found = attribute_tokens(model, tokens, tables)
    flat = np.where(
        tokens.patch_valid[:, None, None, None],
        tokens.patches[tokens.patch_valid].mean(axis=(0, 1, 2), dtype=np.float32),
        tokens.patches,
    )
    assert found.score == pytest.approx(score(model, tokens, tokens.patches).item(), abs=1e-5)
    assert found.baseline_score == pytest.approx(score(model, tokens, flat.astype(np.float32)).item(), abs=1e-4)
    total = found.score - found.baseline_score
    assert abs(total) > 0.01
    assert found.contributions.sum() == pytest.approx(total, rel=1e-3)
    assert found.residual == pytest.approx(total - found.contributions.sum(dtype=np.float64))
    assert (found.contributions != 0).tolist() == tokens.patch_valid.tolist()


def test_steps_are_doubled_until_little_is_left_out() -> None:
    """Of charm_demo, whose projection of high gain bends the scores along the line."""
    torch.manual_seed(0)
    model, tokens = CharmViT("charm_demo").eval(), CharmTokenizer(max_seq_len=48, budget="fill")(IMAGE)
    tables = model.pos_embed_tables(tokens.grids)
    one, default = (attribute_tokens(model, tokens, tables, steps=steps) for steps in (1, 16))
    assert (one.steps, default.steps) == (8, 16)
    for found in (one, default):
        assert abs(found.residual) <= 0.04 * abs(found.score - found.baseline_score)
        assert found.is_complete


@pytest.mark.parametrize(
    ("frequency", "steps", "is_complete"),
    [
        pytest.param(20.0, 16, True, id="enough"),
        pytest.param(60.0, 32, True, id="doubled"),
        pytest.param(1e4, 256, False),
    ],
)
def test_an_integral_that_does_not_settle_says_so(frequency: float, steps: int, is_complete: bool) -> None:
    """A score that oscillates along the line between the flat image and the image."""
    tokens = of_scales([(1, 2)], [(0, 0, 0), (0, 0, 1)], padding=0)
    tokens.patches[:] = np.array([10, 30])[:, None, None, None]

    class Wave(Linear):
        def forward(self, patches: Tensor, *others: Tensor) -> Tensor:
            way = (patches[:, 1].mean(dim=(1, 2, 3)) - 20) / 10
            return way[:, None] + torch.sin(frequency * way)[:, None]

    found = attribute_tokens(Wave(np.ones(1)), tokens, torch.zeros(1, 2, 1))
    assert (found.steps, found.is_complete) == (steps, is_complete)
    assert found.residual == pytest.approx(found.score - found.baseline_score - found.contributions.sum(), abs=1e-5)


def test_several_outputs_are_read_as_a_distribution_over_bins() -> None:
    model, tokens, bins = build(num_outputs=4), TWO(IMAGE), [0.1, 0.2, 0.4, 1.0]
    found = attribute_tokens(model, tokens, model.pos_embed_tables(tokens.grids), bins)
    expected = score(model, tokens, tokens.patches).softmax(dim=0) @ torch.tensor(bins)
    assert found.score == pytest.approx(expected.item(), abs=1e-5)
    assert found.contributions.sum() == pytest.approx(found.score - found.baseline_score, rel=1e-3)
    same = attribute_tokens(model, tokens, model.pos_embed_tables(tokens.grids), [0.5] * 4)
    np.testing.assert_allclose(same.contributions, 0, atol=1e-6)


def test_padding_contributes_nothing_and_changes_nothing() -> None:
    model, tokens = build(), TWO(IMAGE)
    longer = pad_tokens(tokens, 47)
    longer.patches[40:] = 255
    found = contributions(model, longer)
    assert found[40:].tolist() == [0] * 7
    np.testing.assert_allclose(found[:40], contributions(model, tokens), rtol=1e-5, atol=1e-5)


def test_a_token_in_the_mean_colour_contributes_nothing() -> None:
    model, tokens = build(), TWO(IMAGE)
    tokens.patches[:20] = 200 - tokens.patches[20:].clip(max=200)
    tokens.patches[20:] = 200 - tokens.patches[:20]  # mirrored about 100, which is thus the mean
    tokens.patches[[3, 23]] = 100
    assert np.flatnonzero(contributions(model, tokens) == 0).tolist() == [3, 23]


def test_the_only_token_with_detail_is_the_only_one_that_contributes() -> None:
    model, tokens = build(), TWO(IMAGE)
    tokens.patches[:] = 100
    tokens.patches[7, ::2], tokens.patches[7, 1::2] = 40, 160
    assert np.flatnonzero(contributions(model, tokens)).tolist() == [7]


def test_gathered_positions_are_as_good_as_tables() -> None:
    model, tokens = build(), TWO(IMAGE)
    found = attribute_tokens(model, tokens, gather(model, tokens))
    np.testing.assert_array_equal(found.contributions, contributions(model, tokens))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_gradients_that_are_switched_off_are_no_hindrance(name: str, off: Any) -> None:
    model, tokens = build(name), TWO(IMAGE)
    expected = contributions(model, tokens)
    with off():
        np.testing.assert_array_equal(contributions(model, tokens), expected)
        np.testing.assert_array_equal(attribute_tokens(model, tokens, gather(model, tokens)).contributions, expected)
        assert not torch.is_grad_enabled()


def test_model_and_tokens_are_left_as_they_were() -> None:
    model, tokens = build(), TWO(IMAGE)
    model.vit.blocks[0].train()
    model.vit.blocks[1].requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in model.parameters()]
    modes, weights, pixels = [m.training for m in model.modules()], model.state_dict(), tokens.patches.copy()
    weights = {name: value.clone() for name, value in weights.items()}
    contributions(model, tokens)
    assert [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in model.parameters()] == before
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    np.testing.assert_array_equal(tokens.patches, pixels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"steps": 0, "bins": [0, 1]}, "steps=0: expected at least 1", id="no steps"),
        pytest.param({}, "no bins for a model of 2 outputs", id="no bins"),
        pytest.param({"bins": [0, 0.5, 1]}, "3 bins for a model of 2 outputs", id="other bins"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    model, tokens = build(num_outputs=2), TWO(IMAGE)
    with pytest.raises(ValueError, match=message):
        attribute_tokens(model, tokens, model.pos_embed_tables(tokens.grids), **settings)


@pytest.mark.parametrize(
    ("tokens", "values", "expected"),
    [
        pytest.param(
            of_scales([(1, 2), (2, 4)], [(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (0, 0, 1)]),
            [1, 2, 3, 4, 8],
            [[1, 2, 2, 2], [3, 4, 2, 2]],
            id="four native tokens and a coarse one",
        ),
        pytest.param(
            of_scales([(2, 2), (3, 3), (4, 4)], [(1, 0, 0)]),
            [16],
            [[9, 3, None, None], [3, 1, None, None], [None] * 4, [None] * 4],
            id="a middle token covers 4/3 cells",
        ),
        pytest.param(
            of_scales([(2, 2), (3, 3), (4, 4)], [(1, 1, 1)]),
            [16],
            [[None] * 4, [None, 4, 4, None], [None, 4, 4, None], [None] * 4],
            id="the middle one of the middle scale",
        ),
        pytest.param(
            of_scales([(1, 1), (2, 2)], [(1, 0, 1), (0, 0, 0)]),
            [5, -4],
            [[-1, 4], [-1, -1]],
            id="native beside its own coarse token",
        ),
        pytest.param(of_scales([(1, 3)], [(0, 0, 2), (0, 0, 0)]), [5, 0], [[0, None, 5]], id="one scale, one dropped"),
        pytest.param(of_scales([(0, 0), (1, 2)], [(1, 0, 1), (1, 0, 0)]), [5, 6], [[6, 5]], id="an unused scale"),
    ],
)
def test_maps(tokens: Tokens, values: list[float], expected: list[list[float | None]]) -> None:
    found = map_contributions(tokens, np.array([*values, 77], np.float32))  # 77 is padding's
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.array(expected, float), rtol=1e-6)


@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(TWO, id="filled"),
        pytest.param(replace(TWO, max_seq_len=20), id="some dropped"),
        pytest.param(replace(TWO, coarse_ratio=3, max_seq_len=60), id="coarse patches of 3"),
        pytest.param(THREE, id="three scales"),
        pytest.param(replace(THREE, budget="share", max_seq_len=30), id="three scales, some dropped"),
        pytest.param(replace(THREE, max_seq_len=200), id="three scales, whole and padded"),
        pytest.param(StandardInput(16), id="standard"),
        pytest.param(PaddingInput(16, PaddingSettings(128)), id="padding"),
        pytest.param(SquareInput(TWO, SquareSettings(160)), id="square"),
    ],
)
def test_a_map_keeps_every_contribution_and_shows_what_the_model_sees(tokenizer: Any) -> None:
    tokens = tokenizer(IMAGE)
    values = np.random.default_rng(2).normal(size=len(tokens.patches)).astype(np.float32)
    found = map_contributions(tokens, values)
    assert found.shape == tokens.grids[-1]
    assert np.nansum(found) == pytest.approx(values[tokens.patch_valid].sum(), abs=1e-4)
    seen = replace(tokens, patches=np.full_like(tokens.patches, 1)).to_image(fill=0)[:, :, 0]
    p = tokens.patches.shape[1]
    shown = seen.reshape(found.shape[0], p, found.shape[1], p).any(axis=(1, 3))
    np.testing.assert_array_equal(np.isfinite(found), shown)


def test_a_map_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"contributions are \(3,\): expected \(40,\), one per token"):
        map_contributions(TWO(IMAGE), np.zeros(3, np.float32))
