"""The quadtree: which patches are split, against a heap, and its exact budget."""

import heapq

import cv2
import numpy as np
import pytest

from charm.inputs.quadtree import QuadtreeInput, choose_splits, measure_loss
from charm.inputs.settings import QuadtreeSettings


def split_by_heap(losses: list[np.ndarray], count: int) -> list[np.ndarray]:
    """The definition: split the patch of the highest loss that is there; ties: the larger, then the raster order."""
    split = [np.zeros(loss.shape, bool) for loss in losses]
    heap = [(-loss, 0, y, x) for (y, x), loss in np.ndenumerate(losses[0])]
    heapq.heapify(heap)
    while heap and count:
        _, level, y, x = heapq.heappop(heap)
        split[level][y, x] = True
        count -= 1
        if level + 1 < len(losses):
            for child_y, child_x in ((2 * y + i, 2 * x + j) for i in (0, 1) for j in (0, 1)):
                heapq.heappush(heap, (-losses[level + 1][child_y, child_x], level + 1, child_y, child_x))
    return split


@pytest.mark.parametrize("levels", [2, 3])
def test_the_highest_keys_are_what_a_heap_would_split(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(300):
        h, w = rng.integers(1, 5, 2)
        # Few values, so that many are equal.
        values = rng.integers(0, rng.integers(2, 40), (5 if levels == 3 else 1, h, w)).astype(float)
        losses = [values[0]]
        if levels == 3:
            losses.append(rng.integers(0, 30, (2 * h, 2 * w)).astype(float))
        count = int(rng.integers(0, sum(loss.size for loss in losses) + 3))
        found, expected = choose_splits(losses, count), split_by_heap(losses, count)
        assert [one.sum() for one in found] == [one.sum() for one in expected] or _has_ties(losses)
        if not _has_ties(losses):
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


def _has_ties(losses: list[np.ndarray]) -> bool:
    flat = np.concatenate([loss.ravel() for loss in losses])
    return len(np.unique(flat)) < len(flat)


def test_the_textured_quarter_is_split_first() -> None:
    image = np.full((112, 112, 3), 90, np.uint8)
    image[:56, 56:] = np.random.default_rng(0).integers(0, 256, (56, 56, 3))
    for splits in range(6):
        tokens = QuadtreeInput(14, 4 + 3 * splits)(image)
        assert tokens.seq_len == 4 + 3 * splits
        whole = set(map(tuple, tokens.patch_coord[tokens.patch_valid & (tokens.scale_id == 0)].tolist()))
        assert whole == {(0, 0), (1, 0), (1, 1)} | ({(0, 1)} if splits == 0 else set())
    assert (tokens.scale_id == 2).sum() == 16  # five splits: all of it is native
    seen = tokens.to_image()
    np.testing.assert_array_equal(seen[:56, 56:], image[:56, 56:])


def test_equal_losses_are_split_in_raster_order() -> None:
    tokens = QuadtreeInput(14, 9 + 3 * 2)(np.full((168, 168, 3), 90, np.uint8))
    halves = tokens.patch_coord[tokens.patch_valid & (tokens.scale_id == 1)]
    assert {(y // 2, x // 2) for y, x in halves.tolist()} == {(0, 0), (0, 1)}


def test_loss_is_the_root_of_the_mean_squared_error_times_the_side() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (112, 56, 3), dtype=np.uint8)
    small = cv2.resize(frame, (28, 56), interpolation=cv2.INTER_AREA)
    error = (cv2.resize(small, (56, 112), interpolation=cv2.INTER_LINEAR).astype(float) - frame) ** 2
    expected = [[np.sqrt(error[y : y + 28, x : x + 28].mean() * 28) for x in (0, 28)] for y in range(0, 112, 28)]
    np.testing.assert_allclose(measure_loss(frame, small, 14), expected, rtol=1e-5)


@pytest.mark.parametrize("settings", [QuadtreeSettings(), QuadtreeSettings(0, 2), QuadtreeSettings(256)], ids=str)
def test_the_budget_is_used_up_to_two_tokens(settings: QuadtreeSettings) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        image_hw = tuple(int(side) for side in rng.integers(1, 900, 2))
        budget = int(rng.integers(1, 600))
        made = QuadtreeInput(14, budget, settings)
        tokens = made(np.zeros((*image_hw, 3), np.uint8))
        finest = tokens.grids[-1][0] * tokens.grids[-1][1]
        assert min(budget, finest) - 2 <= tokens.seq_len == made.length(image_hw) <= budget
        area = (4.0 ** (settings.levels - 1 - tokens.scale_id[tokens.patch_valid])).sum()
        assert area == finest


def test_native_pixels_are_kept() -> None:
    image = np.random.default_rng(0).integers(0, 256, (336, 448, 3), dtype=np.uint8)
    tokens = QuadtreeInput(14, 200)(image)
    native = np.flatnonzero(tokens.scale_id == 2)
    assert len(native)
    for token in native:
        y, x = 14 * tokens.patch_coord[token]
        np.testing.assert_array_equal(tokens.patches[token], image[y : y + 14, x : x + 14])
