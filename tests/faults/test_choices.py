"""G14: every choice is uniform, whatever the choices before it were.

Each test counts joint outcomes of two choices or more, of so many images that a bias of a few percent shows, and
compares the counts with equal shares by a chi-square test. The draws are keyed, so a test passes always or never.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from math import comb, prod

import numpy as np
import pytest
from scipy import stats

from charm.inputs.settings import StandardSettings
from charm.inputs.standard import StandardInput
from charm.tokenization.augment import draw_symmetry
from charm.tokenization.budget import keep_tokens
from charm.tokenization.draws import draw_subset
from charm.tokenization.selection import Draw, select_patches
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens
from tests.faults.conftest import Gate

PER_OUTCOME = 40  # draws
LEAST_CHANCE = 1e-3  # of counts as uneven as these, if all outcomes are as likely

Choose = Callable[[int], Hashable]


def draw_of(number: int) -> Draw:
    """Draws of one of many images."""
    return partial(draw_subset, 0, 0, f"image-{number}")


def judge(gate: Gate, what: str, choose: Choose, shares: int | dict[Hashable, float]) -> None:
    """Draws often; shares: how many outcomes there are, all as likely, or the probability of each."""
    num_outcomes = shares if isinstance(shares, int) else len(shares)
    draws = PER_OUTCOME * num_outcomes
    times = Counter(choose(number) for number in range(draws))
    if isinstance(shares, int):
        expected = [draws / num_outcomes] * num_outcomes
        observed = [*times.values(), *[0] * (num_outcomes - len(times))]
    else:
        expected = [draws * share for share in shares.values()]
        observed = [times[outcome] for outcome in shares]
    chance = stats.chisquare(observed, expected).pvalue if num_outcomes > 1 else float(len(times) == 1)
    failures = int(len(times) > num_outcomes or chance < LEAST_CHANCE)
    gate("G14", what, cases=draws, failures=failures, outcomes=num_outcomes, chance=round(float(chance), 4))


def select(
    selection: str, scores: list[float], counts: list[int], threshold: float, number: int
) -> tuple[tuple[int, ...], ...]:
    found = select_patches(selection, np.array(scores, np.float32), counts, draw_of(number), threshold)
    return tuple(tuple(part.tolist()) for part in found)


@pytest.mark.parametrize("threshold", [1, 2, 3])
@pytest.mark.parametrize("counts", [[2], [2, 2]], ids=["first scale", "second scale, given the first"])
def test_selection_within_the_pool(counts: list[int], threshold: int, gate: Gate) -> None:
    outcomes = comb(2 * threshold, 2) ** len(counts)
    scores = [float(score) for score in np.random.default_rng(0).permutation(12)]
    choose = partial(select, "gradient", scores, counts, threshold)
    judge(gate, f"selection of {counts} by importance, t = {threshold}", choose, outcomes)


@pytest.mark.parametrize(
    ("selection", "scores", "counts", "outcomes"),
    [
        pytest.param("random", [0.0] * 6, [2, 2], comb(6, 2) * comb(4, 2), id="random"),
        pytest.param("saliency", [0, 1, 1, 0, 0, 1, 1, 0], [2, 3], comb(4, 2) * 4, id="salient, then others"),
        pytest.param("saliency", [0, 1, 0, 0, 0, 0, 1, 0], [3, 2], 6 * comb(5, 2), id="others, then others"),
    ],
)
def test_selection_by_chance_and_saliency(
    selection: str, scores: list[float], counts: list[int], outcomes: int, gate: Gate
) -> None:
    judge(gate, f"selection of {counts}: {selection}", partial(select, selection, scores, counts, 2), outcomes)


@pytest.mark.parametrize(
    ("scores", "counts", "threshold", "outcomes"),
    [
        pytest.param([1.0] * 6, [2, 2], 1, comb(6, 2) * comb(4, 2), id="all equal, t = 1"),
        pytest.param([1.0] * 8, [2, 2], 2, comb(8, 2) * comb(6, 2), id="all equal, t = 2"),
        pytest.param([1, 3, 1, 1, 2, 1, 1], [2, 2], 1, comb(5, 2), id="equal below some others"),
    ],
)
def test_equal_importance(scores: list[float], counts: list[int], threshold: int, outcomes: int, gate: Gate) -> None:
    choose = partial(select, "entropy", scores, counts, threshold)
    judge(gate, f"order of equal importance, t = {threshold}, {len(set(scores))} values", choose, outcomes)


def cells_of(tokens: Tokens, scale: int, side: int) -> Counter[tuple[int, ...]]:
    """Tokens in each coarse patch at a scale."""
    return Counter(map(tuple, (tokens.patch_coord[tokens.patch_valid & (tokens.scale_id == scale)] // side).tolist()))


def test_the_patch_that_fills_up_two_scales(gate: Gate) -> None:
    tokenizer = CharmTokenizer(1, max_seq_len=17, budget="fill")  # 9 coarse patches: 2 whole native ones, 2 tokens left
    image = np.zeros((6, 6, 3), np.uint8)

    def choose(number: int) -> Hashable:
        cells = cells_of(tokenizer(image, key=f"image-{number}"), 1, 2)
        return tuple(sorted(cell for cell in cells if cells[cell] == 4)), min(cells, key=lambda cell: cells[cell])

    judge(gate, "native patches that fill up, given two that are native", choose, comb(9, 2) * 7)


def test_the_patch_that_fills_up_three_scales(gate: Gate) -> None:
    tokenizer = CharmTokenizer(1, num_scales=3, max_seq_len=44, budget="fill")  # one native, one middle, 3 tokens left
    image = np.zeros((8, 12, 3), np.uint8)

    def choose(number: int) -> Hashable:
        tokens = tokenizer(image, key=f"image-{number}")
        native, (middle,) = cells_of(tokens, 2, 4), cells_of(tokens, 1, 3)
        return tuple(sorted(native, key=lambda cell: native[cell])), middle  # of 3 tokens, then of 16

    judge(gate, "native patches that fill up, of a middle patch or a coarse one", choose, 6 * 5 * 5)


@pytest.mark.parametrize(
    ("drop", "lengths", "room", "outcomes"),
    [
        pytest.param("uniform", [8, 3], 10, 11, id="uniform"),
        pytest.param("uniform", [4, 3], 5, comb(7, 2), id="uniform, two tokens"),
        pytest.param("low_first", [4, 6], 7, comb(6, 3), id="low_first"),
        pytest.param("low_first", [4, 6], 3, 4, id="low_first, into the native ones"),
        pytest.param("low_first", [2, 4, 6], 4, comb(4, 2), id="low_first of three scales"),
    ],
)
def test_dropping_given_the_selection(drop: str, lengths: list[int], room: int, outcomes: int, gate: Gate) -> None:
    def choose(number: int) -> Hashable:
        kept = keep_tokens(lengths, room, drop, draw_of(number))
        return select("random", [0.0] * 5, [2], 2, number), np.concatenate(kept).tobytes()

    judge(gate, f"dropping from {lengths} to {room}: {drop}", choose, comb(5, 2) * outcomes)


def test_flips_turns_and_the_crop_of_the_standard_input(gate: Gate) -> None:
    tokenizer = StandardInput(7, StandardSettings(8, 7))  # of an image of 8 x 10 pixels: 2 x 4 places
    y, x = np.mgrid[:8, :10]
    image = np.stack([y, x, x], axis=2).astype(np.uint8)

    def choose(number: int) -> Hashable:
        key = f"image-{number}"
        symmetry = draw_symmetry(0, 0, key)
        return symmetry.flip, symmetry.turns, tokenizer(image, key=key).patches[0, 0, 0, :2].tobytes()

    shares = {
        (flip, turns, bytes([top, left])): prod([1 / 2, 1 / 2 if turns == 0 else 1 / 6, 1 / 8])
        for flip in (False, True)
        for turns in range(4)
        for top in range(2)
        for left in range(4)
    }
    judge(gate, "flip, turn and crop", choose, shares)
