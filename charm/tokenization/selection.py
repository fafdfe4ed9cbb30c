"""Which coarse patches are shown in more detail: the paper's five strategies (Charm, section 3.2.2 and appendix 8).

A strategy picks `count` of N coarse patches:

    random                        uniformly
    frequency, gradient, entropy  uniformly among the `threshold` * count patches of highest importance; a threshold
                                  of 1 is deterministic
    saliency                      uniformly among the patches that the salient object covers, then among the others

Equal importance is broken towards the lower index (raster order).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Select = Callable[[np.ndarray, int, float, np.ndarray], np.ndarray]


def _select_random(scores: np.ndarray, count: int, threshold: float, random_bits: np.ndarray) -> np.ndarray:
    return np.argsort(random_bits, kind="stable")[:count]


def _select_top(scores: np.ndarray, count: int, threshold: float, random_bits: np.ndarray) -> np.ndarray:
    pool = np.argsort(-scores, kind="stable")[: math.ceil(threshold * count)]
    return pool[np.argsort(random_bits[pool], kind="stable")[:count]]


def _select_salient(scores: np.ndarray, count: int, threshold: float, random_bits: np.ndarray) -> np.ndarray:
    return np.lexsort((random_bits, scores <= 0))[:count]


SELECTIONS: dict[str, Select] = {
    "random": _select_random,
    "frequency": _select_top,
    "gradient": _select_top,
    "entropy": _select_top,
    "saliency": _select_salient,
}


def select_patches(
    selection: str, scores: np.ndarray, counts: Sequence[int], random_bits: np.ndarray, threshold: float = 2.0
) -> list[np.ndarray]:
    """Disjoint sets of coarse patches, one for each scale that is finer than the coarsest.

    Args:
        selection: a key of SELECTIONS.
        scores: float (N,), importance per coarse patch in raster order; for "saliency", above 0 where the patch is
            salient; for "random", unused.
        counts: how many patches to take for each finer scale, native resolution first; at least one scale. Their sum is
            at most N.
        words: uint64 (N,), a keyed draw (charm.tokenization.draws).
        threshold: t >= 1, how many times `count` the pool of the most important patches holds.

    Returns:
        One int64 (count,) of ascending patch indices per count. A later set is chosen from what the earlier left.

    Raises:
        ValueError: unknown selection.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"selection={selection!r}: expected one of {', '.join(SELECTIONS)}")
    select = SELECTIONS[selection]
    picked = select(scores, counts[0], threshold, random_bits)
    chosen = [np.sort(picked)]
    left = np.arange(len(random_bits))
    for count in counts[1:]:
        left = np.delete(left, picked)
        picked = select(scores[left], count, threshold, random_bits[left])
        chosen.append(np.sort(left[picked]))
    return chosen


def pool_saliency(saliency_mask: np.ndarray, coarse_patch_size: int, coverage: float) -> np.ndarray:
    """Which coarse patches the salient object covers.

    Args:
        saliency_mask: bool (H, W), fitted to the coarse grid.
        coarse_patch_size: pixels.
        coverage: smallest share of a patch's pixels, in (0, 1], that makes it salient.

    Returns:
        float32 (grid_h, grid_w), 1 where salient. All ones if no patch is: then the whole image counts as salient
        (Charm, appendix 8).
    """
    grid_h, grid_w = (side // coarse_patch_size for side in saliency_mask.shape)
    # Two steps, the long axis in the narrowest type that holds p': 5 times faster than one sum over both. A copy, since
    # a bool that Pillow decoded is a byte of 255, and two of those would be taken for most of a patch.
    columns = saliency_mask.astype(np.uint8).reshape(grid_h, coarse_patch_size, -1).sum(axis=1, dtype=np.uint16)
    area = columns.reshape(grid_h, grid_w, coarse_patch_size).sum(axis=2, dtype=np.uint32)
    salient = area >= coverage * coarse_patch_size**2
    return salient.astype(np.float32) if salient.any() else np.ones((grid_h, grid_w), np.float32)
