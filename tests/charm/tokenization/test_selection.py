"""Selection: which coarse patches may be chosen, and which may not."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charm.tokenization.draws import draw_subset
from charm.tokenization.selection import SELECTIONS, Draw, judge_saliency, pool_saliency, select_patches

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
RANKED = ["frequency", "gradient", "entropy"]
SCORES = np.array([3, 9, 1, 7, 0, 8, 2, 6, 4, 5], np.float32)  # descending: 1, 5, 3, 7, 9, 8, 0, 6, 2, 4


def draw_of(seed: int) -> Draw:
    return partial(draw_subset, seed, 0, "photo-1")


@SETTINGS
@given(st.data(), st.sampled_from(sorted(SELECTIONS)), st.integers(1, 60), st.integers(0, 2**32), st.floats(1, 5))
def test_selections_are_disjoint_and_of_the_wanted_size(
    data: st.DataObject, selection: str, num: int, seed: int, threshold: float
) -> None:
    native = data.draw(st.integers(0, num))
    middle = data.draw(st.integers(0, num - native))
    scores = np.array(data.draw(st.lists(st.integers(0, 4), min_size=num, max_size=num)), np.float32)
    before = scores.copy()
    chosen = select_patches(selection, scores, [native, middle], draw_of(seed), threshold)
    assert [len(part) for part in chosen] == [native, middle]
    assert len(set(np.concatenate(chosen).tolist())) == native + middle
    for part in chosen:
        assert set(part.tolist()) <= set(range(num))
        assert part.tolist() == sorted(part.tolist())
    np.testing.assert_array_equal(scores, before)
    again = select_patches(selection, scores, [native, middle], draw_of(seed), threshold)
    assert [part.tolist() for part in again] == [part.tolist() for part in chosen]


@pytest.mark.parametrize("selection", RANKED)
@pytest.mark.parametrize("seed", range(5))
def test_threshold_1_takes_the_most_important(selection: str, seed: int) -> None:
    native, middle = select_patches(selection, SCORES, [2, 3], draw_of(seed), threshold=1)
    assert native.tolist() == [1, 5]
    assert middle.tolist() == [3, 7, 9]


def test_equal_importance_is_broken_by_a_draw() -> None:
    scores = np.array([1, 2, 2, 2, 1], np.float32)
    chosen = [select_patches("gradient", scores, [2], draw_of(seed), threshold=1)[0].tolist() for seed in range(40)]
    assert {tuple(part) for part in chosen} == {(1, 2), (1, 3), (2, 3)}


@pytest.mark.parametrize(("threshold", "count", "size"), [(1.1, 50, 55), (1.1, 10, 11), (2.3, 10, 23), (1.01, 50, 51)])
def test_the_pool_is_counted_in_decimals(threshold: float, count: int, size: int) -> None:
    """In floats 1.1 * 50 is above 55."""
    scores = np.arange(200, dtype=np.float32)
    chosen = [select_patches("gradient", scores, [count], draw_of(seed), threshold)[0] for seed in range(200)]
    assert min(part.min() for part in chosen) == 200 - size


@pytest.mark.parametrize(
    ("threshold", "pool"),
    [
        pytest.param(1.5, {1, 5, 3, 7, 9}, id="3 of ceil(4.5) = 5"),
        pytest.param(2.0, {1, 5, 3, 7, 9, 8}, id="3 of 6"),
        pytest.param(50.0, set(range(10)), id="3 of all"),
    ],
)
def test_threshold_bounds_the_pool(threshold: float, pool: set[int]) -> None:
    times: Counter[int] = Counter()
    for seed in range(400):
        times.update(select_patches("entropy", SCORES, [3], draw_of(seed), threshold)[0].tolist())
    assert set(times) == pool
    expected = 3 * 400 / len(pool)
    assert all(0.7 * expected < count < 1.3 * expected for count in times.values()), times


def test_a_later_scale_has_a_pool_of_its_own() -> None:
    seen = set()
    for seed in range(100):
        native, middle = select_patches("gradient", SCORES, [1, 1], draw_of(seed), threshold=2)
        left = [index for index in (1, 5, 3) if index != native[0]]
        assert native[0] in (1, 5)
        assert middle[0] in left
        seen.add((int(native[0]), int(middle[0])))
    assert seen == {(1, 5), (1, 3), (5, 1), (5, 3)}


def test_random_looks_at_no_score() -> None:
    scores = np.full(10, np.nan, np.float32)
    chosen = [select_patches("random", scores, [4], draw_of(seed))[0].tolist() for seed in range(200)]
    assert chosen[0] == select_patches("random", SCORES, [4], draw_of(0))[0].tolist()
    times = Counter(index for part in chosen for index in part)
    assert all(50 < times[index] < 110 for index in range(10)), times  # 80 expected, sigma 7


@pytest.mark.parametrize("seed", range(5))
def test_salient_patches_come_first(seed: int) -> None:
    scores = np.isin(np.arange(10), [2, 5, 6]).astype(np.float32)
    assert set(select_patches("saliency", scores, [2], draw_of(seed))[0].tolist()) < {2, 5, 6}
    assert select_patches("saliency", scores, [3], draw_of(seed))[0].tolist() == [2, 5, 6]
    native, middle = select_patches("saliency", scores, [2, 2], draw_of(seed))
    assert len({*native.tolist(), *middle.tolist()} - {2, 5, 6}) == 1
    assert {*native.tolist()} < {2, 5, 6}


def test_salient_patches_are_drawn() -> None:
    scores = np.isin(np.arange(10), [2, 5, 6]).astype(np.float32)
    first = Counter(int(select_patches("saliency", scores, [1], draw_of(seed))[0][0]) for seed in range(300))
    assert set(first) == {2, 5, 6}
    assert min(first.values()) > 70  # 100 expected, sigma 8


def test_unknown_selection_is_refused() -> None:
    with pytest.raises(ValueError, match="selection='sobel': expected one of random, frequency, gradient"):
        select_patches("sobel", SCORES, [1], draw_of(0))


@pytest.mark.parametrize(
    ("covered", "coverage", "salient"),
    [
        pytest.param(8, 0.5, True, id="exactly half"),
        pytest.param(7, 0.5, False, id="less than half"),
        pytest.param(1, 1 / 16, True, id="one pixel, where that is enough"),
        pytest.param(16, 1.0, True, id="all"),
        pytest.param(15, 1.0, False, id="all but one"),
    ],
)
def test_coverage(covered: int, coverage: float, salient: bool) -> None:
    mask = np.zeros((4, 8), bool)
    mask[:, :4] = (np.arange(16) < covered).reshape(4, 4)
    mask[:, 4:] = True
    np.testing.assert_array_equal(pool_saliency(mask, 4, coverage), [[float(salient), 1.0]])


def test_true_may_be_any_byte_but_0() -> None:
    """Pillow decodes a 1-bit PNG into a bool array whose True is 255."""
    mask = np.zeros((4, 8), np.uint8)
    mask[0, 0], mask[:2, 4:] = 255, 255
    np.testing.assert_array_equal(pool_saliency(mask.view(bool), 4, 0.5), [[0.0, 1.0]])


def test_an_empty_mask_selects_as_chance_does() -> None:
    pooled = pool_saliency(np.zeros((40, 60), bool), 4, 0.5).ravel()
    for seed in range(5):
        drawn = draw_of(seed)
        salient, random = (select_patches(name, pooled, [30, 20], drawn) for name in ("saliency", "random"))
        for by_saliency, by_chance in zip(salient, random, strict=True):
            np.testing.assert_array_equal(by_saliency, by_chance)


@pytest.mark.parametrize(
    ("pixels", "case", "salient"),
    [
        pytest.param([], "empty", [[1, 1, 1], [1, 1, 1]], id="nothing: the whole image"),
        pytest.param([(0, 0)], "small", [[1, 0, 0], [0, 0, 0]], id="a pixel"),
        pytest.param([(0, 0), (0, 4), (1, 4)], "small", [[0, 1, 0], [0, 0, 0]], id="the patch with the most"),
        pytest.param([(0, 0), (7, 11)], "small", [[1, 0, 0], [0, 0, 1]], id="two with as much"),
        pytest.param([(y, x) for y in (0, 1) for x in range(4)], "object", [[1, 0, 0], [0, 0, 0]], id="half a patch"),
    ],
)
def test_a_small_object_is_where_it_covers_most(
    pixels: list[tuple[int, int]], case: str, salient: list[list[int]]
) -> None:
    mask = np.zeros((8, 12), bool)
    for y, x in pixels:
        mask[y, x] = True
    pooled = pool_saliency(mask, 4, 0.5)
    assert pooled.dtype == np.float32
    assert pooled.tolist() == salient
    assert judge_saliency(mask, 4, 0.5) == case
    assert case in ("object", "small", "empty")


def test_coverage_is_read_as_a_decimal() -> None:
    """In floats 0.55 * 20 * 20 is above 220."""
    mask = np.arange(400).reshape(20, 20) < 220
    assert judge_saliency(mask, 20, 0.55) == "object"
    assert judge_saliency(mask, 20, 0.5501) == "small"


@pytest.mark.parametrize("coarse_patch_size", [28, 300])
def test_coverage_is_the_mean_of_the_mask(coarse_patch_size: int) -> None:
    rng = np.random.default_rng(0)
    p = coarse_patch_size
    density = np.repeat(np.repeat(rng.random((3, 2)), p, axis=0), p, axis=1)
    mask = rng.random((3 * p, 2 * p)) < density
    mean = mask.reshape(3, p, 2, p).mean(axis=(1, 3))
    np.testing.assert_array_equal(pool_saliency(mask, p, 0.4), mean >= 0.4)
    assert 0 < np.sum(mean >= 0.4) < 6
