"""Figures of numbers: finished runs, the paper's own numbers, sizes of images and times."""

import csv
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from charm.drawing import UNITS
from charm.inputs.standard import StandardInput
from charm.saliency.mbd import detect
from charm.tokenization.importance import score_patches
from charm.tokenization.selection import SELECTIONS
from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.experiments.paper_tables import Row, read_tables
from pipeline.experiments.run import plan_row, read_results
from pipeline.figures.draw import Series
from pipeline.figures.images import PATCH_SIZE, command_for, open_gallery, open_manifest
from pipeline.settings.params import Params, read_document
from pipeline.settings.recipes import DATASETS, DESCRIBED

PIXELS = [(224, 224), (480, 640), (768, 1024), (1000, 1500), (1500, 2000), (2000, 3000)]  # height, width
KINDS = ("standard", "Charm")  # rows of table 1
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Asked:
    """What is drawn: with these params, on this data set (None: the paper's), with these seeds, to this folder."""

    params: Params
    dataset: str | None
    seeds: list[int]
    out: Path


@dataclass(frozen=True)
class Chart:
    """Series of a chart, the names of the categories of x if it has such, and the commands of what is missing."""

    series: list[Series]
    categories: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def _find_runs(asked: Asked, table: str, rows: list[Row]) -> tuple[list[tuple[Row, str, list[dict[str, Any]]]], str]:
    """Returns each row with its data set and finished runs, none twice; and the command that makes the others."""
    results = read_results()
    found: dict[tuple[str, ...], tuple[Row, str, list[dict[str, Any]]]] = {}
    lacking, base = False, read_document(Path("params.yaml"))
    for row in rows:
        plan = plan_row(row, asked.dataset, asked.seeds, {}, base)
        digests = tuple(one.digest for one in plan.experiments)
        runs = [run for digest in digests if (run := results.get(digest)) is not None]
        lacking |= len(runs) < len(asked.seeds)
        if runs:
            found.setdefault(digests, (row, plan.dataset, runs))
    chosen = (f" --dataset {asked.dataset}" if asked.dataset else "") + f" --seeds {' '.join(map(str, asked.seeds))}"
    command = f"uv run python -m pipeline experiments {table}{chosen} --run"
    return list(found.values()), command if lacking else ""


def _mean(runs: list[dict[str, Any]], metric: str) -> float:
    """Returns the mean of a metric over the runs in which it is defined; nan if it is in none."""
    values = [run[metric] for run in runs if run.get(metric) is not None]
    return statistics.fmean(values) if values else float("nan")


def plot_parameters(asked: Asked) -> Chart:
    """Plots PLCC against millions of parameters; the paper's numbers are those of AVA, and beside no others."""
    tables = read_tables()[1]
    paper = [
        (row.paper[2] / 1e6, row.paper[0], row.name)
        for row in tables["table15"]
        if row.dataset == "ava" and row.paper[0] is not None and row.paper[2] is not None
    ]
    rows = [row for row in (*tables["table2"], *tables["table13"]) if not row.missing["paper"]]
    found, command = _find_runs(asked, "table2 table13", rows)
    ours = [(runs[0]["parameters"] / 1e6, _mean(runs, "plcc"), row.name) for row, _, runs in found]
    dataset = asked.dataset or "ava"
    series = [Series("the paper's", paper, is_paper=True)] if dataset == "ava" else []
    return Chart([*series, Series(f"ours, on {dataset}", ours)], missing=(command,))


def plot_best_epochs(asked: Asked) -> Chart:
    """Plots the epoch of the best validation score with the standard input and with Charm."""
    found, command = _find_runs(asked, "table1", read_tables()[1]["table1"])
    datasets = tuple(dict.fromkeys(dataset for _, dataset, _ in found))
    series = []
    for kind in KINDS:
        of_kind = [(datasets.index(dataset), runs) for row, dataset, runs in found if row.name.endswith(kind)]
        series.append(Series(kind, [(float(place), _mean(runs, "best_epoch"), "") for place, runs in of_kind]))
    return Chart(series, datasets, (command,))


def plot_thresholds(asked: Asked) -> Chart:
    """Plots the validation scores of selection by gradient against the threshold t."""
    found, command = _find_runs(asked, "figure10", read_tables()[1]["figure10"])
    series = [
        Series(metric[4:].upper(), [(float(row.name), _mean(runs, metric), "") for row, _, runs in found], joined=True)
        for metric in ("val_plcc", "val_srcc", "val_acc")
    ]
    return Chart(series, missing=(command,))


def plot_times(asked: Asked) -> Chart:
    """Plots milliseconds of tokenizing on one thread, with maps that are made on the way and with maps that are given.

    The paper measures the former, but of saliency, whose masks it has beforehand.
    """
    from pipeline.experiments.cost import measure_ms  # imports torch and timm, which takes seconds

    gallery = open_gallery(asked.params, asked.dataset)
    image = gallery.read(gallery.chosen[0])
    cutter = CharmTokenizer(PATCH_SIZE, max_seq_len=1024)
    curves: dict[str, list[tuple[float, float, str]]] = {}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for height, width in PIXELS:
        sized = np.asarray(cv2.resize(image, (width, height)), np.uint8)
        calls: dict[str, Callable[[], Any]] = {"standard": partial(StandardInput(PATCH_SIZE), sized)}
        for name in SELECTIONS:
            cut: Callable[..., Any] = replace(cutter, selection=name)
            if name in UNITS:
                calls[f"{name}, made on the way"] = partial(cut, sized)
                importance = score_patches(sized, name, cutter.coarse_patch_size)
                calls[f"{name}, given"] = partial(cut, sized, importance=importance)
            else:
                calls[name] = partial(cut, sized, saliency_mask=detect(sized))
        for label, call in calls.items():
            curves.setdefault(label, []).append((height * width / 1e6, measure_ms(call, "cpu"), ""))
    cv2.setNumThreads(threads)
    return Chart([Series(name, points, joined=True) for name, points in curves.items()])


def plot_sizes(asked: Asked) -> Chart:
    """Plots quartiles of the files' megapixels per data set and split; others are kept from an earlier drawing.

    data/ holds one data set at a time, so the figure grows with each that is prepared.
    """
    manifest = open_manifest(asked.params, asked.dataset, "manifest")
    boxes: dict[tuple[str, str], list[float]] = {}
    earlier = asked.out / "fig13.csv"
    if earlier.is_file():
        with earlier.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["category"] != manifest.facts.dataset:
                    values = [float(row[name]) for name in ("least", "quartile_1", "median", "quartile_3", "most")]
                    boxes[row["category"], row["series"]] = values
    for split in SPLITS:
        table = manifest.of_split(split).table
        sides = [np.array(table[name].to_pylist(), float) for name in ("raw_height", "raw_width")]
        pixels = sides[0] * sides[1] / 1e6
        if len(pixels):
            boxes[manifest.facts.dataset, split] = np.percentile(pixels, [0, 25, 50, 75, 100]).tolist()
    datasets = tuple(dict.fromkeys(dataset for dataset, _ in boxes))
    series = [
        Series(split, boxes=[(datasets.index(name), box) for (name, of), box in boxes.items() if of == split])
        for split in SPLITS
    ]
    missing = [name for name in DATASETS if name not in (*datasets, "demo", "stars", *DESCRIBED)]
    return Chart(series, datasets, tuple(f"{command_for(name, 'manifest')}, then fig13 again" for name in missing))
