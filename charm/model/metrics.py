"""Agreement of predicted with given scores: PLCC, SRCC, KRCC, ACC, MAE. Scores are float (N,)."""

import inspect
import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from charm.model.config import METRICS, EvaluationConfig
from charm.tokenization.draws import draw_uniform

# Of fewer images, more than 1 in 40 resamples hold two different ones at most, which correlate by -1 or 1 in any model.
LEAST_IMAGES = 6


def _correlate(statistic: Callable[[np.ndarray, np.ndarray], float]) -> Callable[..., float]:
    """Makes a statistic return nan, "undefined", if one side is constant or there are fewer than two scores."""

    def correlation(prediction: np.ndarray, target: np.ndarray) -> float:
        if len(target) < 2 or not (np.ptp(prediction) > 0 and np.ptp(target) > 0):  # nor is that of a nan
            return math.nan
        return float(statistic(prediction, target))

    return correlation


def _pearson(prediction: np.ndarray, target: np.ndarray) -> float:
    """Computes scipy.stats.pearsonr without its test of significance: 10 microseconds instead of 250 for 200 scores."""
    x, y = (scores - scores.mean(dtype=np.float64) for scores in (prediction, target))
    return float(x @ y / (math.sqrt(x @ x) * math.sqrt(y @ y)))


plcc = _correlate(_pearson)  # Pearson's linear correlation coefficient
srcc = _correlate(lambda x, y: stats.spearmanr(x, y)[0])  # Spearman's rank correlation coefficient
# Kendall's tau-b. What scipy wraps around it looks for nan and axes, which takes as long again.
_kendall = inspect.unwrap(stats.kendalltau)
krcc = _correlate(lambda x, y: _kendall(x, y)[0])


def concordance(prediction: np.ndarray, target: np.ndarray) -> float:
    """Computes the fraction of image pairs with different labels that are ranked right; a tie is half right.

    It is (1 + Somers' D) / 2, and D follows from Kendall's tau-b by the number of pairs that are equal on each side.
    nan where KRCC is undefined.
    """
    pairs = len(target) * (len(target) - 1)
    counts = (np.unique(scores, return_counts=True)[1] for scores in (prediction, target))
    different = [pairs - int((count * (count - 1)).sum()) for count in counts]
    return 0.5 + 0.5 * krcc(prediction, target) * math.sqrt(different[0] / max(1, different[1]))


def accuracy(prediction: np.ndarray, target: np.ndarray, threshold: float) -> float:
    """Computes ACC, the fraction of images that both put on the same side of `threshold` (above it = good)."""
    # Labels pass through float32 on a scale of 0..1, where one that equals the threshold may come out 3e-8 above it.
    above = threshold + 1e-6
    return float(np.mean((prediction > above) == (target > above))) if len(target) else math.nan


def mae(prediction: np.ndarray, target: np.ndarray) -> float:
    """Computes the mean absolute error; nan without scores."""
    return float(np.mean(np.abs(prediction - target))) if len(target) else math.nan


def score_agreement(prediction: np.ndarray, target: np.ndarray, threshold: float) -> dict[str, float]:
    """Computes all METRICS by name; nan where undefined."""
    return {
        "plcc": plcc(prediction, target),
        "srcc": srcc(prediction, target),
        "krcc": krcc(prediction, target),
        "acc": accuracy(prediction, target, threshold),
        "mae": mae(prediction, target),
    }


def bootstrap_intervals(
    prediction: np.ndarray,
    target: np.ndarray,
    threshold: float,
    seed: int,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Computes the bootstrap interval of each metric over samples of as many images: (low, high) by name.

    Images are drawn with replacement, each with both of its scores; low and high are percentiles of the metric over
    the resamples. A resample whose scores are all equal is left out; nan where the metric itself is undefined, or there
    are fewer than LEAST_IMAGES.

    1000 resamples of 20,000 images take 6 s, of 200 images 0.4 s, most of it for KRCC.
    """
    found = resample_agreement(prediction, target, threshold, seed, resamples)
    return find_intervals(score_agreement(prediction, target, threshold), found, confidence)


def resample_agreement(
    prediction: np.ndarray, target: np.ndarray, threshold: float, seed: int, resamples: int = 1000
) -> np.ndarray:
    """Computes all METRICS of samples of as many images, drawn with replacement: float64 (resamples, 5).

    All are nan for fewer than LEAST_IMAGES.

    Equal seeds and numbers of images draw the same images: the difference between two models' arrays is their paired
    difference, in which what makes a sample easy or hard for both cancels out.
    """
    count = len(target)
    # Ranked once: the ranks within a resample follow from how often each place of the order is drawn, without sorting.
    places = [np.unique(scores, return_inverse=True)[1] for scores in (prediction, target)]
    found = np.full((resamples, len(METRICS)), np.nan)
    for resample in range(resamples if count >= LEAST_IMAGES else 0):
        chosen = (draw_uniform(seed, resample, "", "bootstrap", count) * count).astype(np.intp)
        predicted, given = prediction[chosen], target[chosen]
        predicted_ranks, given_ranks = (_rank_places(place[chosen]) for place in places)
        found[resample] = (
            plcc(predicted, given),
            plcc(predicted_ranks, given_ranks),
            krcc(predicted_ranks, given_ranks),
            accuracy(predicted, given, threshold),
            mae(predicted, given),
        )
    return found


def find_intervals(
    points: dict[str, float], resampled: np.ndarray, confidence: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Finds the interval of each metric, (low, high), in its resamples, float (resamples, 5); nan where it is nan."""
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    is_known = np.isfinite(resampled).any(axis=0) & [math.isfinite(points[name]) for name in METRICS]
    return {
        name: tuple(np.nanquantile(values, ends).tolist()) if known else (math.nan, math.nan)
        for name, values, known in zip(METRICS, resampled.T, is_known, strict=True)
    }


def _rank_places(places: np.ndarray) -> np.ndarray:
    """Ranks small integers (N,) from 1, equal ones by their mean rank; returns float (N,)."""
    counts = np.bincount(places)
    ranks: np.ndarray = (counts.cumsum() - (counts - 1) / 2)[places]
    return ranks


def rate(
    unit_scores: np.ndarray,
    unit_targets: np.ndarray,
    score_range: tuple[float, float],
    accuracy_threshold: float,
    seed: int,
) -> EvaluationConfig:
    """Compares the scores of images with their labels.

    Args:
        unit_scores: float64 (N, draws), on 0..1.
        unit_targets: float64 (N,), on 0..1.
        score_range, accuracy_threshold: of the labels (charm.model.config.LabelConfig).
        seed: of the intervals' resamples.
    """
    low, high = score_range
    threshold = (accuracy_threshold - low) / (high - low)
    predicted = unit_scores.mean(axis=1)
    points = score_agreement(predicted, unit_targets, threshold)
    intervals = bootstrap_intervals(predicted, unit_targets, threshold, seed)
    metrics = {}
    for name in METRICS:
        factor = high - low if name == "mae" else 1.0
        values = (points[name], *intervals[name])
        metrics[name] = {
            end: None if math.isnan(value) else factor * value
            for end, value in zip(("value", "low", "high"), values, strict=True)
        }
    spread = (high - low) * float(unit_scores.std(axis=1).mean()) if unit_scores.shape[1] > 1 else None
    return EvaluationConfig(len(unit_scores), spread, metrics)
