import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from charm import CharmScorer, CharmTokenizer
from charm.hub import read_model, write_model_folder
from charm.images.decode import decode_image
from charm.model.config import METRICS
from charm.model.metrics import srcc
from charm.runtime.errors import UserError
from pipeline.manifest.table import read_manifest
from pipeline.settings.params import EvaluateParams, Params
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader
from pipeline.training.predictions import Predictions, predict
from pipeline.training.sampler import SampleRef
from pipeline.work.store import read_record, store_folder, write_record
from stages import evaluate

Workspace = tuple[Path, Params]


def run(folder: Path, params: Params) -> tuple[dict[str, Any], dict[str, list[str]]]:
    shutil.rmtree(
        store_folder("evaluated")
    )  # what another test changes is not in the code that finished runs are known by
    evaluate.main(params)
    metrics = json.loads((folder / "runs/evaluate/metrics.json").read_text())
    with (folder / "runs/evaluate/predictions.csv").open() as text:
        rows = list(csv.DictReader(text))
    return metrics, {name: [row[name] for row in rows] for name in rows[0]}


def test_every_test_image_is_scored_once_and_the_metrics_are_theirs(workspace: Workspace) -> None:
    folder, params = workspace
    metrics, predictions = run(folder, params)
    assert predictions["key"] == read_manifest(folder / "data/manifest").of_split("test").keys
    predicted, target = (np.array(predictions[name], float) for name in ("predicted", "target"))
    assert metrics["srcc"] == pytest.approx(srcc(predicted, target))
    assert (metrics["scored"], metrics["listed"], metrics["packed"]) == (6, 30, 27)
    assert metrics["rejected"] == {"corrupt": 1, "empty": 1, "missing": 1}
    assert (metrics["dataset"], metrics["draws"]) == ("csv", 4)
    assert metrics["draw_spread"] > 0
    once, _ = run(folder, replace(params, evaluate=EvaluateParams(draws=1)))
    assert (once["draws"], once["draw_spread"]) == (1, None)  # of one draw nobody knows


def test_metrics_have_the_validation_scores_and_those_of_the_training_images_if_asked(workspace: Workspace) -> None:
    folder, params = workspace
    metrics, _ = run(folder, params)
    with (folder / "runs/train/history.csv").open() as text:
        best = list(csv.DictReader(text))[metrics["best_epoch"] - 1]
    assert {name: metrics[name] for name in ("val_plcc", "val_srcc", "val_acc")} == {
        name: float(best[name]) for name in ("val_plcc", "val_srcc", "val_acc")
    }
    assert metrics["parameters"] == sum(tensor.numel() for tensor in read_model(folder / "runs/train").tensors.values())
    assert [metrics[f"train_{name}"] for name in ("plcc", "srcc", "acc")] == [None] * 3

    asked, _ = run(folder, replace(params, evaluate=EvaluateParams(draws=4, train_scores=True)))
    assert asked["srcc"] == metrics["srcc"]
    model = CharmScorer.from_pretrained(folder / "runs/evaluate/model", device="cpu")
    train = read_manifest(folder / "data/manifest").of_split("train")
    images = [ShardReader(folder / "data/shards").read_image(key) for key in train.keys]
    once = [score.raw for score in model(images, draws=1)]
    assert asked["train_srcc"] == pytest.approx(srcc(np.array(once), train.targets[:, 0]))
    assert asked["train_srcc"] != asked["srcc"]


def test_validation_errors_are_in_the_models_folder(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, params = workspace
    metrics, _ = run(folder, params)
    assert (
        "evaluate: no intervals of 90%: 6 validation images are too few: expected at least 9" in capsys.readouterr().out
    )
    assert metrics["interval_reach"] is metrics["interval_coverage"] is None

    model = CharmScorer.from_pretrained(folder / "runs/evaluate/model", device="cpu")
    val = read_manifest(folder / "data/manifest").of_split("val")
    scores = model([ShardReader(folder / "data/shards").read_image(key) for key in val.keys])
    errors = np.sort(np.abs([one.score for one in scores] - (1 + 4 * val.targets[:, 0])))
    calibration = model.config.calibration
    assert calibration is not None
    np.testing.assert_allclose(calibration.errors, errors, atol=1e-5)
    assert scores[0].interval(0.9) is None
    assert scores[0].interval(0.5) == pytest.approx(
        (max(1, scores[0].score - errors[3]), min(5, scores[0].score + errors[3])), abs=1e-5
    )

    monkeypatch.setattr(evaluate, "LEVEL", 0.5)
    metrics, predictions = run(folder, params)
    assert metrics["interval_reach"] == pytest.approx(errors[3], abs=1e-5)
    missed = np.abs(np.array(predictions["predicted"], float) - np.array(predictions["target"], float))
    assert metrics["interval_coverage"] == pytest.approx(np.mean(missed <= errors[3]))


def test_predictions_do_not_depend_on_the_batch_size_or_the_workers(workspace: Workspace) -> None:
    folder, params = workspace
    _, together = run(folder, params)
    alone = replace(params, train=replace(params.train, batch_size=1))
    _, one_by_one = run(folder, replace(alone, hardware=replace(params.hardware, loader_workers=2)))
    np.testing.assert_allclose(
        np.array(together["predicted"], float), np.array(one_by_one["predicted"], float), atol=1e-5
    )


def test_several_draws_are_averaged_and_their_spread_reported(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draws are those of the epochs 0, 1 and 2, as if each were a pass of its own."""
    folder, params = workspace
    metrics, predictions = run(folder, replace(params, evaluate=EvaluateParams(draws=3)))
    passes = []
    for draw in range(3):
        monkeypatch.setattr(
            evaluate.EveryDraw, "__iter__", lambda self, draw=draw: iter([[SampleRef(draw, row) for row in range(6)]])
        )
        once = replace(params, evaluate=EvaluateParams(draws=1))
        passes.append(np.array(run(folder, once)[1]["raw"], float))
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    np.testing.assert_allclose(np.array(predictions["raw"], float), np.mean(passes, axis=0), atol=2e-6)
    np.testing.assert_allclose(np.array(predictions["spread"], float), np.std(passes, axis=0), atol=2e-6)
    spread = np.array(predictions["spread"], float)
    assert spread.max() > 1e-4
    assert metrics["draw_spread"] == pytest.approx(spread.mean(), abs=1e-6)


def test_each_metric_lies_between_the_ends_of_its_interval(workspace: Workspace) -> None:
    folder, params = workspace
    metrics, _ = run(folder, params)
    for name in METRICS:
        low, value, high = (metrics[f"{name}{end}"] for end in ("_low", "", "_high"))
        assert low <= value <= high
        assert low < high


def test_both_tables_of_predictions_say_the_same(workspace: Workspace) -> None:
    folder, params = workspace
    _, predictions = run(folder, params)
    table = pq.read_table(folder / "runs/evaluate/predictions.parquet", page_checksum_verification=True)
    assert table.column_names == ["key", "name", "target", "predicted", "spread", "raw"]
    assert table["key"].to_pylist() == predictions["key"]
    assert table["name"].to_pylist() == predictions["name"]
    for name in ("target", "predicted", "spread", "raw"):
        np.testing.assert_allclose(table[name].to_numpy(), np.array(predictions[name], float), atol=1e-6)


def test_correlations_of_a_constant_prediction_are_undefined(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def predict_half(*arguments: Any) -> Predictions:
        found = predict(*arguments)
        return replace(found, predicted=np.full_like(found.predicted, 0.5))

    folder, params = workspace
    monkeypatch.setattr(evaluate, "predict", predict_half)
    metrics, _ = run(folder, params)
    ends = ("", "_low", "_high")
    assert {metrics[f"{name}{end}"] for name in ("plcc", "srcc", "krcc") for end in ends} == {None}
    assert isinstance(metrics["acc"], float)
    printed = capsys.readouterr().out
    assert "PLCC undefined  SRCC undefined  ACC 0." in printed
    last = printed.splitlines()[-2:]
    assert last[0].startswith("evaluate: warning: The backbone started from random weights")
    assert last[1].startswith("evaluate: warning: On the test images the order of the scores is no better than chance")
    evaluate.main(params)
    assert capsys.readouterr().out.splitlines() == ["evaluate: finished before, published again", *last]


def count_small(coverage: float) -> float:
    """Share of the test images whose object covers no coarse patch by as much."""
    masks = ColumnReader(Path("data/importance"), ShardReader(Path("data/shards")), "saliency")
    tokenizer = CharmTokenizer(patch_size=14, selection="saliency", saliency_coverage=coverage)
    keys = read_manifest(Path("data/manifest")).of_split("test").keys
    return sum(tokenizer.judge_mask(masks.read_mask(key)) == "small" for key in keys) / len(keys)


def test_what_the_manifest_and_the_column_say_of_the_data_is_told(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = workspace
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    facts = read_record(Path("data/manifest/dataset.json"))
    metrics, _ = run(Path(), params)
    assert {name: metrics[name] for name in ("split_sha256", "leaks", "notes")}.items() <= facts.items()
    assert metrics["saliency_empty_rate"] is None

    by_saliency = replace(params, selection="saliency")
    shutil.rmtree("data/importance")
    shutil.copytree("columns/saliency", "data/importance")
    column = Path("data/importance/column.json")
    saved = read_model("runs/train")
    cutter = saved.config.tokenizer.cutter | {"selection": "saliency"}
    changed = replace(saved.config, tokenizer=replace(saved.config.tokenizer, cutter=cutter))
    write_model_folder("runs/train", saved.tensors, changed)
    write_record(column, read_record(column) | {"empty_rate": 0.125})
    metrics, _ = run(Path(), by_saliency)
    assert metrics["saliency_empty_rate"] == 0.125
    assert metrics["saliency_small_rate"] == count_small(params.tokens.saliency_coverage)
    column.write_text(column.read_text()[:-20])
    with pytest.raises(UserError, match=r"importance/column.json: missing or damaged .*run dvc repro"):
        evaluate.main(by_saliency)


@pytest.mark.parametrize("redraw", ["epoch", "once"])
def test_the_models_folder_gives_the_same_scores_from_the_files_alone(
    redraw: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, alone or together; on the scale of the labels. Draws differ however the training drew."""
    folder, params = workspace
    params = replace(params, tokens=replace(params.tokens, redraw=redraw), evaluate=EvaluateParams(draws=2))
    load = evaluate.load_trained
    monkeypatch.setattr(evaluate, "load_trained", lambda at, _, manifest: load(at, workspace[1], manifest))
    metrics, predictions = run(folder, params)
    assert metrics["draw_spread"] > 1e-4
    scorer = CharmScorer.from_pretrained(str(folder / "runs/evaluate/model"))
    paths = [folder / "images" / name for name in predictions["name"]]
    images = [decode_image(path.read_bytes()).pixels for path in paths]
    expected = np.array(predictions["predicted"], float)
    assert np.ptp(expected) > 0.1
    together, alone = scorer(images[::-1])[::-1], [scorer(image) for image in images]
    for found in (together, alone):
        np.testing.assert_allclose([one.score for one in found], expected, atol=1e-5)
        np.testing.assert_allclose([one.spread for one in found], np.array(predictions["spread"], float), atol=1e-5)


def test_predictions_are_on_the_scale_of_the_labels(workspace: Workspace) -> None:
    folder, params = workspace
    _, predictions = run(folder, params)
    with (folder / "images/labels.csv").open() as text:
        stars = {row["file"]: float(row["stars"]) for row in csv.DictReader(text)}
    targets = [stars[name] for name in predictions["name"]]
    np.testing.assert_allclose(np.array(predictions["target"], float), targets, atol=1e-5)


def test_the_folder_says_what_the_model_is_and_how_good(workspace: Workspace) -> None:
    folder, params = workspace
    metrics, _ = run(folder, params)
    config = read_model(folder / "runs/evaluate/model").config
    assert config.evaluation is not None
    assert config.evaluation.metrics["srcc"] == {
        "value": metrics["srcc"],
        "low": metrics["srcc_low"],
        "high": metrics["srcc_high"],
    }
    assert config.data.split_sha256 == metrics["split_sha256"]
    assert config.labels.score_range == (1.0, 5.0)
    assert config.tokenizer.cutter["max_seq_len"] == 48
    assert config.draws == params.evaluate.draws == 4
    names = read_manifest(folder / "data/manifest").of_split("val").table["name"].to_pylist()
    images = [decode_image((folder / "images" / name).read_bytes()).pixels for name in names]
    raw = [one.raw for one in CharmScorer.from_pretrained(folder / "runs/evaluate/model", "cpu")(images)]
    assert config.val_percentiles == pytest.approx(np.percentile(raw, np.arange(101)), abs=1e-5)
    card = (folder / "runs/evaluate/model/README.md").read_text()
    head = YAML(typ="safe").load(card.split("---")[1])
    assert head["library_name"] == "charm"
    assert f"| SRCC | {metrics['srcc']:.3f} |" in card
    assert "a score from 1 to 5" in card
