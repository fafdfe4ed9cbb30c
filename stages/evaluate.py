"""Score the test images with the best model, once.

Writes runs/evaluate: metrics.json, predictions.parquet (a distribution's shares, too) and predictions.csv, for plots;
and the model's folder (charm.hub), which scores other images without anything else.
"""

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from charm.hub import write_model_folder
from charm.model.metrics import METRICS, bootstrap_intervals, score_agreement
from charm.runtime.devices import choose_device
from charm.runtime.disk import atomic_write
from charm.runtime.errors import UserError
from pipeline.inputs import build_tokenizer, count_draws
from pipeline.params import Params
from pipeline.store import read_record, write_json
from pipeline.training.artifacts import DATA, Inputs
from pipeline.training.draws import EveryDraw, LastImage
from pipeline.training.loader import Loader
from pipeline.training.predictions import predict
from pipeline.training.publish import describe_scorer
from pipeline.training.trained import load_trained
from stages import run_stage

OUT = Path("runs/evaluate")


def main(params: Params) -> None:
    device = choose_device(params.hardware.device)
    inputs = Inputs(params)
    model, config = load_trained(Path("runs/train"), params, inputs.manifest)
    model.to(device)

    # Predict
    test, bins = inputs.manifest.of_split("test"), inputs.manifest.bins
    tokenizer = build_tokenizer(params, model.patch_size)
    draws = count_draws(params, tokenizer)
    if draws > 1:
        inputs.images = LastImage(inputs.images)
    dataset = inputs.evaluation_data(test, tokenizer)
    sampler = EveryDraw(len(test.table), params.train.batch_size, draws)
    loader = Loader(dataset, sampler, params.hardware.loader_workers, device)
    # Weighted by the unit matrix instead of the bins, a prediction is its distribution instead of its mean.
    found = predict(model, loader, inputs.pos_embeds.to(device), np.eye(len(bins)))
    shares = found.predicted.reshape(-1, draws, len(bins))
    scores = shares @ bins  # (N, draws)
    targets, facts = found.target[::draws] @ bins, inputs.manifest.facts
    agreement = _rate(scores.mean(axis=1), targets, facts["accuracy_threshold"], params.seed)
    low, high = facts["score_range"]
    predictions = {  # on the scale of the labels, as charm.scorer gives them
        "key": found.keys[::draws],
        "name": test.table["name"].to_pylist(),
        "target": low + (high - low) * targets,
        "predicted": low + (high - low) * scores.mean(axis=1),
        "spread": (high - low) * scores.std(axis=1),
    }

    # Publish
    OUT.mkdir(parents=True, exist_ok=True)
    metrics = agreement | _describe(params, facts, config, scores)
    write_json(OUT / "metrics.json", metrics)
    _write_csv(OUT / "predictions.csv", predictions)
    distributions = {"distribution": shares.mean(axis=1).tolist()} if len(bins) > 1 else {}
    with atomic_write(OUT / "predictions.parquet") as file:
        pq.write_table(pa.table(predictions | distributions), file, compression="zstd", write_page_checksum=True)
    about = describe_scorer(params, facts, config, metrics, inputs.pos_embeds.facts)
    write_model_folder(OUT / "model", model.state_dict(), about)
    shown = "  ".join(f"{name.upper()} {_show(agreement, name)}" for name in ("plcc", "srcc", "acc"))
    print(f"evaluate: {len(scores)} test images  {shown}")


def _rate(predicted: np.ndarray, target: np.ndarray, threshold: float, seed: int) -> dict[str, float | None]:
    """Each metric with the ends of its interval, `srcc`, `srcc_low`, `srcc_high`; None where undefined."""
    points = score_agreement(predicted, target, threshold)
    intervals = bootstrap_intervals(predicted, target, threshold, seed)
    found: dict[str, float] = {}
    for name in METRICS:
        low, high = intervals[name]
        found |= {name: points[name], f"{name}_low": low, f"{name}_high": high}
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def _describe(params: Params, facts: dict[str, Any], config: dict[str, Any], scores: np.ndarray) -> dict[str, Any]:
    """What the numbers are of: whether two runs can be compared, and what was left out.

    scores: float64 (N, draws), on the scale of 0..1.
    """
    told = ("dataset", "split_sha256", "listed", "packed", "rejected", "leaks", "notes")
    described = {name: facts[name] for name in told}
    column = DATA / "importance" / params.selection / "column.json"
    if params.selection == "saliency" and column.is_file():  # it is not where shards are read from hardware.remote
        try:
            described["saliency_empty_rate"] = read_record(column)["empty_rate"]
        except (ValueError, LookupError) as error:
            raise UserError(f"{column.parent}: damaged ({error}); run dvc repro") from error
    return described | {
        "scored": len(scores),
        "draws": scores.shape[1],
        "draw_spread": float(scores.std(axis=1).mean()),
        "best_epoch": config["best_epoch"],
    }


def _show(agreement: dict[str, float | None], name: str) -> str:
    value, low, high = (agreement[f"{name}{end}"] for end in ("", "_low", "_high"))
    return "undefined" if value is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _write_csv(path: Path, predictions: dict[str, Any]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(predictions)
    for key, name, *numbers in zip(*predictions.values(), strict=True):
        writer.writerow([key, name, *(f"{number:.6f}" for number in numbers)])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


if __name__ == "__main__":
    run_stage(main)
