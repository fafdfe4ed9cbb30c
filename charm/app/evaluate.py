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

from charm.app.comparison import Judge, Sample, find_disputed, render_comparison
from charm.app.journal import Journal, open_journal
from charm.app.reading import load_scorer
from charm.app.rows import Row
from charm.app.score import REJECTED, Clock, Pass, list_rejected, print_rejected, run_pass
from charm.drawing import encode_jpeg, shrink
from charm.images.find import ImageFile, escape_path, read_image
from charm.labels.tables import is_blank, read_number, read_table
from charm.model.config import LabelConfig
from charm.runtime.disk import atomic_write, encode_csv, guard_name
from charm.runtime.errors import UserError

_SHOWN_EDGE = 240  # pixels, of a disputed image
_COLUMNS = ("path", "label", "model", "size", "score", "spread", "low", "high", "reason")


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
    draws: int | None
    device: str
    precision: str


@dataclass(frozen=True)
class _Scored:
    """A model's rows by size, then path, and what it says of its labels."""

    name: str
    labels: LabelConfig
    rows: dict[float, dict[str, Row]]


def evaluate_models(options: Options) -> int:
    """Scores the labelled images with each model at each size and writes evaluate.html and evaluate.csv; the exit code.

    Raises:
        UserError: the labels, a model or the folder to write are not as they have to be, or no image can be used.
    """
    if len(set(options.models)) < len(options.models):
        raise UserError(f"{', '.join(options.models)}: expected each model once")
    page, table = options.out / "evaluate.html", options.out / "evaluate.csv"
    if not options.overwrite and (page.exists() or table.exists()):
        raise UserError(f"{escape_path(str(options.out))} has an evaluation already: --overwrite replaces it")
    labels = read_labels(options)
    options.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        journals: list[Journal] = []
        models = [_score(name, labels, options, stack, journals) for name in options.models]
        rows = [row for model in models for found in model.rows.values() for row in found.values()]
        rejected = list_rejected(list({row.path: row for row in sorted(rows, key=lambda row: row.reason)}.values()))
        print_rejected(rejected)
        left_out = {row.path for row in rows if row.reason}
        kept = [path for path in labels if path not in left_out]
        if len(kept) < 2:
            raise UserError(f"{escape_path(str(options.labels))}: {len(kept)} images can be scored: expected two")
        html, lines = _compare(models, labels, kept, options, rejected)
        for path, data in ((page, html.encode()), (table, _encode_table(models, labels, options))):
            with atomic_write(path) as file:
                file.write(data)
        for journal in journals:
            journal.remove()
    print(*lines, f"written: {escape_path(str(page))}, {table.name}", sep="\n")
    return REJECTED if rejected else 0


def read_labels(options: Options) -> dict[str, float]:
    """Reads the labels: path of the image -> its label, the mean of several rows of one image.

    Raises:
        UserError: no such table or column, a cell that is no number, or a label beyond the ends of `scale`.
    """
    path_column, score_column = options.columns
    root = options.root or options.labels.parent
    found: dict[str, list[float]] = {}
    unrated = 0
    for where, row in read_table(options.labels, options.columns, [score_column]).pick(options.columns):
        if is_blank(row[score_column]) or is_blank(row[path_column]):
            unrated += 1
            continue
        label = read_number(row[score_column], score_column, where)
        if options.scale and not options.scale[0] <= label <= options.scale[1]:
            raise UserError(f"{where}: the label {label:g} is beyond --scale {options.scale[0]:g} {options.scale[1]:g}")
        found.setdefault(guard_name(str(root / str(row[path_column]))), []).append(label)
    if unrated:
        print(f"{unrated} rows without a path or a label are left out")
    if not found:
        raise UserError(f"{options.labels}: no labels; expected a row per image with {' and '.join(options.columns)}")
    return {path: math.fsum(ratings) / len(ratings) for path, ratings in found.items()}


def _score(name: str, labels: dict[str, float], options: Options, stack: ExitStack, journals: list[Journal]) -> _Scored:
    """Scores all images with a model, at each size; the journals stay open, to be removed once all is written."""
    scorer = load_scorer(name, options.device, options.precision)
    root = (options.root or options.labels.parent).resolve()
    image_files = [ImageFile(path, root) for path in labels]
    rows = {}
    for size in options.sizes:
        one = Pass(scorer, options.draws or scorer.draws, options.precision, size)
        place = options.out / f"{len(journals)}-{scorer.weights_sha256[:12]}-{size:g}"
        journals.append(stack.enter_context(open_journal(place)))
        print(f"{escape_path(name)}, size {size:g}")
        rows[size] = run_pass(one, image_files, journals[-1], Clock(time.perf_counter()))
    return _Scored(escape_path(name), scorer.config.labels, rows)


def _compare(
    models: Sequence[_Scored],
    labels: dict[str, float],
    kept: Sequence[str],
    options: Options,
    rejected: list[tuple[str, str, list[str]]],
) -> tuple[str, list[str]]:
    """Renders the page and its lines of text, of the images that every model scored at every size."""
    targets = np.array([labels[path] for path in kept])
    thresholds = {round(_onto(model, model.labels.accuracy_threshold, options), 9) for model in models}
    threshold = thresholds.pop() if len(thresholds) == 1 and options.scale else math.nan
    sample = Sample([escape_path(path) for path in kept], targets, threshold, options.scale is not None)
    judges = [_judge(model, kept, targets, options) for model in models]
    images = {at: encode_jpeg(shrink(read_image(kept[at]), _SHOWN_EDGE)) for at in find_disputed(judges)}
    notes = _list_notes(models, targets, threshold, options)
    about = {
        "title": f"{', '.join(model.name for model in models)} on {options.labels.name}",
        "lede": f"{len(kept)} of {len(labels)} labelled images could be scored by all of the models, and count.",
        "notes": notes,
        "rejected": rejected,
    }
    page, lines = render_comparison(judges, sample, images, about)
    return page, [*notes, *lines]


def _judge(model: _Scored, kept: Sequence[str], targets: np.ndarray, options: Options) -> Judge:
    by_size = {
        size: np.array([_onto(model, rows[path].score or 0.0, options) for path in kept])
        for size, rows in model.rows.items()
    }
    low, high = options.scale or model.labels.score_range
    full = [model.rows[1.0][path] for path in kept]
    coverage = None
    if options.scale and all(row.low is not None for row in full):
        ends = [(_onto(model, row.low or 0.0, options), _onto(model, row.high or 0.0, options)) for row in full]
        held = [first - 1e-9 <= label <= last + 1e-9 for (first, last), label in zip(ends, targets, strict=True)]
        coverage = sum(held) / len(held)
    others = {size: scores for size, scores in by_size.items() if len(by_size) > 1}
    return Judge(model.name, by_size[1.0], high - low, coverage, others)


def _onto(model: _Scored, score: float, options: Options) -> float:
    """Maps a score from the model's scale onto that of the labels, end to end; unchanged where nobody has said it."""
    if options.scale is None:
        return score
    (low, high), (first, last) = model.labels.score_range, options.scale
    return first + (score - low) / (high - low) * (last - first)


def _list_notes(models: Sequence[_Scored], targets: np.ndarray, threshold: float, options: Options) -> list[str]:
    """Says which numbers are left out, and how scores were mapped."""
    if options.scale is None:
        return [
            f"ACC and MAE are left out, since nobody has said which scale the labels, {targets.min():g} to "
            f"{targets.max():g}, are on: --scale LOWEST HIGHEST maps the scores onto it. Correlations need no scale."
        ]
    notes = [
        f"The scores of {model.name}, {low:g} to {high:g}, were mapped onto {options.scale[0]:g} to "
        f"{options.scale[1]:g}, end to end: ACC, MAE and intervals hold as far as both scales mean the same."
        for model in models
        for low, high in [model.labels.score_range]
        if (low, high) != options.scale
    ]
    if math.isnan(threshold):
        notes.append("ACC is left out: the models were made with different thresholds of what is good.")
    return notes


def _encode_table(models: Sequence[_Scored], labels: dict[str, float], options: Options) -> bytes:
    """Encodes a row for each image, model and size; scores are on the scale of the page."""
    lines = []
    for model in models:
        for size, rows in model.rows.items():
            factor = abs(_onto(model, 1.0, options) - _onto(model, 0.0, options))
            for path, label in labels.items():
                row = rows[path]
                ends = [None if one is None else _onto(model, one, options) for one in (row.score, row.low, row.high)]
                spread = None if row.spread is None else factor * row.spread
                facts = (escape_path(path), label, model.name, size, ends[0], spread, ends[1], ends[2], row.reason)
                lines.append(facts)
    return encode_csv(_COLUMNS, lines)
