"""Metrics: literal values, ties, and nan where there is no order to agree with."""

import itertools
import math

import numpy as np
import pytest

from charm.model.config import METRICS
from charm.model.metrics import (
    LEAST_IMAGES,
    accuracy,
    bootstrap_intervals,
    concordance,
    krcc,
    mae,
    plcc,
    score_agreement,
    srcc,
)
from charm.tokenization.draws import draw_uniform

TARGET = np.array([1.0, 2.0, 3.0, 4.0])
SWAPPED = np.array([1.0, 3.0, 2.0, 4.0])
TIED = np.array([1.0, 2.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("metric", "prediction", "expected"),
    [
        pytest.param(plcc, 3 * TARGET - 7, 1.0, id="plcc, linear"),
        pytest.param(plcc, -TARGET, -1.0, id="plcc, reversed"),
        pytest.param(plcc, SWAPPED, 0.8, id="plcc, two swapped"),
        # deviations (-1.25 -.25 -.25 1.75) and (-1.5 -.5 .5 1.5): 4.5 / sqrt(4.75 * 5)
        pytest.param(plcc, TIED, 4.5 / math.sqrt(4.75 * 5), id="plcc, tied"),
        pytest.param(srcc, np.exp(TARGET), 1.0, id="srcc, any ascending function"),
        pytest.param(srcc, SWAPPED, 0.8, id="srcc, two swapped"),
        # ranks (1 2.5 2.5 4): 4.5 / sqrt(4.5 * 5)
        pytest.param(srcc, TIED, 4.5 / math.sqrt(4.5 * 5), id="srcc, tied"),
        pytest.param(krcc, SWAPPED, 4 / 6, id="krcc, one of six pairs swapped"),
        # tau-b: five pairs in order, one tied
        pytest.param(krcc, TIED, 5 / math.sqrt(5 * 6), id="krcc, one of six pairs tied"),
        pytest.param(mae, SWAPPED, 0.5, id="mae"),
    ],
)
def test_literal_values(metric: object, prediction: np.ndarray, expected: float) -> None:
    assert callable(metric)
    assert metric(prediction, TARGET) == pytest.approx(expected, abs=1e-12)
    assert metric(TARGET, prediction) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [plcc, srcc, krcc], ids=["plcc", "srcc", "krcc"])
@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        pytest.param(np.full(4, 0.3), TARGET, id="constant prediction"),
        pytest.param(TARGET, np.full(4, 5.0), id="constant target"),
        pytest.param(np.array([1.0, 2.0, np.nan, 4.0]), TARGET, id="a prediction that is not a number"),
        pytest.param(np.array([1.0]), np.array([2.0]), id="one image"),
        pytest.param(np.array([]), np.array([]), id="no image"),
    ],
)
def test_undefined_is_nan(metric: object, prediction: np.ndarray, target: np.ndarray) -> None:
    assert callable(metric)
    assert math.isnan(metric(prediction, target))


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        pytest.param([4.0, 6.0], [3.0, 7.0], 1.0, id="both sides agree"),
        pytest.param([4.0, 6.0], [7.0, 3.0], 0.0, id="none agrees"),
        pytest.param([5.0], [6.0], 0.0, id="the threshold itself is not above it"),
        pytest.param([5.0], [5.0], 1.0, id="nor on the other side"),
        pytest.param([5.0001], [5.0], 0.0, id="just above"),
        pytest.param([1.0, 9.0, 9.0, 9.0], [1.0, 9.0, 9.0, 1.0], 0.75, id="three of four"),
    ],
)
def test_accuracy_is_above_the_threshold(prediction: list[float], target: list[float], expected: float) -> None:
    assert accuracy(np.array(prediction), np.array(target), threshold=5) == expected


def test_a_label_that_float32_lifts_above_the_threshold_is_not_above_it() -> None:
    """Ratings 1 to 10 and a threshold of 5, on the scale of 0..1: 4 / 9 is rounded up."""
    ratings = np.linspace(0, 1, 10).astype(np.float32).astype(np.float64)
    assert ratings[4] > 4 / 9
    assert accuracy(np.array([0.0] * 5 + [1.0] * 5), ratings, threshold=4 / 9) == 1.0


def test_all_by_name() -> None:
    found = score_agreement(SWAPPED, TARGET, threshold=2)
    assert found == pytest.approx({"plcc": 0.8, "srcc": 0.8, "krcc": 4 / 6, "acc": 0.5, "mae": 0.5})
    assert all(type(value) is float for value in found.values())


def test_no_image_is_nan_throughout() -> None:
    found = score_agreement(np.array([]), np.array([]), threshold=2)
    assert all(math.isnan(value) for value in found.values())


def test_float32_is_as_good() -> None:
    single = score_agreement(SWAPPED.astype(np.float32), TARGET.astype(np.float32), threshold=2)
    assert single == pytest.approx(score_agreement(SWAPPED, TARGET, threshold=2), abs=1e-6)


def correlated(count: int, seed: int, rho: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of standard normal scores whose true correlation is rho."""
    draws = np.random.default_rng(seed).standard_normal((2, count))
    return draws[0], rho * draws[0] + math.sqrt(1 - rho**2) * draws[1]


def test_intervals_are_percentiles_of_the_metrics_over_resamples() -> None:
    """With ties, which a resample adds more of: the ranks within it have to be those that sorting it would give."""
    prediction, target = (scores.round(1) for scores in correlated(60, 0))
    found = bootstrap_intervals(prediction, target, 0.2, seed=5, resamples=40)
    resampled = []
    for resample in range(40):
        chosen = (draw_uniform(5, resample, "", "bootstrap", 60) * 60).astype(int)
        resampled.append(score_agreement(prediction[chosen], target[chosen], 0.2))
    for name in METRICS:
        assert found[name] == pytest.approx(np.percentile([one[name] for one in resampled], [2.5, 97.5]), abs=1e-12)


def test_intervals_have_known_widths() -> None:
    """A share of 0.75 of 400 has a standard error of sqrt(0.75 * 0.25 / 400), a PLCC about (1 - rho^2) / sqrt(N)."""
    hits = np.repeat([1.0, 0.0], [300, 100])
    low, high = bootstrap_intervals(hits, np.ones(400), 0.5, seed=0)["acc"]
    error = math.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - 1.96 * error, 0.75 + 1.96 * error), abs=0.006)
    low, high = bootstrap_intervals(*correlated(2000, 1), 0.0, seed=0, resamples=400)["plcc"]
    assert high - low == pytest.approx(2 * 1.96 * (1 - 0.36) / math.sqrt(2000), rel=0.15)


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    """Samples of 100 pairs with a true Spearman correlation of 0.582 (rho = 0.6); sigma of the count is 2.2."""
    truth = 6 / math.pi * math.asin(0.6 / 2)
    held = 0
    for seed in range(100):
        low, high = bootstrap_intervals(*correlated(100, seed), 0.0, seed=seed, resamples=60)["srcc"]
        held += low <= truth <= high
    assert 88 <= held <= 99


def test_intervals_are_a_function_of_the_seed() -> None:
    first, again, other = (bootstrap_intervals(*correlated(50, 2), 0.0, seed, resamples=50) for seed in (0, 0, 1))
    assert first == again
    assert first["srcc"] != other["srcc"]


@pytest.mark.parametrize(
    ("prediction", "target", "undefined"),
    [
        pytest.param(np.full(9, 0.3), np.arange(9.0), {"plcc", "srcc", "krcc"}, id="constant prediction"),
        pytest.param(np.arange(LEAST_IMAGES - 1.0), np.arange(LEAST_IMAGES - 1.0), set(METRICS), id="too few images"),
        pytest.param(np.arange(LEAST_IMAGES + 0.0), np.arange(LEAST_IMAGES + 0.0), set(), id="just enough"),
        pytest.param(np.array([]), np.array([]), set(METRICS), id="no image"),
    ],
)
def test_intervals_of_what_is_undefined_are_nan(
    prediction: np.ndarray, target: np.ndarray, undefined: set[str]
) -> None:
    found = bootstrap_intervals(prediction, target, 1.5, seed=0, resamples=50)
    assert {name for name, interval in found.items() if any(map(math.isnan, interval))} == undefined


@pytest.mark.parametrize("levels", [3, 20, 1000])
def test_concordance_counts_pairs_of_different_labels(levels: int) -> None:
    draws = np.random.default_rng(levels)
    target = draws.integers(0, levels, 60).astype(float)
    prediction = np.round(target + draws.normal(0, levels / 4, 60))
    right = [
        0.5 + 0.5 * np.sign((prediction[i] - prediction[j]) * (target[i] - target[j]))
        for i, j in itertools.combinations(range(60), 2)
        if target[i] != target[j]
    ]
    assert concordance(prediction, target) == pytest.approx(np.mean(right))
    assert concordance(target, target) == 1
    assert concordance(-target, target) == 0
    assert math.isnan(concordance(np.ones(60), target))
