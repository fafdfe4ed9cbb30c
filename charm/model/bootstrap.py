"""Bootstrap intervals of the metrics: how far a metric varies over other samples of as many images.

A resample is described by how often it holds each image. All metrics are computed from these counts, for many resamples
at once and without sorting any of them. Scores are float (N,).
"""

import math

import numpy as np

from charm.model.config import METRICS, EvaluationConfig
from charm.model.metrics import find_hits, score_agreement
from charm.tokenization.draws import draw_uniform

# Of fewer images, more than 1 in 40 resamples hold two different ones at most, which correlate by -1 or 1 in any model.
LEAST_IMAGES = 6
_SMALL = 32  # images among which every pair is looked at
_COUNTS_AT_ONCE = 1 << 20  # of images in resamples; each array of them takes 8 MB


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

    1000 resamples of 20,000 images take 3.3 s, of 2,000 images 0.33 s, of 200 images 0.04 s.
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
    found = np.full((resamples, len(METRICS)), np.nan)
    if count < LEAST_IMAGES:
        return found
    x, y = (scores - scores.mean(dtype=np.float64) for scores in (prediction, target))
    hits, errors = find_hits(prediction, target, threshold), np.abs(prediction - target)
    facts = np.stack([x, y, x * x, y * y, x * y, hits, errors])
    predicted, given = _Ranking(prediction), _Ranking(target)
    alike = _Ranking(predicted.places * count + given.places)  # images whose scores are equal on both sides
    discordant = _Discordant(predicted.places, given.places)
    at_once = max(1, _COUNTS_AT_ONCE // count)
    for first in range(0, resamples, at_once):
        drawn = [
            (draw_uniform(seed, resample, "", "bootstrap", count) * count).astype(np.intp)
            for resample in range(first, min(first + at_once, resamples))
        ]
        counts = np.stack([np.bincount(images, minlength=count) for images in drawn], axis=1).astype(np.float64)
        x_mean, y_mean, xx, yy, xy, acc, mae = facts @ counts / count
        (x_ranks, x_rank_var, x_ties), (y_ranks, y_rank_var, y_ties) = (one.rank(counts) for one in (predicted, given))
        rank_covar = np.einsum("nr,nr,nr->r", counts, x_ranks, y_ranks)
        ties = _count_pairs(alike.count_equal(counts))
        pairs = count * (count - 1) / 2
        concordant_less_discordant = pairs - x_ties - y_ties + ties - 2 * discordant.count_pairs(counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            plcc = (xy - x_mean * y_mean) / np.sqrt((xx - x_mean**2) * (yy - y_mean**2))
            srcc = rank_covar / np.sqrt(x_rank_var * y_rank_var)  # exactly 0 / 0 where one side is constant
            krcc = concordant_less_discordant / np.sqrt((pairs - x_ties) * (pairs - y_ties))
        plcc[np.isnan(srcc)] = np.nan
        found[first : first + at_once] = np.stack([plcc, srcc, krcc, acc, mae], axis=1)
    return found


class _Ranking:
    """Ranks images by their scores (N,) within resamples; `counts`, float64 (N, resamples), describes these."""

    def __init__(self, scores: np.ndarray) -> None:
        self.places = np.unique(scores, return_inverse=True)[1]  # int (N,), of equal scores the same
        self._order = np.argsort(self.places, kind="stable")
        self._firsts = np.flatnonzero(np.diff(self.places[self._order], prepend=-1))

    def rank(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ranks the images within each resample, equal ones by their mean rank.

        Returns:
            ranks: float64 (N, resamples), less the mean rank.
            variance: float64 (resamples,), times the number of images.
            ties: float64 (resamples,), the pairs of equal scores.
        """
        equal = self.count_equal(counts)
        ranks = equal.cumsum(axis=0) - (equal + len(counts)) / 2
        return ranks[self.places], (equal * ranks**2).sum(axis=0), _count_pairs(equal)

    def count_equal(self, counts: np.ndarray) -> np.ndarray:
        """Counts the images of each place: float64 (places, resamples)."""
        return np.add.reduceat(counts[self._order], self._firsts, axis=0)


def _count_pairs(equal: np.ndarray) -> np.ndarray:
    """Counts the pairs of images with equal scores, of which there are `equal`, float64 (places, resamples)."""
    pairs: np.ndarray = (equal * (equal - 1)).sum(axis=0) / 2
    return pairs


class _Discordant:
    """Counts discordant pairs: of two images, one has the lower place in `first` and the higher place in `second`.

    Both are int (N,). Images are halved by `second`, the halves are halved, and so on. Each half is kept in the order
    of `first`, so that a cumulative sum says how many images of the upper half precede one of the lower half. In the
    last parts, of _SMALL images at most, every pair is looked at.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray) -> None:
        self._order = np.lexsort((second, first))
        place = np.argsort(np.argsort(second[self._order], kind="stable"))  # a pair that is tied is in order
        halvings = max(0, math.ceil(math.log2(len(first) / _SMALL)))
        self._size = math.ceil(len(first) / 2**halvings)  # of the last parts, filled up with images of no resample
        place = np.concatenate([place, np.arange(len(first), self._size * 2**halvings)])
        part = place // self._size
        self._levels = []
        for level in range(halvings):
            by_pair = np.argsort(part >> level + 1, kind="stable")
            self._levels.append((by_pair, (part[by_pair] >> level & 1).astype(np.float64)))
        self._by_part = np.argsort(part, kind="stable")
        placed = place[self._by_part].reshape(-1, self._size)
        self._in_parts = np.triu(placed[:, :, None] > placed[:, None, :]).astype(np.float64)

    def count_pairs(self, counts: np.ndarray) -> np.ndarray:
        """Counts the pairs in each resample, float64 (resamples,), from its counts, float64 (N, resamples)."""
        images = np.zeros((len(self._by_part), counts.shape[1]))
        images[: len(counts)] = counts[self._order]
        parts = images[self._by_part].reshape(-1, self._size, counts.shape[1])
        pairs: np.ndarray = np.einsum("pir,pir->r", parts, self._in_parts @ parts)
        for level, (by_pair, is_upper) in enumerate(self._levels):
            halves = images[by_pair].reshape(-1, self._size << level + 1, counts.shape[1])
            upper = halves * is_upper.reshape(*halves.shape[:2], 1)
            pairs += np.einsum("pir,pir->r", halves - upper, upper.cumsum(axis=1))
        return pairs


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
