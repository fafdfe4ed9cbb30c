"""Models on somebody's labels: each image scored at each size, then one page and one table (charm.app.comparison).

Scores are kept as they come (charm.app.journal), so that the same command goes on after any end.
"""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from charm.app.comparison import Judge, Sample, render_comparison
from charm.app.journal import Journal, open_journal
from charm.app.reading import load_config, load_scorer
from charm.app.rows import Row
from charm.app.score import REJECTED, Clock, Pass, list_rejected, print_rejected, run_pass
from charm.images.find import ImageFile, escape_path, read_image
from charm.labels.tables import Packed, is_blank, read_number, read_table
from charm.model.config import LabelConfig
from charm.runtime.columns import name_cell, split_cell
from charm.runtime.disk import atomic_write, guard_name, write_csv
from charm.runtime.errors import UserError, format_count

_COLUMNS = ("path", "label", "model", "size", "score", "spread", "low", "high", "reason")
_SCALED = ("score", "spread", "low", "high")


@dataclass(frozen=True)
class Options:
    """What the command line says; see charm.app.command."""

    models: Sequence[str]
    labels: Path
    root: Path | None
    columns: tuple[str, str]
    scale: tuple[float, float] | None
    sizes: Sequence[float]
    out: Path
    overwrite: bool
    device: str
    precision: str


@dataclass(frozen=True)
class _Scored:
    """A model's rows by size and path; `scale` is that of the labels, None where nobody has said it."""

    name: str
    labels: LabelConfig
    rows: dict[float, dict[str, Row]]
    scale: tuple[float, float] | None

    def onto(self, score: float | None, is_width: bool = False) -> float | None:
        """Maps a score, or a width, from the model's scale onto that of the labels, end to end."""
        (low, high) = self.labels.score_range
        first, last = self.scale or (low, high)
        if score is None:
            return None
        return score * (last - first) / (high - low) + (0 if is_width else first - low * (last - first) / (high - low))

    def read(self, name: str, paths: Sequence[str], size: float = 1.0) -> np.ndarray:
        """Returns a column of rows, mapped: float64 (N,), nan where there is no number."""
        found = (self.onto(getattr(self.rows[size][path], name)) for path in paths)
        return np.array([math.nan if one is None else one for one in found])


def evaluate_models(options: Options) -> int:
    """Scores the labelled images with each model at each size; writes evaluate.html and evaluate.csv; the exit code.

    Raises UserError if the labels, a model or the folder to write are not as they have to be, or no image can be used.
    """
    page, table = options.out / "evaluate.html", options.out / "evaluate.csv"
    if not options.overwrite and (page.exists() or table.exists()):
        raise UserError(f"{escape_path(str(options.out))} has an evaluation already: --overwrite replaces it")
    if options.scale and not options.scale[0] < options.scale[1]:
        raise UserError("--scale {:g} {:g}: expected the lowest label, then the highest".format(*options.scale))
    labels = read_labels(options.labels, options.columns, options.root or options.labels.parent, options.scale)
    known = [load_config(name) for name in options.models]  # says what is wrong before hours of work
    if any(one in known[:place] for place, one in enumerate(known)):
        raise UserError(
            f"{', '.join(map(escape_path, options.models))}: two of these are one model: expected each once"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        journals: list[Journal] = []
        models = []
        beside = options.labels.parent.resolve()
        root = (options.root or beside).resolve()
        image_files = [ImageFile(path, beside if split_cell(path)[1] else root) for path in labels]
        for name in options.models:
            scorer = load_scorer(name, options.device, options.precision)
            found = {}
            for size in options.sizes:
                one = Pass(scorer, scorer.draws, options.precision, size)
                journals.append(stack.enter_context(open_journal(options.out / f"{len(journals)}-{size:g}")))
                print(f"{escape_path(name)}, size {size:g}")
                found[size] = run_pass(one, image_files, journals[-1], Clock(time.perf_counter()))
            models.append(_Scored(escape_path(name), scorer.config.labels, found, options.scale))
        html, lines, is_whole = _compare(models, labels, options)
        with atomic_write(page) as file:
            file.write(html.encode())
        write_csv(table, _COLUMNS, _list_rows(models, labels))
        for journal in journals:
            journal.remove()
    print(*lines, f"written: {escape_path(str(page))}, {table.name}", sep="\n")
    return 0 if is_whole else REJECTED


def read_sizes(text: str) -> list[float]:
    """Reads fractions of 1, the whole size first."""
    try:
        sizes = {float(one) for one in text.replace(",", " ").split()}
    except ValueError:
        sizes = {0.0}
    if not all(0 < size <= 1 for size in sizes):
        raise UserError(f"--sizes {text}: expected fractions of the image's size, for example 0.75,0.5,0.25")
    return sorted(sizes | {1.0}, reverse=True)


def read_labels(
    table: Path, columns: tuple[str, str], root: Path, scale: tuple[float, float] | None = None
) -> dict[str, float]:
    """Reads a table of labels: path of the image, below `root` -> its label, the mean of several rows of one image.

    Raises:
        UserError: no such table or column, a cell that is no number, or a label beyond the ends of `scale`.
    """
    path_column, score_column = columns
    low_high = scale or (-math.inf, math.inf)
    found: dict[str, list[float]] = {}
    unrated = 0
    for where, row in read_table(table, columns, [score_column]).pick(columns):
        if is_blank(row[score_column]) or is_blank(row[path_column]):
            unrated += 1
            continue
        label = read_number(row[score_column], score_column, where)
        if not low_high[0] <= label <= low_high[1]:
            raise UserError(f"{where}: the label {label:g} is beyond --scale {low_high[0]:g} {low_high[1]:g}")
        cell = row[path_column]
        packed = isinstance(cell, Packed) and name_cell(str(table), path_column, cell.row)
        found.setdefault(guard_name(packed or str(root / str(cell))), []).append(label)
    if unrated:
        print(f"{unrated} rows without a path or a label are left out")
    if not found:
        raise UserError(f"{table}: no labels; expected a row per image with {' and '.join(columns)}")
    return {path: math.fsum(ratings) / len(ratings) for path, ratings in found.items()}


def _compare(models: Sequence[_Scored], labels: dict[str, float], options: Options) -> tuple[str, list[str], bool]:
    """Renders the page and its lines of text, of images that all models scored at all sizes; tells if all were."""
    rows = [row for model in models for found in model.rows.values() for row in found.values()]
    rejected = list_rejected(list({row.path: row for row in rows if row.reason}.values()))
    print_rejected(rejected)
    left_out = {row.path for row in rows if row.reason}
    kept = [path for path in labels if path not in left_out]
    if len(kept) < 2:
        found = format_count(len(kept), "image")
        raise UserError(f"{escape_path(str(options.labels))}: {found} can be scored: expected two at least")
    targets = np.array([labels[path] for path in kept])
    thresholds = {round(model.onto(model.labels.accuracy_threshold) or 0.0, 9) for model in models}
    threshold = thresholds.pop() if len(thresholds) == 1 and options.scale else math.nan
    judges = []
    for model in models:
        low, high = options.scale or model.labels.score_range
        by_size = {size: model.read("score", kept, size) for size in model.rows}
        ends = [model.read(name, kept) for name in ("low", "high")]
        held = (ends[0] - 1e-9 <= targets) & (targets <= ends[1] + 1e-9)
        coverage = None if options.scale is None or np.isnan(ends[0]).any() else float(held.mean())
        judges.append(Judge(model.name, by_size[1.0], high - low, coverage, by_size if len(by_size) > 1 else {}))
    about = {
        "title": f"{', '.join(model.name for model in models)} on {options.labels.name}",
        "lede": f"{len(kept)} of {len(labels)} labelled images could be scored by all of the models, and count.",
        "notes": list(_list_notes(models, targets, threshold)),
        "rejected": rejected,
    }
    sample = Sample([escape_path(path) for path in kept], targets, threshold, options.scale is not None)
    return *render_comparison(judges, sample, lambda at: read_image(kept[at]), about), not rejected


def _list_notes(models: Sequence[_Scored], targets: np.ndarray, threshold: float) -> list[str]:
    """Says which numbers are left out, and how scores were mapped."""
    scale = models[0].scale
    if scale is None:
        return [
            f"ACC and MAE are left out, since nobody has said which scale the labels, {targets.min():g} to "
            f"{targets.max():g}, are on: --scale LOWEST HIGHEST maps the scores onto it. Correlations need no scale."
        ]
    notes = [
        f"The scores of {model.name}, {low:g} to {high:g}, were mapped onto {scale[0]:g} to {scale[1]:g}, end to end: "
        "ACC, MAE and intervals hold as far as both scales mean the same."
        for model in models
        for low, high in [model.labels.score_range]
        if (low, high) != scale
    ]
    if math.isnan(threshold):
        notes.append("ACC is left out: the models were made with different thresholds of what is good.")
    return notes


def _list_rows(models: Sequence[_Scored], labels: dict[str, float]) -> list[tuple[object, ...]]:
    """Lists a row for each model, size and image, on the scale of the page."""
    return [
        (
            escape_path(path),
            label,
            model.name,
            size,
            *(model.onto(getattr(rows[path], name), name == "spread") for name in _SCALED),
            rows[path].reason,
        )
        for model in models
        for size, rows in model.rows.items()
        for path, label in labels.items()
    ]
