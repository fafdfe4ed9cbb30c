import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from charm.metrics import srcc
from pipeline.manifest import read_manifest
from pipeline.params import EvaluateParams, Params
from stages import evaluate

Workspace = tuple[Path, Params]


def run(folder: Path, params: Params) -> tuple[dict[str, object], dict[str, list[str]]]:
    evaluate.main(params)
    metrics = json.loads((folder / "runs/evaluate/metrics.json").read_text())
    with (folder / "runs/evaluate/predictions.csv").open() as text:
        rows = list(csv.DictReader(text))
    return metrics, {name: [row[name] for row in rows] for name in rows[0]}


def test_every_test_picture_is_scored_once_and_the_metrics_are_theirs(workspace: Workspace) -> None:
    folder, params = workspace
    metrics, predictions = run(folder, params)
    assert predictions["key"] == read_manifest(folder / "data/manifest").of_split("test").keys
    predicted, target = (np.array(predictions[name], float) for name in ("predicted", "target"))
    assert metrics["srcc"] == pytest.approx(srcc(predicted, target))
    assert (metrics["scored"], metrics["listed"], metrics["packed"]) == (6, 30, 27)
    assert metrics["rejected"] == {"corrupt": 1, "empty": 1, "missing": 1}


def test_predictions_do_not_depend_on_the_batch_size_or_the_workers(workspace: Workspace) -> None:
    folder, params = workspace
    _, together = run(folder, params)
    alone = replace(params, train=replace(params.train, batch_size=1))
    _, one_by_one = run(folder, replace(alone, hardware=replace(params.hardware, loader_workers=2)))
    np.testing.assert_allclose(
        np.array(together["predicted"], float), np.array(one_by_one["predicted"], float), atol=1e-5
    )


def test_several_draws_are_averaged_and_their_spread_reported(workspace: Workspace) -> None:
    folder, params = workspace
    metrics, predictions = run(folder, replace(params, evaluate=EvaluateParams(draws=3)))
    spread = np.array(predictions["spread"], float)
    assert spread.max() > 0
    assert metrics["draw_spread"] == pytest.approx(spread.mean(), abs=1e-6)
