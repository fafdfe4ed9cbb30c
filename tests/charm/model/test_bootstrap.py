"""Intervals of the metrics: those of resamples that are drawn and scored one by one."""

import math

import numpy as np
import pytest

from charm.model import bootstrap
from charm.model.bootstrap import LEAST_IMAGES, bootstrap_intervals, resample_agreement
from charm.model.config import METRICS
from charm.model.metrics import score_agreement
from charm.tokenization.draws import draw_uniform


def correlated(count: int, seed: int, rho: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of standard normal scores whose true correlation is rho."""
    draws = np.random.default_rng(seed).standard_normal((2, count))
    return draws[0], rho * draws[0] + math.sqrt(1 - rho**2) * draws[1]


@pytest.mark.parametrize("decimals", [0, 1, 9])
@pytest.mark.parametrize("count", [LEAST_IMAGES, 7, 16, 17, 60, 200, 1031])
def test_resamples_have_the_metrics_of_what_they_hold(count: int, decimals: int) -> None:
    """With ties on one side or both, and one side constant in some resamples of few images."""
    prediction, target = (scores.round(decimals) for scores in correlated(count, decimals))
    found = resample_agreement(prediction, target, 0.2, seed=5, resamples=40)
    for resample in range(40):
        chosen = (draw_uniform(5, resample, "", "bootstrap", count) * count).astype(int)
        expected = score_agreement(prediction[chosen], target[chosen], 0.2)
        assert dict(zip(METRICS, found[resample], strict=True)) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_resamples_are_the_same_one_by_one_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = (*correlated(60, 0), 0.2)
    together = resample_agreement(*sample, seed=5, resamples=50)
    monkeypatch.setattr(bootstrap, "_COUNTS_AT_ONCE", 7 * 60)
    assert np.allclose(resample_agreement(*sample, seed=5, resamples=50), together, rtol=0, atol=1e-13)


def test_intervals_are_percentiles_of_the_metrics_over_resamples() -> None:
    sample = (*correlated(60, 0), 0.2)
    found = bootstrap_intervals(*sample, seed=5, resamples=40)
    for name, values in zip(METRICS, resample_agreement(*sample, seed=5, resamples=40).T, strict=True):
        assert found[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-12)


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
