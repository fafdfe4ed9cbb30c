"""Drawings of the paper's figures as SVG: a chart of points, lines or boxes, and a sheet of images side by side."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from charm.drawing import Axis, draw_line, encode_jpeg, make_axis, shrink

_COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#0891b2", "#475569", "#be185d", "#65a30d")
_WIDTH, _HEIGHT = 760, 440  # pixels, of a chart
_CELL = 230  # pixels, width of an image of a sheet


@dataclass(frozen=True)
class Series:
    """Points of one colour."""

    name: str  # as the legend shows it
    # (x, y, label), an empty label is not shown; of categories x counts them from 0
    points: Sequence[tuple[float, float, str]] = ()
    boxes: Sequence[tuple[float, Sequence[float]]] = ()  # (x, (least, quartile, median, quartile, most))
    is_paper: bool = False  # the numbers are the paper's, and drawn hollow
    joined: bool = False  # points are joined by a line


@dataclass(frozen=True)
class Panel:
    """An image of a sheet, uint8 (H, W, 3), with an SVG path over it in pixels, and facts for the CSV file."""

    column: str
    image: np.ndarray
    outlines: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    row: str = ""


def draw_chart(
    title: str,
    labels: tuple[str, str],
    series: Sequence[Series],
    categories: Sequence[str] = (),
    logs: tuple[bool, bool] = (False, False),
) -> str:
    """Returns the SVG of a chart; `labels` and `logs` are those of the x and the y axis."""
    points = [point for one in series for point in one.points]
    ends = [(x, end) for one in series for x, box in one.boxes for end in (box[0], box[-1])]
    x_axis = make_axis([point[0] for point in points] + [x for x, _ in ends], 70, 570, is_log=logs[0])
    if categories:
        x_axis = Axis(-0.5, len(categories) - 0.5, 1, 70, 570)
    y_axis = make_axis([point[1] for point in points] + [y for _, y in ends], 380, 44, is_log=logs[1])
    drawn = [f'<text class="title" x="16" y="24">{_text(title)}</text>']
    ticks = [(name, x_axis.at(index)) for index, name in enumerate(categories)] or x_axis.ticks
    drawn += [f'<text class="tick" x="{x}" y="398" text-anchor="middle">{_text(name)}</text>' for name, x in ticks]
    for name, y in y_axis.ticks:
        drawn.append(f'<path class="grid" d="M70 {y}H570"/><text class="tick" x="64" y="{y + 4}" text-anchor="end">')
        drawn[-1] += f"{_text(name)}</text>"
    drawn.append(f'<text x="320" y="424" text-anchor="middle">{_text(labels[0])}</text>')
    drawn.append(f'<text transform="translate(18 212) rotate(-90)" text-anchor="middle">{_text(labels[1])}</text>')
    for number, one in enumerate(series):
        shift = 22 * (number - (len(series) - 1) / 2) if categories else 0  # pixels: side by side in a category
        colour = _COLOURS[number % len(_COLOURS)]
        fill = "none" if one.is_paper else colour
        drawn.append(f'<g stroke="{colour}" fill="{fill}" transform="translate({shift})">')
        if one.joined:
            xs, ys = [point[0] for point in one.points], [point[1] for point in one.points]
            drawn.append(f'<path fill="none" d="{draw_line(x_axis, y_axis, xs, ys)}"/>')
        for x, box in one.boxes:
            low, first, middle, third, high = (y_axis.at(value) for value in box)
            at = x_axis.at(x)
            frame = f"M{at} {low}V{first}M{at} {third}V{high}M{at - 8} {third}h16V{first}h-16zM{at - 8} {middle}h16"
            drawn.append(f'<path fill="none" d="{frame}"/>')
        for x, y, label in (point for point in one.points if math.isfinite(point[1])):
            drawn.append(f'<circle cx="{x_axis.at(x)}" cy="{y_axis.at(y)}" r="4"/>')
            drawn.append(f'<text class="label" x="{x_axis.at(x) + 6}" y="{y_axis.at(y) - 5}">{_text(label)}</text>')
        drawn.append("</g>")
        y = 56 + 18 * number
        drawn.append(f'<circle cx="590" cy="{y - 4}" r="4" stroke="{colour}" fill="{fill}"/>')
        drawn.append(f'<text x="600" y="{y}">{_text(one.name)}</text>')
    return _wrap(_WIDTH, _HEIGHT, drawn)


def draw_sheet(title: str, panels: Sequence[Panel]) -> str:
    """Returns the SVG of a table of images; a row ends where a column comes again, or another row begins."""
    columns = list(dict.fromkeys(panel.column for panel in panels))
    drawn = [f'<text class="title" x="16" y="24">{_text(title)}</text>']
    drawn += [f'<text x="{16 + (_CELL + 10) * i}" y="48">{_text(name)}</text>' for i, name in enumerate(columns)]
    top, bottom, row, seen = 0, 58, "", set(columns)
    for panel in panels:
        if panel.row != row or panel.column in seen:
            top, row, seen = bottom + 16, panel.row, set()
            drawn.append(f'<text class="tick" x="16" y="{top - 6}">{_text(row)}</text>')
        seen.add(panel.column)
        height, width = panel.image.shape[:2]
        scale = _CELL / max(height, width)
        bottom = max(bottom, top + round(scale * height) + 14)
        where = f"translate({16 + (_CELL + 10) * columns.index(panel.column)} {top}) scale({scale:.5f})"
        image = f'<image href="{encode_jpeg(shrink(panel.image, 2 * _CELL))}" width="{width}" height="{height}"/>'
        outlines = f'<path class="outline" d="{panel.outlines}"/>' if panel.outlines else ""
        drawn.append(f'<g transform="{where}">{image}{outlines}</g>')
    return _wrap(22 + (_CELL + 10) * len(columns), bottom, drawn)


def _text(words: str) -> str:
    """Escapes a text of somebody else's, without the characters that XML forbids."""
    return escape("".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in words))


def _wrap(width: int, height: int, drawn: Iterable[str]) -> str:
    style = (
        "text{font:12px sans-serif;fill:#111;stroke:none}.title{font-size:15px;font-weight:bold}.tick{font-size:11px}"
        ".label{font-size:9px}.grid{stroke:#ddd}.outline{fill:none;stroke:#e11;stroke-width:2;"
        "vector-effect:non-scaling-stroke}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    background = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([head, f"<style>{style}</style>{background}", *drawn, "</svg>\n"])
