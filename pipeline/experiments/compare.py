"""Runs on one page: paired differences, curves of training over each other, the images on which models disagree most.

    uv run python -m pipeline compare runs ../other/runs           # folders of runs
    uv run python -m pipeline compare reeky-zack dozen-calf        # names of experiments, as `dvc exp show` has them

A run's scores are those of its test images, from predictions.csv; nothing is scored anew.
"""

import argparse
import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from charm.app.comparison import Judge, Sample, find_disputed, render_comparison
from charm.drawing import encode_jpeg, shrink
from charm.model.config import LabelConfig
from charm.runtime.disk import atomic_write, write_csv
from charm.runtime.errors import UserError
from charm.runtime.schema import build
from pipeline.work.store import damaged

_SHOWN_EDGE = 240  # pixels, of a disputed image
_FILES = ("evaluate/predictions.csv", "evaluate/metrics.json", "evaluate/model/config.json", "train/history.csv")


@dataclass(frozen=True)
class Run:
    """What is read of a run.

    Attributes:
        name: as it was named on the command line.
        labels: that its model learnt.
        dataset: that they are of.
        images: key -> (name, label, score) of the test images.
        history: validation SRCC by epoch.
        coverage: as metrics.json has it.
    """

    name: str
    labels: LabelConfig
    dataset: str
    images: dict[str, tuple[str, float, float]]
    history: list[float]
    coverage: float | None


def read_run(name: str) -> Run:
    """Reads a run from its folder, which holds train/ and evaluate/, or from DVC by the name of its experiment.

    Raises:
        UserError: there is no such run, or one of its files is missing or damaged.
    """
    read = _read_file if Path(name).is_dir() else _read_experiment
    texts = {file: read(name, file) for file in _FILES}
    try:
        rows = csv.DictReader(io.StringIO(texts[_FILES[0]], newline=""))
        images = {row["key"]: (row["name"], float(row["target"]), float(row["predicted"])) for row in rows}
        coverage = json.loads(texts[_FILES[1]])["interval_coverage"]
        facts = json.loads(texts[_FILES[2]])
        labels, dataset = build(LabelConfig, facts["labels"]), str(facts["data"]["dataset"])
        history = [float(row["val_srcc"]) for row in csv.DictReader(io.StringIO(texts[_FILES[3]], newline=""))]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{name}: its files are damaged, or of another version ({error}): run its stages again"
        ) from error
    return Run(name, labels, dataset, images, history, coverage)


def _read_file(folder: str, file: str) -> str:
    try:
        return Path(folder, file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise damaged(Path(folder, file), error) from error


def _read_experiment(name: str, file: str) -> str:
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError, resolve_rev

    try:
        revision = resolve_rev(Repo().scm, name)
        return str(DVCFileSystem(rev=revision).read_text(f"runs/{file}", encoding="utf-8"))
    except (DvcException, SCMError, OSError) as error:
        told = "expected a folder that holds train/ and evaluate/, or the name of a finished experiment of dvc exp show"
        raise UserError(f"{name}: {error}; {told}") from error


def compare(
    runs: list[Run], read_image: Callable[[str], np.ndarray | None]
) -> tuple[str, list[str], list[list[object]]]:
    """Compares runs on the test images that all of them have; returns the page, lines of text, and rows of a table.

    Args:
        runs: two at least; the others are compared with the first.
        read_image: key -> uint8 (H, W, 3), or None where the image is not here.

    Raises:
        UserError: the runs have no images in common, or other labels of them.
    """
    first = runs[0]
    keys = [key for key in first.images if all(key in run.images for run in runs)]
    if len(keys) < 2:
        raise UserError(
            f"{', '.join(run.name for run in runs)}: {len(keys)} test images in common: expected two at least"
        )
    labels = np.array([first.images[key][1] for key in keys])
    for run in runs[1:]:
        differing = sum(abs(run.images[key][1] - first.images[key][1]) > 1e-5 for key in keys)
        if differing or run.labels != first.labels:
            raise UserError(f"{run.name}: other labels than {first.name} of {differing} images, or of another scale")
    facts = first.labels
    judges = [
        Judge(
            run.name,
            np.array([run.images[key][2] for key in keys]),
            facts.score_range[1] - facts.score_range[0],
            run.coverage if len(keys) == len(run.images) else None,
            history=run.history,
        )
        for run in runs
    ]
    sample = Sample([first.images[key][0] for key in keys], labels, facts.accuracy_threshold)
    found = {at: read_image(keys[at]) for at in find_disputed(judges)}
    images = {at: encode_jpeg(shrink(image, _SHOWN_EDGE)) for at, image in found.items() if image is not None}
    left_out = sum(len(run.images) - len(keys) for run in runs)
    notes = [f"{left_out} test images that not all runs have are left out."] if left_out else []
    about = {
        "title": f"{', '.join(run.name for run in runs)} on {first.dataset}",
        "lede": f"{len(keys)} test images that each of {len(runs)} runs has scored.",
        "notes": notes,
        "rejected": [],
    }
    page, lines = render_comparison(judges, sample, images, about)
    rows = [
        [first.images[key][0], label, judge.name, 1, score]
        for judge in judges
        for key, label, score in zip(keys, labels, judge.scores, strict=True)
    ]
    return page, [*notes, *lines], rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m pipeline compare`."""
    parser.add_argument("runs", nargs="+", help="folders of runs or names of experiments; the first is compared with")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of compare.html and compare.csv")


def run(chosen: argparse.Namespace) -> None:
    """Writes the page and the table, and prints the numbers.

    Raises:
        UserError: fewer than two runs, or one that cannot be read.
    """
    if len(chosen.runs) < 2 or len(set(chosen.runs)) < len(chosen.runs):
        raise UserError(f"{', '.join(chosen.runs)}: expected two different runs at least")
    page, lines, rows = compare([read_run(name) for name in chosen.runs], _open_shards(Path("data/shards")))
    chosen.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(chosen.out / "compare.html") as file:
        file.write(page.encode())
    write_csv(chosen.out / "compare.csv", ("name", "label", "model", "size", "score"), rows)
    print(*lines, f"written: {chosen.out / 'compare.html'}, compare.csv", sep="\n")


def _open_shards(folder: Path) -> Callable[[str], np.ndarray | None]:
    """Returns a reader of images by key, as far as the shards in data/ are those of the runs."""
    from pipeline.shards.read import ShardReader

    try:
        images = ShardReader(folder)
    except (OSError, UserError):
        return lambda key: None

    def read(key: str) -> np.ndarray | None:
        try:
            return images.read_image(key)
        except (LookupError, UserError):
            return None

    return read
