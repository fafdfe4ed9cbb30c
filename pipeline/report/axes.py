"""Axes of plots and lines along them, as SVG: shared by the report and the paper's figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """One side of a plot: a value `low` lies at `start` pixels, a value `high` at `stop`.

    With `is_log` low, high and step are powers of ten.
    """

    low: float
    high: float
    step: float
    start: float
    stop: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Pixels."""
        value = math.log10(value) if self.is_log else value
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start), 1)

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """Label and pixels of each."""
        if self.is_log:
            powers = range(round(self.low), round(self.high) + 1)
            return [(f"{10.0**power:,.10g}", self.at(10.0**power)) for power in powers]
        values = [self.low + self.step * i for i in range(round((self.high - self.low) / self.step) + 1)]
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return [(minus(f"{round(value, decimals) + 0.0:.{decimals}f}"), self.at(value)) for value in values]


def make_axis(
    values: Sequence[float], start: float, stop: float, least_step: float = 0.0, is_log: bool = False
) -> Axis:
    """Builds an axis over all finite values, from one round number to another, in at most 6 steps.

    A logarithmic one has a step for each power of ten, and positive values.
    """
    if is_log:
        values, least_step = [math.log10(value) for value in values], 1
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    span = max(high - low, least_step, 1e-6 * max(abs(low), abs(high)), 1e-9)
    power = 10.0 ** math.floor(math.log10(span / 6))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 6)
    step = max(step, least_step)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return Axis(first * step, last * step, step, start, stop, is_log)


def draw_line(x_axis: Axis, y_axis: Axis, xs: Sequence[float], ys: Sequence[float]) -> str:
    """Returns an SVG path through the points, with a gap where y is not a number."""
    path, pen = "", "M"
    for x, y in zip(xs, ys, strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        # A line of no length still shows its round cap, so a point between two gaps is seen.
        path += f"{pen}{x_axis.at(x)} {y_axis.at(y)}" + ("h0" if pen == "M" else "")
        pen = "L"
    return path


def minus(number: str) -> str:
    """Returns a number with a true minus sign."""
    return number.replace("-", "\N{MINUS SIGN}")
