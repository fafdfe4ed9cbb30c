"""CharmTokenizer: what holds for an image of any size under any setting."""

import itertools
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from charm.tokenization.augment import IDENTITY, Symmetry, apply_symmetry
from charm.tokenization.budget import FIXED_NATIVE_TOKENS
from charm.tokenization.geometry import fit_to_grid
from charm.tokenization.importance import score_patches
from charm.tokenization.selection import SELECTIONS
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens

SETTINGS = settings(max_examples=80, deadline=None, derandomize=True)
NOISE = np.random.default_rng(0).integers(0, 256, (641, 641, 3), dtype=np.uint8)
SCALES = {"two": (2, 2), "two, ratio 3": (2, 3), "two, ratio 4": (2, 4), "three": (3, 2)}
SYMMETRIES = [Symmetry(flip, turns) for flip in (False, True) for turns in range(4)]

tokenizers = st.builds(
    lambda scales, **others: CharmTokenizer(num_scales=scales[0], coarse_ratio=scales[1], **others),
    st.sampled_from(list(SCALES.values())),
    patch_size=st.sampled_from([8, 14, 16, 32]),
    max_seq_len=st.integers(1, 250),
    selection=st.sampled_from(["random", "gradient", "entropy"]),
    threshold=st.sampled_from([1.0, 1.5, 2.0, 100.0]),
    budget=st.sampled_from(["fixed", "fill", "share"]),
    native_share=st.sampled_from([0.1, 0.5, 0.75, 1.0]),
    drop=st.sampled_from(["uniform", "low_first"]),
    fit=st.sampled_from(["nearest", "pad"]),
)
symmetries = st.sampled_from(SYMMETRIES)


@st.composite
def cases(draw: st.DrawFn) -> tuple[CharmTokenizer, np.ndarray]:
    """A tokenizer and an image: exact multiples and one off as often as any size, at most 20 x 20 patches."""
    tokenizer = draw(tokenizers)
    p = tokenizer.patch_size
    near = st.builds(lambda grid, off: max(1, grid * p + off), st.integers(0, 20), st.sampled_from([-1, 0, 1]))
    side = near | st.integers(1, 20 * p)
    return tokenizer, NOISE[: draw(side), : draw(side)]


def fitted(tokenizer: CharmTokenizer, image: np.ndarray, symmetry: Symmetry = Symmetry()) -> np.ndarray:  # noqa: B008
    multiple = tokenizer.layout((image.shape[0], image.shape[1])).cell_sides[-1] * tokenizer.patch_size
    return apply_symmetry(fit_to_grid(image, multiple, tokenizer.fit), symmetry)


def shown(tokens: Tokens, scale: int) -> np.ndarray:
    """How many tokens there are at each place of a scale's grid."""
    count = np.zeros(tokens.grids[scale], int)
    y, x = tokens.patch_coord[tokens.patch_valid & (tokens.scale_id == scale)].T
    np.add.at(count, (y, x), 1)
    return count


def shown_cells(tokens: Tokens, sides: tuple[int, ...]) -> np.ndarray:
    """How many tokens of each coarse patch there are at each scale: (num_scales, grid_h, grid_w)."""
    counts = [shown(tokens, scale) for scale in range(len(sides))]
    return np.stack(
        [
            count.reshape(count.shape[0] // s, s, count.shape[1] // s, s).sum(axis=(1, 3))
            for count, s in zip(counts, sides, strict=True)
        ]
    )


def assert_same(one: Tokens, other: Tokens) -> None:
    for field in fields(Tokens):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), strict=True)


def same(one: Tokens, other: Tokens) -> bool:
    return bool((one.patch_coord == other.patch_coord).all() and (one.scale_id == other.scale_id).all())


def expected_counts(tokenizer: CharmTokenizer, num_coarse: int) -> tuple[int, ...]:
    """The docstring's formula, for two scales."""
    cell, room = tokenizer.sides[-1] ** 2, tokenizer.max_seq_len
    fill = max(room - num_coarse, 0) // (cell - 1)
    wanted = {"fixed": 256 // cell, "fill": fill, "share": max(fill, int(tokenizer.native_share * room) // cell)}
    return (min(wanted[tokenizer.budget], num_coarse),)


@SETTINGS
@given(cases(), symmetries)
def test_form(case: tuple[CharmTokenizer, np.ndarray], symmetry: Symmetry) -> None:
    tokenizer, image = case
    before = image.copy()
    tokens = tokenizer(image, key="photo-1", symmetry=symmetry)
    np.testing.assert_array_equal(image, before)
    length, p = tokenizer.max_seq_len, tokenizer.patch_size
    assert (tokens.patches.shape, tokens.patches.dtype) == ((length, p, p, 3), np.uint8)
    assert (tokens.patch_coord.shape, tokens.patch_coord.dtype) == ((length, 2), np.int32)
    assert (tokens.scale_id.shape, tokens.scale_id.dtype) == ((length,), np.uint8)
    assert (tokens.patch_valid.shape, tokens.patch_valid.dtype) == ((length,), bool)
    assert tokens.grids == tuple(g[::-1] if symmetry.transposes else g for g in tokenizer.grids(image.shape[:2]))
    num = tokens.seq_len
    assert num >= 1
    assert tokens.patch_valid.tolist() == [True] * num + [False] * (length - num)
    for array in (tokens.patches, tokens.patch_coord, tokens.scale_id):
        assert not array[num:].any()
    assert (np.diff(tokens.scale_id[:num].astype(int)) <= 0).all()  # native first
    for scale in range(tokenizer.num_scales):
        assert shown(tokens, scale).max(initial=0) <= 1
    if tokens.grids[0] == (0, 0):  # single-scale
        assert set(tokens.scale_id[:num].tolist()) == {tokenizer.num_scales - 1}
        assert num == tokens.grids[-1][0] * tokens.grids[-1][1]
        np.testing.assert_array_equal(tokens.to_image(), fitted(tokenizer, image, symmetry))


@SETTINGS
@given(cases(), symmetries)
def test_native_tokens_are_pixels_and_coarser_ones_their_area_means(
    case: tuple[CharmTokenizer, np.ndarray], symmetry: Symmetry
) -> None:
    tokenizer, image = case
    tokens = tokenizer(image, key="photo-1", symmetry=symmetry)
    image, p = fitted(tokenizer, image, symmetry), tokenizer.patch_size
    for patch, (y, x), scale in zip(tokens.patches, tokens.patch_coord, tokens.scale_id, strict=True):
        if not patch.any():
            break  # padding
        side, native = tokenizer.sides[scale], tokenizer.sides[-1]
        # The source pixels of a coarser patch need not start at a whole one: take the cell, `side` times as fine.
        top, left = y // side * native * p, x // side * native * p
        if side == native:
            top, left = y * p, x * p
            np.testing.assert_array_equal(patch, image[top : top + p, left : left + p])
            continue
        rows = slice(y % side * p * native, (y % side + 1) * p * native)
        columns = slice(x % side * p * native, (x % side + 1) * p * native)
        cell = image[top : top + native * p, left : left + native * p]
        fine = cell.repeat(side, axis=0)[rows].repeat(side, axis=1)[:, columns]
        mean = fine.reshape(p, native, p, native, 3).mean(axis=(1, 3))
        assert np.abs(patch - mean).max() <= 1


@SETTINGS
@given(cases())
def test_counts_and_coverage(case: tuple[CharmTokenizer, np.ndarray]) -> None:
    tokenizer, image = case
    layout, sides, length = tokenizer.layout(image.shape[:2]), tokenizer.sides, tokenizer.max_seq_len
    assume(len(layout.cell_sides) > 1)
    tokens = tokenizer(image, key="photo-1")
    counts = tokenizer.count_detailed(layout.num_coarse)
    if tokenizer.num_scales == 2:
        assert counts == expected_counts(tokenizer, layout.num_coarse)
    per_scale = (layout.num_coarse - sum(counts), *counts[::-1])  # coarsest first
    assert min(per_scale) >= 0
    tokens_per_scale = np.array(per_scale) * np.square(sides)
    total = int(tokens_per_scale.sum())
    cells = shown_cells(tokens, sides)
    valid = cells.sum(axis=(1, 2))
    if total > length:
        assert tokens.seq_len == length
        assert (valid <= tokens_per_scale).all()
        if tokenizer.drop == "low_first" or tokenizer.budget == "share":
            room = length
            for scale in reversed(range(len(sides))):
                assert valid[scale] == min(tokens_per_scale[scale], room)
                room -= valid[scale]
        return
    whole = cells == np.square(sides)[:, None, None]
    assert (whole.sum(axis=0) == 1).all()
    assert whole.sum(axis=(1, 2)).tolist() == list(per_scale)
    part = (cells > 0) & ~whole
    extra = int(cells[part].sum())
    if tokenizer.budget == "fixed" or not any(per_scale[:-1]):
        assert extra == 0
        assert tokens.seq_len == total
    else:
        assert tokens.seq_len == length
        assert extra == length - total
        assert not part[:-1].any()
        assert part.sum() <= 1


def measure_shown(tokens: Tokens, sides: tuple[int, ...]) -> tuple[float, float, float]:
    """Fractions of the fitted image that tokens show natively, only downscaled, and not at all."""
    unit = math.lcm(*sides)  # of a coarse patch's side, on which the tokens of every scale end
    at_scale = [shown(tokens, scale).repeat(unit // s, 0).repeat(unit // s, 1) > 0 for scale, s in enumerate(sides)]
    native, any_scale = at_scale[-1], np.any(at_scale, axis=0)
    return native.mean(), (any_scale & ~native).mean(), 1 - any_scale.mean()


@SETTINGS
@given(cases())
def test_the_area_seen_is_that_of_the_tokens(case: tuple[CharmTokenizer, np.ndarray]) -> None:
    tokenizer, image = case
    area = tokenizer.area_seen(image.shape[:2])
    assert sum(area) == pytest.approx(1)
    if tokenizer(image).grids[0] == (0, 0):
        assert area == (1, 0, 0)
        return
    if tokenizer.drop == "low_first" or tokenizer.budget == "share" or area.dropped == 0:
        assert measure_shown(tokenizer(image), tokenizer.sides) == pytest.approx(area, abs=1e-9)
        return
    draws = [measure_shown(tokenizer(image, epoch=epoch), tokenizer.sides) for epoch in range(30)]
    error = np.std(draws, axis=0) / math.sqrt(len(draws))
    assert (np.abs(np.mean(draws, axis=0) - area) < 5 * error + 1e-9).all()


@SETTINGS
@given(st.integers(1, 60), st.integers(1, 900))
def test_fill_of_three_scales_leaves_no_room(num_coarse: int, length: int) -> None:
    native, middle = CharmTokenizer(num_scales=3, max_seq_len=length, budget="fill").count_detailed(num_coarse)
    room = length - 4 * num_coarse - 12 * native - 5 * middle
    coarse = num_coarse - native - middle
    if length < 4 * num_coarse:
        assert (native, middle) == (0, 0)
        return
    assert min(native, middle, coarse, room) >= 0
    if coarse:
        assert room < 5
        assert abs(native - middle) <= 2
    elif middle:
        assert room < 7


@SETTINGS
@given(cases(), st.integers(), st.integers(0, 99), st.text("aé/0", max_size=5))
def test_tokens_depend_on_seed_epoch_and_key_alone(
    case: tuple[CharmTokenizer, np.ndarray], seed: int, epoch: int, key: str
) -> None:
    tokenizer, image = case
    first = tokenizer(image, seed=seed, epoch=epoch, key=key)
    tokenizer(NOISE[::-1], key="another image")
    assert_same(tokenizer(np.ascontiguousarray(image), seed=seed, epoch=epoch, key=key), first)


@pytest.mark.parametrize("scales", SCALES.values(), ids=list(SCALES))
@pytest.mark.parametrize("budget", ["fixed", "fill", "share"])
def test_redraw(scales: tuple[int, int], budget: str) -> None:
    settings: dict[str, Any] = {"num_scales": scales[0], "coarse_ratio": scales[1], "budget": budget}
    each = CharmTokenizer(patch_size=8, max_seq_len=300, **settings)
    once = CharmTokenizer(patch_size=8, max_seq_len=300, **settings, redraw="once")
    first = each(NOISE, key="photo-1")
    for other in ({"epoch": 1, "key": "photo-1"}, {"seed": 1, "key": "photo-1"}, {"key": "photo-2"}):
        assert not same(each(NOISE, **other), first)
        assert same(once(NOISE, **other), first) == ("epoch" in other)


def turned_places(tokens: Tokens, symmetry: Symmetry) -> dict[tuple[int, int, int], bytes]:
    """The tokens of the turned image by (scale, y, x), turned one by one with numpy alone."""
    found = {}
    for patch, (y, x), scale in list(zip(tokens.patches, tokens.patch_coord, tokens.scale_id, strict=True)):
        place = np.zeros(tokens.grids[scale], bool)
        place[y, x] = True
        place = np.rot90(place[:, ::-1] if symmetry.flip else place, symmetry.turns)
        patch = np.rot90(patch[:, ::-1] if symmetry.flip else patch, symmetry.turns)
        ((row, column),) = np.argwhere(place).tolist()
        found[int(scale), row, column] = patch.tobytes()
    return found


def without_padding(tokens: Tokens) -> Tokens:
    num = tokens.seq_len
    names = ("patches", "patch_coord", "scale_id", "patch_valid")
    return replace(tokens, **{name: getattr(tokens, name)[:num] for name in names})


@SETTINGS
@given(
    cases(), st.sampled_from(sorted(SELECTIONS)), st.sampled_from(["epoch", "once"]), st.integers(0, 3), st.booleans()
)
def test_tokens_of_a_turned_image_are_the_turned_tokens(
    case: tuple[CharmTokenizer, np.ndarray], selection: str, redraw: str, epoch: int, is_given: bool
) -> None:
    tokenizer, image = replace(case[0], selection=selection, redraw=redraw), case[1]
    arguments: dict[str, Any] = {"key": "photo-1", "epoch": epoch}
    if selection == "saliency":
        arguments["saliency_mask"] = image[..., 0] > 200
    elif is_given:
        grid = tokenizer.layout(image.shape[:2]).coarse_grid_hw
        arguments["importance"] = np.random.default_rng(epoch).integers(0, 3, grid).astype(np.float32)
    plain = tokenizer(image, **arguments)
    for symmetry in SYMMETRIES:
        turned = tokenizer(image, symmetry=symmetry, **arguments)
        assert turned.seq_len == plain.seq_len
        identity = turned_places(without_padding(turned), IDENTITY)
        assert identity == turned_places(without_padding(plain), symmetry)


@SETTINGS
@given(cases(), symmetries, st.sampled_from(["frequency", "gradient", "entropy"]))
def test_importance_that_is_given_is_the_importance_that_is_computed(
    case: tuple[CharmTokenizer, np.ndarray], symmetry: Symmetry, selection: str
) -> None:
    tokenizer, image = replace(case[0], selection=selection), case[1]
    assume(len(tokenizer.layout(image.shape[:2]).cell_sides) > 1)
    scores = score_patches(image, selection, tokenizer.coarse_patch_size, tokenizer.fit)
    computed = tokenizer(image, key="photo-1", symmetry=symmetry)
    assert_same(computed, tokenizer(image, importance=scores, key="photo-1", symmetry=symmetry))


@pytest.mark.parametrize("scales", SCALES.values(), ids=list(SCALES))
def test_an_image_is_cut_like_its_fitted_copy(scales: tuple[int, int]) -> None:
    """Only the border is padded, and views and mirrored views are read where they lie."""
    settings: dict[str, Any] = {"num_scales": scales[0], "coarse_ratio": scales[1], "max_seq_len": 200}
    for fit, p, (height, width) in itertools.product(["nearest", "pad"], [7, 8], [(301, 411), (15, 2000), (2000, 9)]):
        tokenizer = CharmTokenizer(p, **settings, budget="fill", fit=fit)
        image = np.resize(NOISE, (height, width, 3))
        expected = tokenizer(fitted(tokenizer, image), key="photo-1")
        views = [image, np.pad(image, ((3, 4), (5, 6), (0, 0)))[3:-4, 5:-6], image[:, ::-1].copy()[:, ::-1]]
        for view in views:
            assert_same(tokenizer(view, key="photo-1"), expected)


@pytest.mark.parametrize("scales", SCALES.values(), ids=list(SCALES))
def test_threshold_1_leaves_nothing_to_chance(scales: tuple[int, int]) -> None:
    tokenizer = CharmTokenizer(8, scales[1], scales[0], 1600, "gradient", threshold=1)
    plain = tokenizer(NOISE[:320, :448])
    assert len(set(plain.scale_id[: plain.seq_len].tolist())) == scales[0]
    assert_same(tokenizer(NOISE[:320, :448], seed=5, epoch=6, key="another"), plain)
    cells = shown_cells(plain, tokenizer.sides)
    scores = score_patches(NOISE[:320, :448], "gradient", tokenizer.coarse_patch_size)
    assert scores[cells[-1] > 0].min() > scores[cells[-1] == 0].max()
    for symmetry in SYMMETRIES:
        turned = shown_cells(tokenizer(NOISE[:320, :448], symmetry=symmetry), tokenizer.sides)
        for found, expected in zip(turned, cells, strict=True):
            np.testing.assert_array_equal(found, apply_symmetry(expected.astype(np.int32), symmetry))


def test_golden_tokens() -> None:
    y, x = np.mgrid[:48, :64]
    image = np.stack([y * 4, x * 3, (y * x) % 256], axis=2).astype(np.uint8)
    tokens = CharmTokenizer(8, 2, 2, 20, budget="fill")(image, seed=3, epoch=1, key="photo-1")
    native = [[2, 0], [2, 1], [3, 0], [3, 1], [2, 2], [2, 3], [3, 2], [3, 3], [2, 6], [2, 7]]
    coarse = [[0, 0], [0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 0], [2, 1], [2, 2], [2, 3]]
    assert tokens.grids == ((3, 4), (6, 8))
    assert tokens.patch_coord.tolist() == native + coarse
    assert tokens.scale_id.tolist() == [1] * 10 + [0] * 10
    assert tokens.patches[1, 0, 0].tolist() == [64, 24, 128]
    assert tokens.patches[-1, -1, -1].tolist() == [186, 188, 90]
    assert tokens.patches.sum(axis=(1, 2, 3))[[0, 5, 10]].tolist() == [10032, 18480, 6976]
    dropped = CharmTokenizer(8, 2, 2, 20)(image, seed=3, epoch=1, key="photo-1")  # all 48 native, 20 are kept
    kept = [11, 2, 3, 15, 17, 30, 23, 33, 35, 26, 36, 40, 50, 51, 42, 53, 45, 54, 55, 46]
    assert [10 * y + x for y, x in dropped.patch_coord.tolist()] == kept


@pytest.mark.parametrize("scales", SCALES.values(), ids=list(SCALES))
@pytest.mark.parametrize("image_hw", [(1, 1), (1, 20000), (20000, 1), (7, 7), (8, 264), (8, 268), (33, 17)], ids=str)
def test_images_of_any_shape(image_hw: tuple[int, int], scales: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    for budget, drop in itertools.product(["fixed", "fill", "share"], ["uniform", "low_first"]):
        tokenizer = CharmTokenizer(8, scales[1], scales[0], 33, "gradient", budget=budget, drop=drop)
        tokens = tokenizer(image)
        assert tokens.grids == tokenizer.grids(image_hw)
        patches = max(1, (image_hw[0] + 4) // 8) * max(1, (image_hw[1] + 4) // 8)
        assert (tokens.grids[0] == (0, 0)) == (patches <= 33)
        assert tokens.seq_len == patches if patches <= 33 else tokens.seq_len > 0
        assert tokens.to_image().shape == fitted(tokenizer, image).shape


def test_published_counts() -> None:
    assert FIXED_NATIVE_TOKENS == 256
    image = np.zeros((640, 640, 3), np.uint8)
    # 23 x 23 coarse patches: 64 * 4 + 465 = 721 tokens, of which uniform dropping keeps 512 / 721.
    native = [int((CharmTokenizer()(image, key=str(i)).scale_id == 1).sum()) for i in range(40)]
    assert np.mean(native) == pytest.approx(256 * 512 / 721, abs=5)
    assert (CharmTokenizer(drop="low_first")(image).scale_id == 1).sum() == 256
    for scales, native_tokens, counts in (((2, 2), 256, (64,)), ((2, 3), 252, (28,)), ((2, 4), 256, (16,))):
        tokenizer = CharmTokenizer(num_scales=scales[0], coarse_ratio=scales[1], drop="low_first", max_seq_len=700)
        assert tokenizer.count_detailed(500) == counts
        assert (tokenizer(image).scale_id == 1).sum() == native_tokens
    assert CharmTokenizer(num_scales=3).count_detailed(100) == (16, 16)
    assert CharmTokenizer(num_scales=3).count_detailed(20) == (16, 4)


@pytest.mark.parametrize(
    ("native_share", "native"),
    [(0.75, 384), (0.5, 256), (0.25, 128), (0.1, 48)],
    ids=["three quarters", "half", "a quarter", "rounded down to whole coarse patches"],
)
def test_share_is_kept_where_coarse_tokens_alone_are_too_many(native_share: float, native: int) -> None:
    tokens = CharmTokenizer(budget="share", native_share=native_share)(np.zeros((980, 980, 3), np.uint8))
    assert tokens.grids == ((35, 35), (70, 70))
    assert [int((tokens.scale_id == scale).sum()) for scale in (0, 1)] == [512 - native, native]
