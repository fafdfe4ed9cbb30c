"""Which coarse patches are shown in more detail: the paper's five strategies (Charm, section 3.2.2 and appendix 8).

A strategy picks `count` of N coarse patches:

    random                        uniformly
    frequency, gradient, entropy  uniformly among the `threshold` * count patches of highest importance; a threshold
                                  of 1 is deterministic
    saliency                      uniformly among the patches that the salient object covers, then among the others

Equal importance at the border of the pool is broken by a draw: in raster order, a flat sky would always give its upper
left. Every choice draws from a stream of its own.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from charm.tokenization.geometry import exact
from charm.tokenization.settings import Selection

# `draws.draw_subset` of an image, called with (stream, size, count): bool (size,), `count` of them True.
Draw = Callable[[str, int, int], np.ndarray]
# Called with (scores, count, threshold, stream, draw): ascending indices, int64 (count,).
Select = Callable[[np.ndarray, int, float, str, Draw], np.ndarray]


def _select_random(scores: np.ndarray, count: int, threshold: float, stream: str, draw: Draw) -> np.ndarray:
    return np.flatnonzero(draw(stream, len(scores), count))


def _select_top(scores: np.ndarray, count: int, threshold: float, stream: str, draw: Draw) -> np.ndarray:
    pool = _find_top(scores, math.ceil(exact(threshold) * count), f"{stream} ties", draw)
    return pool[draw(stream, len(pool), count)]


def _find_top(scores: np.ndarray, size: int, stream: str, draw: Draw) -> np.ndarray:
    """Finds the `size` highest scores; returns their indices in ascending order."""
    if size >= len(scores):
        return np.arange(len(scores))
    border = np.partition(scores, -size)[-size]
    found = scores > border
    level = np.flatnonzero(scores == border)
    found[level[draw(stream, len(level), size - int(found.sum()))]] = True
    return np.flatnonzero(found)


def _select_salient(scores: np.ndarray, count: int, threshold: float, stream: str, draw: Draw) -> np.ndarray:
    salient, others = np.flatnonzero(scores > 0), np.flatnonzero(scores <= 0)
    num_salient = min(count, len(salient))
    picked = salient[draw(stream, len(salient), num_salient)]
    more = others[draw(f"{stream} others", len(others), count - num_salient)]
    return np.sort(np.concatenate([picked, more]))


SELECTIONS: dict[Selection, Select] = {
    "random": _select_random,
    "frequency": _select_top,
    "gradient": _select_top,
    "entropy": _select_top,
    "saliency": _select_salient,
}


def select_patches(
    selection: Selection,
    # float (N,), importance per coarse patch in raster order; for "saliency" above 0 where salient
    scores: np.ndarray,
    counts: Sequence[int],  # how many patches to take for each finer scale, native first; their sum is at most N
    draw: Draw,
    threshold: float = 2.0,  # t >= 1, how many times `count` the pool of the most important patches holds
    stream: str = "select",  # names the draws; the number of the set is added
) -> list[np.ndarray]:
    """Chooses disjoint sets of coarse patches, one for each scale that is finer than the coarsest.

    Returns:
        One int64 (count,) of ascending patch indices per count. A later set is chosen from the patches that are left.

    Raises:
        ValueError: unknown selection.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"selection={selection!r}: expected one of {', '.join(SELECTIONS)}")
    select = SELECTIONS[selection]
    chosen = []
    free = np.ones(len(scores), bool)
    for number, count in enumerate(counts):
        left = np.flatnonzero(free)
        picked = left[select(scores[left], count, threshold, f"{stream} {number}", draw)] if count else left[:0]
        free[picked] = False
        chosen.append(picked)
    return chosen


def pool_saliency(saliency_mask: np.ndarray, coarse_patch_size: int, coverage: float) -> np.ndarray:
    """Marks the coarse patches that the salient object covers.

    Args:
        saliency_mask: bool (H, W), fitted to the coarse grid.
        coarse_patch_size: pixels.
        coverage: smallest share of a patch's pixels, in (0, 1], that makes it salient.

    Returns:
        float32 (grid_h, grid_w), 1 where salient, by `judge_saliency`: the patches that an object covers; if it is
        small, the patches that it covers most; all patches of an empty mask (Charm, appendix 8).
    """
    area = _count_salient(saliency_mask, coarse_patch_size)
    least = min(_least_area(coarse_patch_size, coverage), int(area.max()))
    return (area >= least).astype(np.float32)


def judge_saliency(saliency_mask: np.ndarray, coarse_patch_size: int, coverage: float) -> str:
    """Tells how `pool_saliency` reads a mask; takes the same arguments.

    An "object" covers a coarse patch by `coverage` or more, a "small" one none by as much; "empty" masks have no pixel.
    """
    most = int(_count_salient(saliency_mask, coarse_patch_size).max())
    return "empty" if most == 0 else "small" if most < _least_area(coarse_patch_size, coverage) else "object"


def _least_area(coarse_patch_size: int, coverage: float) -> int:
    """Returns the fewest salient pixels that make a coarse patch salient."""
    return math.ceil(exact(coverage) * coarse_patch_size**2)


def _count_salient(saliency_mask: np.ndarray, coarse_patch_size: int) -> np.ndarray:
    """Counts the salient pixels of each coarse patch; uint32 (grid_h, grid_w)."""
    grid_h, grid_w = (side // coarse_patch_size for side in saliency_mask.shape)
    # A copy, since a bool that Pillow decoded is a byte of 255, and two of those would be taken for most of a patch.
    ones = saliency_mask.astype(np.uint8)
    # Two steps, the long axis in the narrowest type that holds p': 5 times faster than one sum over both.
    narrow = np.min_scalar_type(coarse_patch_size)
    columns = ones.reshape(grid_h, coarse_patch_size, -1).sum(axis=1, dtype=narrow)
    area: np.ndarray = columns.reshape(grid_h, grid_w, coarse_patch_size).sum(axis=2, dtype=np.uint32)
    return area
