"""Metrics: literal values, ties, and nan where there is no order to agree with."""

import itertools
import math

import numpy as np
import pytest

from charm.model.metrics import (
    accuracy,
    concordance,
    krcc,
    mae,
    plcc,
    score_agreement,
    srcc,
)

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
