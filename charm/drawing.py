"""Drawings that the report, the pages and `charm show` share: an image as a model sees it, axes of plots and lines."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import simplejpeg

from charm.model.config import format_interval
from charm.runtime.errors import escape_controls
from charm.tokenization.geometry import downscale, limit_edge
from charm.tokenization.tokens import Tokens

if TYPE_CHECKING:
    from jinja2 import Environment

SHARED_STYLE = Path(__file__).with_name("page.css")  # of all pages
SHOWN_EDGE = 480  # pixels, longest edge of a shown image
JPEG_QUALITY = 85
SHADE = 150  # alpha, 0..255, over all but native patches; 128 left bright skies as bright as native patches
UNITS = {"frequency": "log power", "gradient": "Sobel magnitude", "entropy": "bits"}


def mark_cells(tokens: Tokens, scale: int, side: int = 1) -> np.ndarray:
    """Marks cells of side * side patches that hold a token of a scale of grid (h, w): bool (h / side, w / side)."""
    grid_h, grid_w = tokens.grids[scale]
    marked = np.zeros((grid_h // side, grid_w // side), bool)
    y, x = tokens.patch_coord[tokens.patch_valid & (tokens.scale_id == scale)].T // side
    marked[y, x] = True
    return marked


def trace_cells(marked: np.ndarray, cell_size: int) -> str:
    """Returns the SVG path of a square of cell_size pixels around each True of a bool (h, w)."""
    return "".join(
        f"M{x * cell_size} {y * cell_size}h{cell_size}v{cell_size}h-{cell_size}z" for y, x in np.argwhere(marked)
    )


def shrink(image: np.ndarray, shown_edge: int = SHOWN_EDGE) -> np.ndarray:
    """Downscales (H, W) or (H, W, 3) to a longest edge of `shown_edge` pixels; never enlarges."""
    return downscale(image, limit_edge((image.shape[0], image.shape[1]), shown_edge))


def encode_jpeg(image: np.ndarray) -> str:
    """Encodes uint8 (H, W, 3), RGB, as a data URI of a JPEG file."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=JPEG_QUALITY, colorsubsampling="420")
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def encode_heat(values: np.ndarray) -> str:
    """Encodes (h, w) as a data URI of one pixel per value, from the lowest (dark blue) to the highest (yellow)."""
    return embed_png(paint_heat(values))


def paint_heat(values: np.ndarray) -> np.ndarray:
    """Colours values, (h, w), from the lowest (dark blue) to the highest (yellow): uint8 (h, w, 3), RGB."""
    low, high = float(values.min()), float(values.max())
    levels = np.rint((values - low) * (255 / (high - low if high > low else 1))).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def encode_shade(native: np.ndarray) -> str:
    """Encodes bool (h, w) as a data URI of a black overlay, transparent where True."""
    overlay = np.zeros((*native.shape, 4), np.uint8)
    overlay[..., 3] = np.where(native, 0, SHADE)
    return embed_png(overlay)


def embed_png(image: np.ndarray) -> str:
    """Encodes uint8 (h, w, 3), RGB, or (h, w, 4), RGBA, as a data URI of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(encode_png(image)).decode()}"


def encode_png(image: np.ndarray) -> bytes:
    """Encodes uint8 (h, w, 3), RGB, or (h, w, 4), RGBA, as the bytes of a PNG file."""
    order = cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    return cv2.imencode(".png", cv2.cvtColor(image, order))[1].tobytes()


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
        """Returns where a value lies, pixels."""
        value = math.log10(value) if self.is_log else value
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start), 1)

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """The axis' round numbers, each with its label and where it lies, pixels."""
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


def render_page(template: Path, **facts: Any) -> str:
    """Renders a page that needs no other file and no network; the facts, whatever they are, are escaped.

    The template, of Jinja, may import from page.html.jinja.
    """
    return _load_templates(template.parent).get_template(template.name).render(facts)


@cache
def _load_templates(folder: Path) -> "Environment":
    """Loads the templates of a folder, each compiled once in a process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # of the extra [torch]

    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escape_controls,
    )
    environment.filters |= {"score": format_score, "interval": lambda *ends: minus(format_interval(*ends))}
    return environment


def _escape_controls(value: Any) -> Any:
    """Escapes characters in a text that are none to be seen, or turn text about; leaves markup and numbers."""
    return escape_controls(value) if type(value) is str and not value.isprintable() else value


def format_score(value: float | None) -> str:
    """Formats three decimals with a true minus sign; "undefined" for None and nan."""
    return "undefined" if value is None or math.isnan(value) else minus(f"{value:.3f}")
