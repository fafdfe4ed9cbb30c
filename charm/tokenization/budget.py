"""How many coarse patches are shown in detail, and which tokens go when there are too many (Charm, section 3.2.1).

charm.tokenization.tokenizer.CharmTokenizer says what the budgets mean.
"""

from collections.abc import Sequence

import numpy as np

BUDGETS = ("fixed", "fill", "share")
DROPS = ("uniform", "low_first")

# Coarse patches shown at each finer scale, native first, in the published experiments (64; 16 + 16 with three scales).
FIXED_COUNTS = {2: (64,), 3: (16, 16)}


def count_detailed(
    num_coarse: int, sides: Sequence[int], max_seq_len: int, budget: str, native_share: float
) -> tuple[int, ...]:
    """How many of `num_coarse` coarse patches are shown at each finer scale, native first.

    Args:
        num_coarse: coarse patches of the image.
        sides: tokens along a side of a coarse patch at each scale, coarsest first (`geometry.cell_sides`).
        max_seq_len: l, tokens.
        budget: one of BUDGETS.
        native_share: of max_seq_len, for "share".
    """
    if budget == "fixed":
        counts, left = [], num_coarse
        for wanted in FIXED_COUNTS[len(sides)]:
            counts.append(min(wanted, left))
            left -= counts[-1]
        return tuple(counts)
    finer = sides[:0:-1]
    costs = [side**2 - sides[0] ** 2 for side in finer]
    spare = max(max_seq_len - num_coarse * sides[0] ** 2, 0)
    equal = spare // sum(costs)
    if budget == "share":
        equal = max(equal, round(native_share * max_seq_len) // sum(side**2 for side in finer))
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


def keep_tokens(lengths: Sequence[int], max_seq_len: int, drop: str, random_bits: np.ndarray) -> list[np.ndarray]:
    """Which tokens stay when they are trimmed to max_seq_len.

    Args:
        lengths: tokens at each scale, native first.
        max_seq_len: l, at most their sum.
        drop: "uniform", or "low_first": tokens of a coarser scale go before those of a finer one.
        words: uint64 (sum of lengths,), a keyed draw.

    Returns:
        bool (length,) per scale.
    """
    if drop == "low_first":
        order = np.lexsort((random_bits, np.repeat(np.arange(len(lengths)), lengths)))
    else:
        order = np.argsort(random_bits, kind="stable")
    keep = np.zeros(len(random_bits), bool)
    keep[order[:max_seq_len]] = True
    return np.split(keep, np.cumsum(lengths)[:-1])
