"""The paper's figures from what is here: finished experiments, the manifest, and images of the data set.

    uv run python -m pipeline figures fig5 fig8 [--dataset demo] [--seeds 0 1 2] [--out runs/figures]

Each is written as figN.csv and figN.svg, with the paper's numbers hollow beside ours where it prints them. What is
missing is named with the command that makes it. Times (fig6) are measured on this machine.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from charm.runtime.disk import atomic_write, write_csv
from charm.runtime.errors import UserError, escape_controls
from pipeline.figures import images, numbers
from pipeline.figures.draw import Panel, draw_chart, draw_sheet
from pipeline.figures.images import Gallery, open_gallery
from pipeline.figures.numbers import Asked, Chart
from pipeline.settings.params import load_params

BOX = ("least", "quartile_1", "median", "quartile_3", "most")


@dataclass(frozen=True)
class Figure:
    """A figure of the paper: a chart of numbers, or a sheet of images."""

    title: str  # of the drawing
    plot: Callable[[Asked], Chart] | None = None  # makes a chart; None for a sheet
    labels: tuple[str, str] = ("", "")  # of the axes of a chart
    logs: tuple[bool, bool] = (False, False)  # which of the axes are logarithmic
    # makes the panels of an image of a sheet, from its key
    show: Callable[[Gallery, str], Sequence[Panel]] | None = None
    also: Callable[[Gallery], list[str]] = lambda _: []  # finds keys of more images for a sheet

    def draw(self, name: str, asked: Asked) -> tuple[str, list[str], list[list[Any]], list[str]]:
        """Returns the SVG, the columns and rows of the CSV file, and what makes the rest.

        Raises:
            UserError: nothing of it can be drawn; with the command that makes it.
        """
        title = f"Figure {name.removeprefix('fig')}: {self.title}"
        if self.show is not None:
            gallery = open_gallery(asked.params, asked.dataset)
            panels = [
                replace(panel, row=", ".join(filter(None, (gallery.names[key], panel.row))))
                for key in [*gallery.chosen, *self.also(gallery)]
                for panel in self.show(gallery, key)
            ]
            facts = list(dict.fromkeys(fact for panel in panels for fact in panel.facts))
            rows = [[panel.row, panel.column, *(panel.facts.get(fact) for fact in facts)] for panel in panels]
            return draw_sheet(title, panels), ["row", "column", *facts], rows, []
        assert self.plot is not None
        chart = self.plot(asked)
        missing = [one for one in chart.missing if one]
        if not any(one.points or one.boxes for one in chart.series):
            raise UserError(f"there is nothing to draw yet: {missing[0]}")
        svg = draw_chart(title, self.labels, chart.series, chart.categories, self.logs)
        return svg, *_tabulate(chart), missing


def _tabulate(chart: Chart) -> tuple[list[str], list[list[Any]]]:
    """Returns the columns and rows of a chart's CSV file."""
    boxes = [(one, x, values) for one in chart.series for x, values in one.boxes]
    points = [(one, x, values) for one in chart.series for x, *values in one.points]
    rows = [
        [one.name, one.is_paper, chart.categories[int(x)] if chart.categories else "", x, *values]
        for one, x, values in boxes or points
    ]
    return ["series", "of_paper", "category", "x", *(BOX if boxes else ("y", "label"))], rows


FIGURES: dict[str, Figure] = {
    "fig4": Figure("PLCC and size", numbers.plot_parameters, ("million parameters", "PLCC"), (True, False)),
    "fig5": Figure("epoch of the best validation score", numbers.plot_best_epochs, ("data set", "epoch")),
    "fig6": Figure("time of tokenizing, one thread", numbers.plot_times, ("million pixels", "ms"), (False, True)),
    "fig7": Figure("salient objects, and an image without one", show=images.show_mask, also=images.find_failure),
    "fig8": Figure("patches that stay native, t = 1", show=images.show_selections),
    "fig9": Figure("native patches for several t", show=images.show_thresholds),
    "fig10": Figure("selection by gradient and t", numbers.plot_thresholds, ("t", "validation score")),
    "fig11": Figure("normalization", show=images.show_normalization),
    "fig12": Figure("augmentations", show=images.show_augmentations),
    "fig13": Figure("sizes of the images", numbers.plot_sizes, ("data set", "million pixels"), (False, True)),
    "fig14": Figure("an image resized, and by Muller", show=images.show_muller),
    "fig15": Figure("standard and padded input", show=images.show_padding),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m pipeline figures`."""
    names = [*FIGURES, "all"]
    parser.add_argument("figures", nargs="+", choices=names, metavar="figure", help=", ".join(names))
    parser.add_argument("--dataset", help="instead of the paper's: demo, csv, or any other of params.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the experiments that are averaged")
    parser.add_argument("--out", type=Path, default=Path("runs/figures"), help="folder of the drawings")


def run(chosen: argparse.Namespace) -> None:
    """Draws the chosen figures; what cannot be drawn stops no other, and is named in a UserError at the end."""
    asked = Asked(load_params(), chosen.dataset, chosen.seeds, chosen.out)
    asked.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in FIGURES if "all" in chosen.figures else dict.fromkeys(chosen.figures):
        try:
            svg, columns, rows, missing = FIGURES[name].draw(name, asked)
        except UserError as error:
            print(escape_controls(f"{name}: {error}"), file=sys.stderr)
            failed.append(name)
            continue
        write_csv(asked.out / f"{name}.csv", columns, rows)
        with atomic_write(asked.out / f"{name}.svg") as file:
            file.write(svg.encode())
        print(asked.out / f"{name}.svg")
        for command in missing:
            print(f"{name}: incomplete: {command}", file=sys.stderr)
    if failed:
        raise UserError(f"not drawn: {', '.join(failed)}")
