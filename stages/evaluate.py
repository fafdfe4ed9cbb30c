"""Score the test pictures with the best model, once.

Writes runs/evaluate: metrics.json and predictions.csv.
"""

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from charm.metrics import score_agreement
from pipeline.inputs import Inputs
from pipeline.loader import Loader
from pipeline.models import choose_device
from pipeline.params import Params
from pipeline.predictions import predict
from pipeline.sampler import EpochSampler
from pipeline.store import write_json, write_whole
from pipeline.tokenizers import build_tokenizer
from pipeline.trained import load_trained
from stages import run_stage

OUT = Path("runs/evaluate")


def main(params: Params) -> None:
    device = choose_device(params.hardware.device)
    inputs = Inputs(params)
    model, config = load_trained(Path("runs/train"), params, inputs.manifest)
    model.to(device)

    test = inputs.manifest.of_split("test")
    facts = inputs.manifest.facts
    sampler = EpochSampler(len(test.table), params.train.batch_size, params.seed, shuffle=False)
    dataset = inputs.dataset(test, build_tokenizer(params, model.patch_size))
    loader = Loader(dataset, sampler, params.hardware.loader_workers, device)
    pos_embeds = inputs.pos_embeds.to(device)
    draws = []
    for draw in range(params.evaluate.draws):
        sampler.epoch = draw  # of the patches; the pictures are the same
        found = predict(model, loader, pos_embeds, inputs.manifest.bins)
        draws.append(found.predicted)
    predicted, spread = np.mean(draws, axis=0), np.std(draws, axis=0)

    OUT.mkdir(parents=True, exist_ok=True)
    agreement = score_agreement(predicted, found.target, facts["accuracy_threshold"])
    metrics: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in agreement.items()}
    metrics |= {"scored": len(found.keys), "best_epoch": config["best_epoch"], "draw_spread": float(spread.mean())}
    metrics |= {name: facts[name] for name in ("listed", "packed", "rejected", "split_sha256")}
    write_json(OUT / "metrics.json", metrics)
    names = test.table["name"].to_pylist()
    _write_predictions(OUT / "predictions.csv", names, found.keys, found.target, predicted, spread)
    shown = "  ".join(f"{name.upper()} {agreement[name]:.3f}" for name in ("plcc", "srcc", "acc"))
    print(f"evaluate: {len(found.keys)} test pictures  {shown}")


def _write_predictions(
    path: Path, names: list[str], keys: list[str], target: np.ndarray, predicted: np.ndarray, spread: np.ndarray
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "name", "target", "predicted", "spread"])
    for key, name, *numbers in zip(keys, names, target, predicted, spread, strict=True):
        writer.writerow([key, name, *(f"{number:.6f}" for number in numbers)])
    with write_whole(path) as file:
        file.write(text.getvalue().encode())


if __name__ == "__main__":
    run_stage(main)
