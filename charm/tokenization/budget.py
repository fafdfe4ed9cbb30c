"""How many coarse patches are shown in detail, and which tokens go when there are too many (Charm, section 3.2.1).

The docstring of charm.tokenization.tokenizer.CharmTokenizer explains the budgets.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from charm.tokenization.geometry import exact

# Tokens at native resolution in the published experiments: 64, 28 or 16 coarse patches of 2 x 2, 3 x 3 or 4 x 4 native
# ones, so that coarse patches of any size leave about the same area native (Charm, table 18). With three scales 16
# coarse patches are native, and as many are shown at the middle scale.
FIXED_NATIVE_TOKENS = 256


def count_detailed(
    num_coarse: int, sides: Sequence[int], max_seq_len: int, budget: str, native_share: float
) -> tuple[int, ...]:
    """Returns how many of `num_coarse` coarse patches are shown at each finer scale, native first.

    Args:
        num_coarse: coarse patches of the image.
        sides: tokens along a side of a coarse patch at each scale, coarsest first (`geometry.cell_sides`).
        max_seq_len: l, tokens.
        budget: "fixed", "fill" or "share".
        native_share: fraction of max_seq_len that native (and middle) tokens take, for "share".
    """
    finer = sides[:0:-1]
    if budget == "fixed":
        counts, left = [], num_coarse
        for _ in finer:
            counts.append(min(FIXED_NATIVE_TOKENS // sides[-1] ** 2, left))
            left -= counts[-1]
        return tuple(counts)
    costs = [side**2 - sides[0] ** 2 for side in finer]
    spare = max(max_seq_len - num_coarse * sides[0] ** 2, 0)
    equal = spare // sum(costs)
    if budget == "share":
        equal = max(equal, round(exact(native_share) * max_seq_len) // sum(side**2 for side in finer))
    counts = [min(equal, num_coarse // len(finer))] * len(finer)
    spare -= counts[0] * sum(costs)
    for scale, cost in enumerate(costs):
        more = max(min(spare // cost, num_coarse - sum(counts)), 0)
        counts[scale] += more
        spare -= more * cost
    if len(finer) == 2 and spare > 0:  # no coarse patch is left: the middle scale gives way to the native one
        more = min(spare // (costs[0] - costs[1]), counts[1])
        counts = [counts[0] + more, counts[1] - more]
    return tuple(counts)


class AreaSeen(NamedTuple):
    """How an image's area is seen, as fractions that sum to 1."""

    native: float  # at native resolution
    downscaled: float  # downscaled only
    dropped: float  # not at all

    def __str__(self) -> str:
        native, downscaled, dropped = (f"{100 * fraction:.0f} %" for fraction in self)
        return f"{native} native, {downscaled} downscaled, {dropped} dropped"


def measure_area(counts: Sequence[int], sides: Sequence[int], max_seq_len: int, budget: str, drop: str) -> AreaSeen:
    """Measures how the area of an image is seen; where tokens are dropped at random, in expectation.

    At each scale, native first, there are so many coarse patches (counts), with so many tokens along a side (sides).
    """
    lengths = [count * side**2 for count, side in zip(counts, sides, strict=True)]
    spare = max_seq_len - sum(lengths)
    kept: list[float] = list(lengths)
    if spare < 0 and drop == "uniform" and budget != "share":
        kept = [length * max_seq_len / sum(lengths) for length in lengths]
    elif spare < 0:
        room = max_seq_len
        for scale, length in enumerate(lengths):
            kept[scale] = min(length, room)
            room -= min(length, room)
    native, *coarser = (tokens / side**2 for tokens, side in zip(kept, sides, strict=True))
    downscaled = sum(coarser)
    if spare > 0 and budget != "fixed" and downscaled:  # the places left show a part of a downscaled patch natively
        extra = min(spare / sides[0] ** 2, 1.0)
        native, downscaled = native + extra, downscaled - extra
    whole = sum(counts)
    return AreaSeen(native / whole, downscaled / whole, max(0.0, 1 - (native + downscaled) / whole))


def keep_tokens(
    lengths: Sequence[int], max_seq_len: int, drop: str, draw: Callable[[str, int, int], np.ndarray]
) -> list[np.ndarray]:
    """Chooses the tokens that stay when they are trimmed to max_seq_len.

    Args:
        lengths: tokens at each scale, native first.
        max_seq_len: l, at most their sum.
        drop: "uniform", or "low_first": tokens of a coarser scale go before those of a finer one.
        draw: `draws.draw_subset` of this image.

    Returns:
        bool (length,) per scale.
    """
    if drop == "uniform":
        return np.split(draw("drop", sum(lengths), max_seq_len), np.cumsum(lengths)[:-1])
    kept, room = [], max_seq_len
    for length in lengths:
        kept.append(draw("drop", length, min(length, room)))  # a draw of all or of none draws nothing
        room -= min(length, room)
    return kept
