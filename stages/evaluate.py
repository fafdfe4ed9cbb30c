"""Score the test images with the best model, once.

Writes runs/evaluate: metrics.json, predictions.parquet (a distribution's shares, too) and predictions.csv, for plots;
and the model's folder (charm.hub), which scores other images without anything else.
"""

import csv
import io
import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from charm.hub import CARD_TEMPLATE, write_model_folder
from charm.model.metrics import METRICS, bootstrap_intervals, score_agreement
from charm.model.vit import CharmViT
from charm.runtime.devices import choose_device
from charm.runtime.disk import atomic_write, file_sha256, fingerprint
from pipeline.settings.inputs import build_tokenizer, count_draws
from pipeline.settings.params import Params
from pipeline.training.artifacts import Inputs
from pipeline.training.draws import EveryDraw, LastImage
from pipeline.training.loader import Loader
from pipeline.training.predictions import predict
from pipeline.training.publish import describe_masks, describe_scorer
from pipeline.training.trained import load_trained
from pipeline.work.code import run_digest
from pipeline.work.store import keep_finished, publish_finished, store_folder, write_json
from stages import run_stage

TRAINED, OUT = Path("runs/train"), Path("runs/evaluate")


def main(params: Params) -> None:
    inputs = Inputs(params)
    model, config = load_trained(TRAINED, params, inputs.manifest)
    made_from = _fingerprint(params, inputs, config)
    if publish_finished("evaluated", made_from, OUT):
        print("evaluate: finished before, published again")
        return
    with tempfile.TemporaryDirectory(dir=store_folder("evaluated"), prefix=".making-") as folder:
        evaluate(params, inputs, model, config, Path(folder))
        keep_finished("evaluated", made_from, Path(folder))
    publish_finished("evaluated", made_from, OUT)


def evaluate(params: Params, inputs: Inputs, model: CharmViT, config: dict[str, Any], out: Path) -> None:
    """Scores the test images with a model and its description; writes what is published to the folder `out`."""
    device = choose_device(params.hardware.device)
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
    metrics = agreement | _describe(params, facts, config, scores)
    write_json(out / "metrics.json", metrics)
    _write_csv(out / "predictions.csv", predictions)
    distributions = {"distribution": shares.mean(axis=1).tolist()} if len(bins) > 1 else {}
    with atomic_write(out / "predictions.parquet") as file:
        pq.write_table(pa.table(predictions | distributions), file, compression="zstd", write_page_checksum=True)
    about = describe_scorer(params, facts, config, metrics, inputs.pos_embeds.facts)
    write_model_folder(out / "model", model.state_dict(), about)
    shown = "  ".join(f"{name.upper()} {_show(agreement, name)}" for name in ("plcc", "srcc", "acc"))
    print(f"evaluate: {len(scores)} test images  {shown}")


def _fingerprint(params: Params, inputs: Inputs, config: dict[str, Any]) -> str:
    """Returns the sha256 of what the evaluation reads, its params and its files, and of the code that it runs."""
    settings = asdict(params)
    chosen = [
        "dataset",
        "selection",
        "tokenizer",
        "backbone",
        "max_seq_len",
        "seed",
        "tokens",
        "evaluate",
        "importance",
    ]
    facts = inputs.manifest.facts, describe_masks(params), inputs.pos_embeds.facts
    code = run_digest("stages.evaluate"), file_sha256(CARD_TEMPLATE)
    return fingerprint({name: settings[name] for name in chosen}, code, config, facts, inputs.sha256s)


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
    column = describe_masks(params)
    if column is not None:
        described["saliency_empty_rate"] = column["empty_rate"]
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
