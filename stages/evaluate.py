"""Score the test images with the best model, once.

Writes runs/evaluate: metrics.json, predictions.parquet (a distribution's shares, too) and predictions.csv, for plots;
and the model's folder (charm.hub), which scores other images without anything else.
"""

import json
import math
import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from charm.hub import CARD_TEMPLATE, SavedModel, read_config, write_model_folder
from charm.model.bootstrap import rate
from charm.model.config import LEVEL, Calibration, format_metric
from charm.model.metrics import score_agreement
from charm.model.protocol import Model
from charm.runtime.devices import choose_device
from charm.runtime.disk import atomic_write, file_sha256, fingerprint, write_csv
from pipeline.manifest.table import Manifest
from pipeline.settings.inputs import build_tokenizer, count_draws
from pipeline.settings.params import Params
from pipeline.training.artifacts import Inputs
from pipeline.training.loader import Loader
from pipeline.training.predictions import Predictions, predict
from pipeline.training.publish import describe_masks, load_trained
from pipeline.training.results import Results, read_rows
from pipeline.training.sampler import EveryDraw
from pipeline.training.steps import explaining_memory
from pipeline.training.tracker import RUN, open_tracker
from pipeline.work.code import run_digest
from pipeline.work.store import keep_finished, publish_finished, store_folder
from stages import run_stage

PAPERS = ("plcc", "srcc", "acc")  # the metrics that the paper has
TRAINED, OUT = Path("runs/train"), Path("runs/evaluate")


def main(params: Params) -> None:
    inputs = Inputs(params)
    model, saved = load_trained(TRAINED, params, inputs)
    made_from = _fingerprint(params, inputs, saved)
    if publish_finished("evaluated", made_from, OUT):
        print("evaluate: finished before, published again")
    else:
        with tempfile.TemporaryDirectory(dir=store_folder("evaluated"), prefix=".making-") as folder:
            tracker = open_tracker((TRAINED / RUN).read_text(), "evaluate", params)
            with closing(tracker):
                evaluate(params, inputs, model, saved, Path(folder))
                tracker.add_metrics(json.loads((Path(folder) / "metrics.json").read_bytes()))
            keep_finished("evaluated", made_from, Path(folder))
        publish_finished("evaluated", made_from, OUT)
    for doubt in read_config(OUT / "model")[0].doubts:
        print(f"evaluate: warning: {doubt}")


def evaluate(params: Params, inputs: Inputs, model: Model, saved: SavedModel, out: Path) -> None:
    """Scores the test images with a model and writes what is published to the folder `out`."""
    model.to(choose_device(params.hardware.device))

    # Predict
    test, unit_bins = inputs.manifest.of_split("test"), inputs.manifest.unit_bins
    draws = count_draws(params, build_tokenizer(params, model.patch_size))
    found, shares = _predict(params, inputs, model, test, draws)
    unit_scores = shares @ unit_bins  # (N, draws)
    unit_targets, facts = found.target[::draws] @ unit_bins, inputs.manifest.facts
    evaluation = rate(unit_scores, unit_targets, facts.score_range, facts.accuracy_threshold, params.seed)
    low, high = facts.score_range
    raw = low + (high - low) * unit_scores.mean(axis=1)
    # Training chose its best epoch by these images, which may make their errors a little too small: the coverage on the
    # test images is measured.
    val, val_shares = _predict(params, inputs, model, inputs.manifest.of_split("val"), draws)
    val_raw = low + (high - low) * (val_shares @ unit_bins).mean(axis=1)
    val_targets = low + (high - low) * (val.target[::draws] @ unit_bins)
    calibration = Calibration.of(val_raw.clip(low, high), val_targets)
    predictions = {  # on the scale of the labels, as charm.scorer gives them
        "key": found.keys[::draws],
        "name": test.table["name"].to_pylist(),
        "target": low + (high - low) * unit_targets,
        "predicted": raw.clip(low, high),
        "spread": (high - low) * unit_scores.std(axis=1) if draws > 1 else [None] * len(raw),
        "raw": raw,
    }

    # Publish
    masks = describe_masks(params)
    results = Results(
        evaluation=evaluation,
        cross_validation=saved.config.solved.cross_validation if saved.config.solved else None,
        **_rate_intervals(calibration, predictions),
        draws=draws,
        best_epoch=saved.config.training.best_epoch,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        **_validation_scores(saved.config.training.best_epoch),
        **_training_scores(params, inputs, model),
        dataset=facts.dataset,
        split_sha256=facts.split_sha256,
        listed=facts.listed,
        packed=facts.packed,
        rejected=facts.rejected,
        leaks=facts.leaks,
        notes=facts.notes,
        saliency_empty_rate=masks["empty_rate"] if masks else None,
        saliency_small_rate=float(found.is_small.mean()) if masks else None,
    )
    results.write(out / "metrics.json")
    columns = [_format(predictions[name]) for name in ("target", "predicted", "spread", "raw")]
    rows = zip(predictions["key"], predictions["name"], *columns, strict=True)
    write_csv(out / "predictions.csv", list(predictions), list(rows))
    distributions = {"distribution": shares.mean(axis=1).tolist()} if len(unit_bins) > 1 else {}
    spread = {"spread": pa.array(predictions["spread"], pa.float64())}
    with atomic_write(out / "predictions.parquet") as file:
        table = pa.table(predictions | spread | distributions)
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    percentiles = np.percentile(val_raw, np.arange(101)).tolist()
    found_out = {"evaluation": evaluation, "val_percentiles": percentiles, "calibration": calibration}
    write_model_folder(out / "model", model.state_dict(), replace(saved.config, draws=draws, **found_out))
    shown = "  ".join(f"{name.upper()} {format_metric(**evaluation.metrics[name])}" for name in PAPERS)
    print(f"evaluate: {len(raw)} test images  {shown}")


def _predict(
    params: Params, inputs: Inputs, model: Model, split: Manifest, draws: int
) -> tuple[Predictions, np.ndarray]:
    """Predicts every draw of some images; returns them, and the shares of the bins, float64 (N, draws, num_bins)."""
    dataset = inputs.evaluation_data(split, build_tokenizer(params, model.patch_size))
    device, num_bins = next(model.parameters()).device, len(inputs.manifest.unit_bins)
    sampler = EveryDraw(len(split.table), params.hardware.micro_batch or params.train.batch_size, draws)
    loader = Loader(dataset, sampler, params.hardware.loader_workers, device)
    # Weighted by the unit matrix instead of the bins, a prediction is its distribution instead of its mean.
    with explaining_memory(sampler):
        found = predict(model, loader, inputs.pos_embeds.to(device), np.eye(num_bins))
    return found, found.predicted.reshape(-1, draws, num_bins)


def _rate_intervals(calibration: Calibration, predictions: dict[str, Any]) -> dict[str, float | None]:
    """Counts the test images whose label lies within their interval of LEVEL; None each where there is no interval."""
    reach = calibration.reach(LEVEL)
    if reach is None:
        told = f"{calibration.images} validation images are too few: expected at least {LEVEL / (1 - LEVEL):.0f}"
        print(f"evaluate: no intervals of {LEVEL:.0%}: {told}")
        return {"interval_reach": None, "interval_coverage": None}
    is_held = np.abs(predictions["predicted"] - predictions["target"]) <= reach + 1e-9
    return {"interval_reach": reach, "interval_coverage": float(is_held.mean())}


def _validation_scores(best_epoch: int) -> dict[str, float | None]:
    """Returns what training found on the validation images when it made the model."""
    record = read_rows(TRAINED / "history.csv")[best_epoch - 1]
    scores = {f"val_{name}": float(record[f"val_{name}"]) for name in PAPERS}
    return {name: None if math.isnan(score) else score for name, score in scores.items()}


def _training_scores(params: Params, inputs: Inputs, model: Model) -> dict[str, float | None]:
    """Scores the training images as the test images are, by one draw each; None each unless params ask for it."""
    if not params.evaluate.train_scores:
        return {f"train_{name}": None for name in PAPERS}
    found, shares = _predict(params, inputs, model, inputs.manifest.of_split("train"), 1)
    bins = inputs.manifest.unit_bins
    scores = score_agreement(shares[:, 0] @ bins, found.target @ bins, inputs.manifest.unit_threshold)
    return {f"train_{name}": None if math.isnan(scores[name]) else scores[name] for name in PAPERS}


def _fingerprint(params: Params, inputs: Inputs, saved: SavedModel) -> str:
    """Returns the sha256 of what the evaluation reads, its params and its files, and of the code that it runs."""
    settings = asdict(params)
    chosen = ["selection", "max_seq_len", "seed", "tokens", "evaluate"]
    read = {name: settings[name] for name in chosen} | {params.tokenizer: settings["inputs"][params.tokenizer]}
    trained = saved.config.to_json(), saved.weights_sha256
    facts = asdict(inputs.manifest.facts), describe_masks(params), inputs.describe()
    return fingerprint(read, trained, facts, run_digest("stages.evaluate"), file_sha256(CARD_TEMPLATE))


def _format(numbers: Iterable[float | None]) -> list[str | None]:
    return [None if number is None else f"{number:.6f}" for number in numbers]


if __name__ == "__main__":
    run_stage(main)
