"""Runs on one page: paired differences, curves of training over each other, the images on which models disagree most.

    uv run python -m pipeline compare runs ../other/runs           # folders of runs
    uv run python -m pipeline compare reeky-zack dozen-calf        # names of experiments, as `dvc exp show` has them

A run's scores are those of its test images, from predictions.csv; nothing is scored anew.
"""

import argparse
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from charm.app.comparison import Judge, Sample, render_comparison
from charm.images.find import escape_path
from charm.runtime.disk import atomic_write, write_csv
from charm.runtime.errors import UserError, escape_controls, format_count
from pipeline.shards.read import ShardReader


@dataclass(frozen=True)
class Run:
    """A run as it was named on the command line: `images` by key, as (name, label, score); `labels` as LabelConfig."""

    name: str
    labels: dict[str, Any]
    dataset: str
    images: dict[str, tuple[str, float, float]]
    history: list[float]
    coverage: float | None


def read_run(name: str) -> Run:
    """Reads a run from its folder or, by its experiment's name, from DVC; UserError if it is missing or damaged."""
    read = _read_file if Path(name).is_dir() else _read_experiment
    files = ("evaluate/model/config.json", "evaluate/metrics.json", "evaluate/predictions.csv", "train/history.csv")
    config, metrics, predictions, history = (read(name, file) for file in files)
    try:
        facts, rows = json.loads(config), csv.DictReader(io.StringIO(predictions, newline=""))
        return Run(
            escape_path(name),
            facts["labels"],
            facts["data"]["dataset"],
            {row["key"]: (escape_controls(row["name"]), float(row["target"]), float(row["predicted"])) for row in rows},
            [float(row["val_srcc"]) for row in csv.DictReader(io.StringIO(history, newline=""))],
            json.loads(metrics)["interval_coverage"],
        )
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{name}: files are damaged, or of another version ({error}): run its stages again") from error


def _read_file(folder: str, file: str) -> str:
    try:
        return Path(folder, file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{Path(folder, file)}: {error}; expected a folder with train/ and evaluate/") from error


def _read_experiment(name: str, file: str) -> str:
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError, resolve_rev

    try:
        return str(DVCFileSystem(rev=resolve_rev(Repo().scm, name)).read_text(f"runs/{file}", encoding="utf-8"))
    except (DvcException, SCMError, OSError) as error:
        told = "expected the folder of a run, or the name of a finished experiment as `dvc exp show` has it"
        raise UserError(f"{name}: {error}; {told}") from error


def compare(runs: Sequence[Run], shards: Path) -> tuple[str, list[str], list[tuple[Any, ...]]]:
    """Compares runs, two at least, with the first one, on the test images that all of them have; `shards` hold these.

    Returns:
        The page, lines of text, and rows of a table.

    Raises:
        UserError: the runs have no two images in common, or other labels of them.
    """
    first = runs[0]
    keys = [key for key in first.images if all(key in run.images for run in runs)]
    names = ", ".join(run.name for run in runs)
    if len(keys) < 2:
        raise UserError(f"{names}: {len(keys)} test images in common: expected two, as runs of one split have")
    labels = np.array([first.images[key][1] for key in keys])
    for run in runs[1:]:
        differing = int((np.abs(labels - [run.images[key][1] for key in keys]) > 1e-5).sum())
        if differing or run.labels != first.labels:
            raise UserError(f"{run.name}: {differing} labels, or their scale, are others than those of {first.name}")
    low, high = first.labels["score_range"]
    judges = []
    for run in runs:
        scores = np.array([run.images[key][2] for key in keys])
        coverage = run.coverage if len(keys) == len(run.images) else None
        judges.append(Judge(run.name, scores, high - low, coverage, history=run.history))
    left_out = sum(len(run.images) - len(keys) for run in runs)
    about = {
        "title": f"{names} on {first.dataset}",
        "lede": f"{format_count(len(keys), 'test image')} that each of {len(runs)} runs has scored.",
        "notes": [f"{left_out} test images that not all runs have are left out."] if left_out else [],
        "rejected": [],
    }

    def read_image(at: int) -> np.ndarray | None:
        try:  # the shards may be gone, or those of another data set
            return ShardReader(shards).read_image(keys[at])
        except (OSError, LookupError, UserError):
            return None

    shown = [first.images[key][0] for key in keys]
    page, lines = render_comparison(
        judges, Sample(shown, labels, first.labels["accuracy_threshold"]), read_image, about
    )
    rows = [row for one in judges for row in zip(shown, labels, [one.name] * len(keys), one.scores, strict=True)]
    return page, lines, rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m pipeline compare`."""
    parser.add_argument("runs", nargs="+", help="folders of runs or names of experiments; the first is compared with")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of compare.html and compare.csv")


def run(chosen: argparse.Namespace) -> None:
    """Writes page and table, and prints the numbers; raises UserError for fewer than two runs."""
    if len(chosen.runs) < 2 or len(set(chosen.runs)) < len(chosen.runs):
        raise UserError(f"{', '.join(chosen.runs)}: expected two different runs at least")
    page, lines, rows = compare([read_run(name) for name in chosen.runs], Path("data/shards"))
    chosen.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(chosen.out / "compare.html") as file:
        file.write(page.encode())
    write_csv(chosen.out / "compare.csv", ("name", "label", "model", "score"), rows)
    print(*lines, f"written: {escape_path(str(chosen.out / 'compare.html'))}, compare.csv", sep="\n")
