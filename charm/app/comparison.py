"""What several models make of the same images: agreement with labels, paired differences, sizes, and their page.

`charm evaluate` and `python -m pipeline compare` call it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from charm.drawing import draw_line, make_axis, render_page
from charm.model.config import LEVEL, METRICS
from charm.model.metrics import find_intervals, resample_agreement, score_agreement, srcc

DISPUTED = 8  # images that a page shows
PAGE = Path(__file__).with_name("comparison.html.jinja")
_MAX_POINTS = 1000  # of a scatter plot
_SEED = 0  # of the resamples

# By metric the value and the ends of its 95 % interval; nan where undefined.
Rates = dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Sample:
    """Images that all models have scored.

    Attributes:
        names: of the images, N.
        labels: float64 (N,).
        threshold: a label above this counts as good; nan if the models disagree about it.
        is_scaled: whether the models' scores are on the scale of the labels; ACC and MAE are undefined if not.
    """

    names: Sequence[str]
    labels: np.ndarray
    threshold: float
    is_scaled: bool = True


@dataclass(frozen=True)
class Judge:
    """A model and its scores.

    Attributes:
        name: of the model, for people.
        scores: float64 (N,), of the images of a Sample.
        span: highest less lowest score of the scale that the scores are on.
        coverage: fraction of the labels within the intervals of LEVEL; None if nobody can say.
        by_size: size as a fraction of the image's -> scores (N,) of the images at that size.
        history: validation SRCC by epoch.
    """

    name: str
    scores: np.ndarray
    span: float
    coverage: float | None = None
    by_size: dict[float, np.ndarray] = field(default_factory=dict)
    history: Sequence[float] = ()


def rate(scores: np.ndarray, sample: Sample) -> tuple[Rates, np.ndarray]:
    """Rates scores (N,); returns the metrics, and these of each resample, which are paired between models."""
    points = score_agreement(scores, sample.labels, sample.threshold)
    left_out = () if sample.is_scaled else ("acc", "mae")
    points |= dict.fromkeys(left_out if not math.isnan(sample.threshold) else ("acc", *left_out), math.nan)
    resampled = resample_agreement(scores, sample.labels, sample.threshold, _SEED)
    return _join(points, resampled), resampled


def differ(rates: Rates, resampled: np.ndarray, others: Rates, other_resampled: np.ndarray) -> Rates:
    """Returns the paired differences of a model's metrics from another's, of the same images."""
    points = {name: rates[name][0] - others[name][0] for name in METRICS}
    return _join(points, resampled - other_resampled)


def _join(points: dict[str, float], resampled: np.ndarray) -> Rates:
    intervals = find_intervals(points, resampled)
    return {name: (points[name], *intervals[name]) for name in METRICS}


def measure_drift(judge: Judge, sample: Sample) -> list[dict[str, Any]]:
    """Measures by size how far scores move from those at full size, and how well they agree with the labels.

    Returns:
        Of each size, descending: `size`; `drift`, mean of |score - score at full size| as a fraction of the scale;
        `shift`, the same with its sign; `srcc` with its interval; `same`, the SRCC of the scores with those at full
        size.
    """
    rows = []
    for size, scores in sorted(judge.by_size.items(), reverse=True):
        moved = (scores - judge.scores) / judge.span
        row = {"size": size, "drift": float(np.abs(moved).mean()), "shift": float(moved.mean())}
        rows.append(row | {"srcc": rate(scores, sample)[0]["srcc"], "same": srcc(scores, judge.scores)})
    return rows


def find_disputed(judges: Sequence[Judge]) -> list[int]:
    """Finds the images whose rank differs most between two of the models; the scales may differ. Most first."""
    if len(judges) < 2:
        return []
    ranks = np.array([stats.rankdata(judge.scores) for judge in judges])
    gaps = np.ptp(ranks, axis=0)
    order: list[int] = np.argsort(-gaps, kind="stable")[:DISPUTED].tolist()
    return [index for index in order if gaps[index]]


def render_comparison(
    judges: Sequence[Judge], sample: Sample, images: dict[int, str], about: dict[str, Any]
) -> tuple[str, list[str]]:
    """Renders the page, and the same numbers as lines of text.

    Args:
        judges: one at least; the others are compared with the first.
        sample: the images.
        images: data URIs of the disputed ones (`find_disputed`), as far as they can be shown.
        about: `title`, `lede`, `notes` and `rejected` ([(reason, meaning, names), ...]) of the page.
    """
    rated = [rate(judge.scores, sample) for judge in judges]
    differences = [differ(*one, *rated[0]) for one in rated[1:]]
    drifts = [measure_drift(judge, sample) for judge in judges]
    page = render_page(
        PAGE,
        **about,
        judges=judges,
        rates=[rates for rates, _ in rated],
        differences=differences,
        drifts=drifts,
        size_plots=_plot_sizes(drifts) if drifts[0] else None,
        scatters=[_plot_scatter(judge, sample) for judge in judges],
        curves=_plot_curves(judges) if any(judge.history for judge in judges) else None,
        disputed=[(sample.names[at], images.get(at), sample.labels[at], at) for at in find_disputed(judges)],
        count=len(sample.labels),
        level=LEVEL,
        threshold=sample.threshold,
    )
    return page, list(_list_lines(judges, rated, differences, drifts))


def _list_lines(judges: Any, rated: Any, differences: Any, drifts: Any) -> list[str]:
    def show(rates: Rates, sign: str = "") -> str:
        found = [(name, *rates[name]) for name in METRICS if math.isfinite(rates[name][0])]
        return "  ".join(
            f"{name.upper()} {v:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})" for name, v, low, high in found
        )

    lines = [f"{judge.name}: {show(rates)}" for judge, (rates, _) in zip(judges, rated, strict=True)]
    for judge, rates in zip(judges[1:], differences, strict=True):
        lines.append(f"{judge.name} less {judges[0].name}: {show(rates, '+')}")
    for judge, rows in zip(judges, drifts, strict=True):
        lines += [
            f"{judge.name} at {row['size']:g} of the size: drift {row['drift']:.1%}, SRCC {row['srcc'][0]:.3f}"
            for row in rows
        ]
    return lines


def _plot_sizes(drifts: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Plots agreement and drift over size, a line per model, 440 x 260 pixels each."""
    plots = []
    for name, label in (("srcc", "SRCC with the labels"), ("drift", "drift, % of the scale")):
        lines = [[row[name][0] if name == "srcc" else 100 * row[name] for row in rows] for rows in drifts]
        sizes = [row["size"] for row in drifts[0]]
        x, y = make_axis([0, *sizes], 62, 428), make_axis([0, *(one for line in lines for one in line)], 218, 14)
        plots.append({"label": label, "x": x, "y": y, "lines": [draw_line(x, y, sizes, line) for line in lines]})
    return plots


def _plot_curves(judges: Sequence[Judge]) -> dict[str, Any]:
    """Plots the validation SRCC over epochs, a line per model, 440 x 260 pixels."""
    epochs = range(1, 1 + max(len(judge.history) for judge in judges))
    x = make_axis([*epochs], 62, 428, least_step=1)
    y = make_axis([value for judge in judges for value in judge.history], 218, 14)
    lines = [draw_line(x, y, epochs[: len(judge.history)], judge.history) for judge in judges]
    return {"label": "validation SRCC", "x": x, "y": y, "lines": lines}


def _plot_scatter(judge: Judge, sample: Sample) -> dict[str, Any]:
    """Plots scores over labels, 440 x 440 pixels; one scale on both axes if they are on one."""
    every = math.ceil(len(sample.labels) / _MAX_POINTS)
    labels, scores = sample.labels[::every].tolist(), judge.scores[::every].tolist()
    both = [*labels, *scores]
    x, y = (
        make_axis(both if sample.is_scaled else labels, 62, 428),
        make_axis(both if sample.is_scaled else scores, 394, 28),
    )
    points = [(x.at(label), y.at(score)) for label, score in zip(labels, scores, strict=True)]
    return {"x": x, "y": y, "points": points, "is_scaled": sample.is_scaled}
