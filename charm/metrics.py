"""Agreement of predicted with given scores: PLCC, SRCC, KRCC, ACC, MAE. Scores are float (N,)."""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats


def _correlate(statistic: Callable[[np.ndarray, np.ndarray], tuple[float, float]]) -> Callable[..., float]:
    """nan, "undefined", where either side is constant or has fewer than two scores: there is no order to agree with."""

    def correlation(prediction: np.ndarray, target: np.ndarray) -> float:
        if len(target) < 2 or np.ptp(prediction) == 0 or np.ptp(target) == 0:
            return math.nan
        return float(statistic(prediction, target)[0])

    return correlation


plcc = _correlate(stats.pearsonr)  # Pearson's linear correlation coefficient
srcc = _correlate(stats.spearmanr)  # Spearman's rank correlation coefficient
krcc = _correlate(stats.kendalltau)  # Kendall's tau-b


def accuracy(prediction: np.ndarray, target: np.ndarray, threshold: float) -> float:
    """ACC: share of pictures that both sides put on the same side of `threshold` (above it = good)."""
    return float(np.mean((prediction > threshold) == (target > threshold))) if len(target) else math.nan


def mae(prediction: np.ndarray, target: np.ndarray) -> float:
    """Mean absolute error."""
    return float(np.mean(np.abs(prediction - target))) if len(target) else math.nan


def score_agreement(prediction: np.ndarray, target: np.ndarray, threshold: float) -> dict[str, float]:
    """All of them by name; nan where undefined."""
    return {
        "plcc": plcc(prediction, target),
        "srcc": srcc(prediction, target),
        "krcc": krcc(prediction, target),
        "acc": accuracy(prediction, target, threshold),
        "mae": mae(prediction, target),
    }
