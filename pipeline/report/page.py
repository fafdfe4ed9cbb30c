"""The report: one HTML page, of what a run left in its folders, that needs no other file and no network.

Equal inputs give equal bytes. Names and labels are somebody else's text: the template escapes all that it is given.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from charm.drawing import draw_line, make_axis, render_page
from charm.hub import read_config
from charm.images.reasons import REASONS
from charm.model.config import LEVEL, METRICS, Calibration, ModelConfig, list_doubts
from charm.model.metrics import accuracy, concordance, mae
from pipeline.manifest.table import Manifest, read_manifest
from pipeline.pos_embeds.axes import read_area
from pipeline.report.gallery import Scored, choose_images, make_contact_sheet, show_image
from pipeline.settings.inputs import build_cutter, build_tokenizer
from pipeline.settings.params import Params
from pipeline.settings.recipes import flatten
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader
from pipeline.training.results import read_results, read_rows
from pipeline.work.store import damaged

MAX_POINTS = 2000  # of the scatter plot, some 150 bytes each


def render_report(params: Params, data: Path, runs: Path) -> str:
    """Renders the page of the run in the folders `data` and `runs`; UserError if a file is missing or damaged."""
    config = _read_config(runs / "train")
    results = read_results(runs / "evaluate" / "metrics.json")
    history = [{name: float(value) for name, value in row.items()} for row in read_rows(runs / "train" / "history.csv")]
    scored = _read_predictions(runs / "evaluate" / "predictions.csv")
    manifest = read_manifest(data / "manifest")
    facts = manifest.facts
    tokenizer = build_tokenizer(params, config.tokenizer.cutter["patch_size"])

    groups = manifest.table["group"].to_pylist()
    known = {row[0]: row[1:] for row in zip(manifest.keys, manifest.image_hws, groups, strict=True)}
    image_hws = [known[row.key][0] for row in scored]
    scenes = [known[row.key][1] or row.key for row in scored]
    chosen = choose_images(scored, image_hws, scenes, tokenizer, params.report.gallery)
    images = ShardReader(data / "shards")
    sheet = masks = None
    if tokenizer.reads == "saliency":
        folder = data / "importance"
        names = dict(zip(manifest.keys, manifest.table["name"].to_pylist(), strict=True))
        sheet, masks = make_contact_sheet(folder, images, names), ColumnReader(folder, images)
    gallery = [
        show_image(row, images.read_image(row.key), tokenizer, params.seed, masks.read_mask(row.key) if masks else None)
        for row in chosen
    ]

    return render_page(
        Path(__file__).with_name("report.html.jinja"),
        params=params,
        config=config,
        facts=facts,
        dataset=Path(params.labels).name if params.dataset == "csv" else facts.dataset,
        metrics={name: tuple(results.evaluation.metrics[name].values()) for name in METRICS},
        baseline=_rate_constant(manifest, scored),
        ranked_right=concordance(*(np.array([getattr(row, side) for row in scored]) for side in ("raw", "target"))),
        results=results,
        doubts=list_doubts(facts.dataset, config.training.started_from, results.evaluation, config.solved),
        rejected=[(reason, count, REASONS.get(reason, "")) for reason, count in results.rejected.items()],
        training=_plot_training(history, config.training.best_epoch),
        heads=_plot_heads(read_rows(runs / "train" / "heads.csv")) if config.solved else None,
        scatter=_plot_scatter(scored, chosen),
        level=LEVEL,
        coverage=_plot_coverage(_read_config(runs / "evaluate" / "model").calibration, scored),
        gallery=gallery,
        area=read_area(data / "pos_embeds"),
        sheet=sheet,
        tokenizer=tokenizer,
        shows=params.input_settings.shows,
        coarse_patch_size=build_cutter(params, tokenizer.patch_size).coarse_patch_size,
        settings=list_settings(asdict(params)),
    )


def _rate_constant(manifest: Manifest, scored: list[Scored]) -> dict[str, float]:
    """Rates predictions of no model on the test images: the mean training label, and the more frequent side of ACC."""
    low, high = manifest.facts.score_range
    threshold = manifest.facts.accuracy_threshold
    labels = low + (high - low) * (manifest.of_split("train").targets @ manifest.unit_bins)
    targets = np.array([row.target for row in scored])
    # Above the threshold by what float32 leaves of a label: see charm.model.metrics.accuracy.
    is_good = np.mean(labels > threshold + 1e-6 * (high - low)) > 0.5
    sides = np.full_like(targets, high if is_good else low)
    mean = float(labels.mean())
    return {
        "constant": mean,
        "acc": accuracy(sides, targets, threshold),
        "mae": mae(np.full_like(targets, mean), targets),
    }


def list_settings(settings: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Lists params.yaml by section, the top level first under "": [(section, [(key, value), ...]), ...]."""
    top = [(key, _show_value(value)) for key, value in settings.items() if not isinstance(value, dict)]
    sections = [
        (key, [(name, _show_value(one)) for name, one in flatten(value).items()])
        for key, value in settings.items()
        if isinstance(value, dict)
    ]
    return [("", top), *sections]


def _show_value(value: Any) -> str:
    """As params.yaml has it."""
    if isinstance(value, list):
        return ", ".join(map(_show_value, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "\N{EN DASH}" if value is None else str(value)


def _plot_training(history: list[dict[str, float]], best_epoch: int) -> dict[str, Any]:
    """Draws two plots over the same epochs, 440 x 260 pixels each."""
    epochs = [row["epoch"] for row in history]
    columns = {name: [row[name] for row in history] for name in ("train_loss", "val_srcc", "val_plcc")}
    x = make_axis(epochs, 62, 428, least_step=1)
    loss_y = make_axis(columns["train_loss"], 218, 14)
    val_y = make_axis(columns["val_srcc"] + columns["val_plcc"], 218, 14)
    return {
        "x": x,
        "loss_y": loss_y,
        "val_y": val_y,
        "loss": draw_line(x, loss_y, epochs, columns["train_loss"]),
        "srcc": draw_line(x, val_y, epochs, columns["val_srcc"]),
        "plcc": draw_line(x, val_y, epochs, columns["val_plcc"]),
        "best_epoch": best_epoch,
        "best": history[best_epoch - 1],
        "epochs": len(history),
    }


def _plot_heads(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Plots SRCC and its interval by layer, 440 x 260 pixels, for each kind of head beside the others."""
    tried = [[float(row[name]) for name in ("layer", "srcc", "low", "high")] for row in rows]
    kinds = list(dict.fromkeys(row["head"] for row in rows))
    x = make_axis([tried[0][0] - 1, tried[-1][0] + 1], 62, 428, least_step=1)
    y = make_axis([value for _, *values in tried for value in values], 218, 14)
    series = []
    for place, kind in enumerate(kinds):
        of_kind = [one for one, row in zip(tried, rows, strict=True) if row["head"] == kind]
        xs = [one[0] + 0.12 * (place - (len(kinds) - 1) / 2) for one in of_kind]
        bars = [draw_line(x, y, [at, at], one[2:]) for at, one in zip(xs, of_kind, strict=True)]
        series.append({"head": kind, "line": draw_line(x, y, xs, [one[1] for one in of_kind]), "bars": "".join(bars)})
    return {"x": x, "y": y, "series": series, "rows": rows, "chosen": next(row for row in rows if row["chosen"] == "1")}


def _plot_scatter(scored: list[Scored], chosen: list[Scored]) -> dict[str, Any]:
    """Plots predicted over true scores, 440 x 440 pixels, one scale on both axes; gallery images last."""
    values = [value for row in scored for value in (row.target, row.predicted)]
    x, y = make_axis(values, 62, 428), make_axis(values, 394, 28)
    every = math.ceil(len(scored) / MAX_POINTS)
    return {
        "x": x,
        "y": y,
        "points": [row for row in scored[::every] if row not in chosen],
        "chosen": chosen,
        "shown": len(scored[::every]),
        "scored": len(scored),
    }


def _plot_coverage(calibration: Calibration | None, scored: list[Scored]) -> dict[str, Any] | None:
    """Plots the fraction of test images within their interval over its level, 440 x 440 pixels; None without intervals.

    A level that the validation images are too few for has no point.
    """
    if calibration is None or calibration.reach(LEVEL) is None:
        return None
    levels = [step / 20 for step in range(1, 20)]
    errors = np.array([abs(row.predicted - row.target) for row in scored])
    reaches = [calibration.reach(level) for level in levels]
    found = [math.nan if reach is None else float(np.mean(errors <= reach + 1e-9)) for reach in reaches]
    x, y = make_axis([0, 1], 62, 428), make_axis([0, 1], 394, 28)
    line = draw_line(x, y, levels, found)
    return {"x": x, "y": y, "line": line, "images": calibration.images}


def _read_config(folder: Path) -> ModelConfig:
    try:
        return read_config(folder)[0]
    except (OSError, ValueError) as error:
        raise damaged(folder / "config.json", error) from error


def _read_predictions(path: Path) -> list[Scored]:
    return [
        Scored(row["key"], row["name"], *(float(row[name]) for name in ("target", "predicted", "raw")))
        for row in read_rows(path)
    ]
