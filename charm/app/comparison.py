"""What several models make of the same images: agreement with labels, paired differences, sizes, and their page.

`charm evaluate` and `python -m pipeline compare` call it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from charm.drawing import draw_line, encode_jpeg, make_axis, render_page, shrink
from charm.model.bootstrap import find_intervals, resample_agreement
from charm.model.config import LEVEL, METRICS, format_interval
from charm.model.metrics import score_agreement

DISPUTED = 8  # images that a page shows
PAGE = Path(__file__).with_name("comparison.html.jinja")
_SHOWN_EDGE = 240  # pixels
_MOST_POINTS = 1000  # of a scatter plot
_SEED = 0  # of the resamples

# By metric the value and the ends of its 95 % interval; nan where undefined.
Rates = dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Sample:
    """N images that all models have scored."""

    names: Sequence[str]
    labels: np.ndarray  # float64 (N,)
    threshold: float  # a label above this counts as good; nan if the models disagree about it
    is_scaled: bool = True  # whether scores are on the scale of the labels; ACC and MAE are undefined if not


@dataclass(frozen=True)
class Judge:
    """A model and its scores."""

    name: str  # for people
    scores: np.ndarray  # float64 (N,), of the images of a Sample
    span: float  # highest less lowest score of the scale that the scores are on
    coverage: float | None = None  # fraction of the labels within the intervals of LEVEL; None if nobody can say
    by_size: dict[float, np.ndarray] = field(default_factory=dict)  # fraction of the images' size -> scores (N,)
    history: Sequence[float] = ()  # validation SRCC by epoch


@dataclass(frozen=True)
class Agreement:
    """Of scores with labels, or the paired difference of two."""

    points: dict[str, float]  # by metric
    resampled: np.ndarray  # float64 (resamples, 5)

    def __sub__(self, other: "Agreement") -> "Agreement":
        points = {name: self.points[name] - other.points[name] for name in METRICS}
        return Agreement(points, self.resampled - other.resampled)

    def rate(self) -> Rates:
        """Returns each metric with its interval."""
        intervals = find_intervals(self.points, self.resampled)
        return {name: (self.points[name], *intervals[name]) for name in METRICS}


def agree(scores: np.ndarray, sample: Sample) -> Agreement:
    """Compares scores (N,) with the labels."""
    points = score_agreement(scores, sample.labels, sample.threshold)
    if not sample.is_scaled:
        points |= {"acc": math.nan, "mae": math.nan}
    elif math.isnan(sample.threshold):
        points["acc"] = math.nan
    return Agreement(points, resample_agreement(scores, sample.labels, sample.threshold, _SEED))


def measure_drift(judge: Judge, sample: Sample) -> list[dict[str, Any]]:
    """Measures by size how far scores move from those at full size, and how well they agree with the labels.

    Returns:
        Of each size, descending: `size`; `drift`, mean of |score - score at full size| as a fraction of the scale;
        `shift`, the same with its sign; `srcc` with its interval.
    """
    rows = []
    for size, scores in sorted(judge.by_size.items(), reverse=True):
        moved = (scores - judge.scores) / judge.span
        row = {"size": size, "drift": float(np.abs(moved).mean()), "shift": float(moved.mean())}
        rows.append(row | {"srcc": agree(scores, sample).rate()["srcc"]})
    return rows


def find_disputed(judges: Sequence[Judge]) -> list[int]:
    """Finds the images whose rank differs most between two of the models, whose scales may differ; most first."""
    gaps = np.ptp([stats.rankdata(judge.scores) for judge in judges], axis=0)
    return [index for index in np.argsort(-gaps, kind="stable")[:DISPUTED].tolist() if gaps[index]]


def render_comparison(
    judges: Sequence[Judge],
    sample: Sample,
    read_image: Callable[[int], np.ndarray | None],  # index -> uint8 (H, W, 3), or None where it cannot be shown
    about: dict[str, Any],  # `title`, `lede`, `notes` and `rejected`, [(reason, meaning, names), ...], of the page
) -> tuple[str, list[str]]:
    """Renders the page, and the same numbers as lines of text; judges are compared with the first of them."""
    first = judges[0]
    agreements = {judge.name: agree(judge.scores, sample) for judge in judges}
    rates = {name: agreement.rate() for name, agreement in agreements.items()}
    differences = {judge.name: (agreements[judge.name] - agreements[first.name]).rate() for judge in judges[1:]}
    drifts = {judge.name: measure_drift(judge, sample) for judge in judges if judge.by_size}
    disputed = []
    for at in find_disputed(judges):
        image = read_image(at)
        uri = None if image is None else encode_jpeg(shrink(image, _SHOWN_EDGE))
        disputed.append((sample.names[at], uri, sample.labels[at], [judge.scores[at] for judge in judges]))
    page = render_page(
        PAGE,
        **about,
        judges=judges,
        rates=rates,
        differences=differences,
        drifts=drifts,
        size_plots=_plot_sizes(list(drifts.values())),
        curves=_plot_curves(judges),
        scatters=[_plot_scatter(judge, sample) for judge in judges],
        disputed=disputed,
        count=len(sample.labels),
        level=LEVEL,
        threshold=sample.threshold,
        is_scaled=sample.is_scaled,
    )
    lines = [*about["notes"], *(f"{name}: {_show(found)}" for name, found in rates.items())]
    lines += [f"{name} less {first.name}: {_show(found, '+')}" for name, found in differences.items()]
    for name, rows in drifts.items():
        told = (f"{row['size']:g}: {row['drift']:.1%}, SRCC {row['srcc'][0]:.3f}" for row in rows)
        lines.append(f"{name}, drift at size {'; '.join(told)}")
    return page, lines


def _show(rates: Rates, sign: str = "") -> str:
    return "  ".join(
        f"{name.upper()} {value:{sign}.3f} ({format_interval(low, high, sign)})"
        for name, (value, low, high) in rates.items()
        if math.isfinite(value)
    )


def _plot_sizes(drifts: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Plots agreement and drift over size, a line per model; nothing without sizes."""
    sizes = [[row["size"] for row in rows] for rows in drifts]
    found = {
        "SRCC with the labels": [[row["srcc"][0] for row in rows] for rows in drifts],
        "drift, % of the scale": [[100 * row["drift"] for row in rows] for rows in drifts],
    }
    return [_plot_lines(label, sizes, lines, [0.0]) for label, lines in found.items() if lines]


def _plot_curves(judges: Sequence[Judge]) -> dict[str, Any] | None:
    """Plots the validation SRCC over epochs, a line per model; None without histories."""
    lines = [judge.history for judge in judges]
    epochs = [range(1, len(line) + 1) for line in lines]
    return _plot_lines("validation SRCC", epochs, lines, []) if any(lines) else None


def _plot_lines(
    label: str, xs: Sequence[Sequence[float]], ys: Sequence[Sequence[float]], least: Sequence[float]
) -> dict[str, Any]:
    """Plots lines, 440 x 260 pixels, over axes that hold all values, and those of `least`."""
    x, y = (
        make_axis([*least, *(one for line in lines for one in line)], *ends)
        for lines, ends in ((xs, (62, 428)), (ys, (218, 14)))
    )
    return {"label": label, "x": x, "y": y, "lines": [draw_line(x, y, *pair) for pair in zip(xs, ys, strict=True)]}


def _plot_scatter(judge: Judge, sample: Sample) -> dict[str, Any]:
    """Plots scores over labels, 440 x 440 pixels; one scale on both axes if they are on one."""
    every = math.ceil(len(sample.labels) / _MOST_POINTS)
    labels, scores = sample.labels[::every].tolist(), judge.scores[::every].tolist()
    x, y = (
        make_axis(labels + scores if sample.is_scaled else own, *ends)
        for own, ends in ((labels, (62, 428)), (scores, (394, 28)))
    )
    return {"x": x, "y": y, "points": list(zip(map(x.at, labels), map(y.at, scores), strict=True))}
