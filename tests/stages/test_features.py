"""The column of features, and the head that `train` solves on it: labels are distributions over three bins."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from charm import CharmScorer
from charm.hub import read_config
from charm.model.frozen import hash_weights, layer_features
from charm.runtime.errors import UserError
from pipeline.features import head, make
from pipeline.features.read import read_features
from pipeline.features.start import start_frozen
from pipeline.manifest.table import read_manifest
from pipeline.settings.inputs import build_tokenizer
from pipeline.settings.params import FeatureParams, Params
from pipeline.shards.read import ShardReader
from pipeline.training.artifacts import Inputs
from pipeline.training.loader import collate
from pipeline.training.predictions import gather_arguments
from pipeline.training.sampler import SampleRef
from pipeline.work.store import read_record
from stages import evaluate, features, importance, manifest, pos_embeds, report, shards, train
from tests.no_cluster import use_no_cluster
from tests.stages.conftest import small_params, write_images

PARTS = ["cls", "native", "coarse"]
Workspace = tuple[Path, Params]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A working folder up to `evaluate`, with a head that was solved on two draws of each image."""
    folder = tmp_path_factory.mktemp("solved")
    write_images(folder / "images")
    lines = (folder / "images/labels.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    high = [(float(stars) - 1) / 4 for _, stars, _ in rows]  # shares of the bins 1, 3 and 5 whose mean is the score
    told = [f"{name},{1 - h:.4f},0,{h:.4f},{part}" for (name, _, part), h in zip(rows, high, strict=True)]
    (folder / "images/labels.csv").write_text("\n".join(["file,one,three,five,part", *told]) + "\n")
    params = small_params(folder / "images")
    params = replace(
        params,
        manifest=replace(params.manifest, score_columns=["one", "three", "five"]),
        train=replace(params.train, mode="head"),
        features=FeatureParams(layers=None, draws=2),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("CHARM_STORE", raising=False)
        patch.delenv("DVC_ROOT", raising=False)
        use_no_cluster(patch)
        for stage in (manifest, shards, importance, pos_embeds, features, train, evaluate):
            stage.main(params)
        yield folder, params
    make._open_workplace.cache_clear()


@torch.inference_mode()
def compute(params: Params, row: int) -> np.ndarray:
    """The features of an image, float32 (draws, layers, parts, D), as tokens and model give them."""
    inputs, model = Inputs(params), start_frozen(params)
    data = inputs.evaluation_data(inputs.manifest, build_tokenizer(params, model.patch_size))
    batch = collate([data[SampleRef(draw, row)] for draw in range(params.features.draws)])
    assert not isinstance(batch, UserError)
    found: np.ndarray = layer_features(model, [1, 2], *gather_arguments(batch, inputs.pos_embeds, None)).numpy()
    return found


def test_the_column_holds_every_draw_of_every_image(made: Workspace) -> None:
    _, params = made
    facts = read_record(Path("data/features/column.json"))
    assert (facts["layers"], facts["parts"], facts["draws"]) == ([1, 2], PARTS, 2)
    images, keys = ShardReader(Path("data/shards")), read_manifest(Path("data/manifest")).keys
    found = read_features(Path("data/features"), images, keys, facts["weights"])
    assert (found.values.shape, found.values.dtype) == ((27, 2, 3, 64), np.float16)
    for row in (12, 20, 26):
        expected = compute(params, row)
        assert np.abs(expected[0] - expected[1]).max() > 0.01  # draws differ
        np.testing.assert_allclose(found.values[row], expected.mean(0), rtol=2e-3, atol=1e-3)


def test_what_is_made_stays_and_what_differs_is_made_anew(made: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    _, params = made
    before = {path.name: path.read_bytes() for path in Path("data/features").iterdir()}
    changes = {
        "3 of 3": replace(params, evaluate=replace(params.evaluate, draws=3)),
        "0 of 3": replace(params, features=FeatureParams(layers=[2], draws=1)),
    }
    for there, changed in changes.items():
        capsys.readouterr()
        features.main(changed)
        assert f"features: {there} shards are there" in capsys.readouterr().out
    features.main(params)
    assert {path.name: path.read_bytes() for path in Path("data/features").iterdir()} == before


def test_the_published_model_is_an_ordinary_one_that_scores_as_its_features_do(made: Workspace) -> None:
    folder, params = made
    config = read_config(folder / "runs/evaluate/model")[0]
    solved = config.solved
    assert solved is not None
    assert solved.cross_validation is not None
    assert (solved.cross_validation.scored, config.labels.num_bins, config.model.num_outputs) == (27, 1, 1)
    images, given = ShardReader(folder / "data/shards"), read_manifest(folder / "data/manifest")
    scorer = CharmScorer.from_pretrained(folder / "runs/evaluate/model", device="cpu")
    weight, bias = (getattr(scorer.model.head, name).detach().numpy() for name in ("weight", "bias"))
    parts = [PARTS.index(part) for part in config.model.head.split("_")]
    stored = read_features(folder / "data/features", images, given.keys, hash_weights(start_frozen(params)))
    for row in (1, 17, 25):
        score = (scorer(images.read_image(given.keys[row]), draws=2).raw - 1) / 4
        exact = compute(params, row).mean(0)[solved.layer - 1, parts].ravel()
        assert abs(weight[0] @ exact + bias[0] - score) < 1e-5
        half = stored.of(solved.layer, config.model.head)[row]
        assert abs(weight[0] @ half + bias[0] - score) < 2e-3  # what float16 adds


def test_metrics_card_and_report_say_how_it_was_made(made: Workspace) -> None:
    folder, params = made
    metrics = json.loads((folder / "runs/evaluate/metrics.json").read_text())
    assert (metrics["scored"], metrics["cv_scored"]) == (6, 27)
    assert metrics["cv_srcc_low"] <= metrics["cv_srcc"] <= metrics["cv_srcc_high"]
    with (folder / "runs/train/heads.csv").open() as file:
        tried = list(csv.DictReader(file))
    assert [(row["layer"], row["head"]) for row in tried] == [
        (layer, kind) for layer in ("1", "2") for kind in (*PARTS, "cls_native_coarse")
    ]
    (best,) = (row for row in tried if row["chosen"] == "1")
    assert float(best["srcc"]) == max(float(row["srcc"]) for row in tried)
    card = (folder / "runs/evaluate/model/README.md").read_text()
    assert f"cut off after layer {best['layer']}" in card
    assert f"| SRCC | {metrics['cv_srcc']:.3f} |" in card
    report.main(params)
    page = (folder / "runs/report/report.html").read_text()
    for said in ("What the frozen features know", "on the mean of each distribution", "all 27 images, by cross-vali"):
        assert said in page
    assert page.count('class="hue hue-') == 4
    assert "<h2>Training</h2>" not in page


def test_many_images_are_told_by_the_test_images_alone(
    made: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, params = made
    monkeypatch.setattr(head, "FEW", 26)
    head.train_head(params, Inputs(params), "0" * 64, tmp_path)
    solved = read_config(tmp_path)[0].solved
    assert solved is not None
    assert solved.cross_validation is None


def test_fine_tuning_has_an_empty_column_and_no_head_can_be_solved_on_it(
    made: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = made
    monkeypatch.chdir(tmp_path)
    features.main(replace(params, train=replace(params.train, mode="fine_tune")))
    assert [path.name for path in Path("data/features").iterdir()] == ["column.json"]
    with pytest.raises(UserError, match=r"^data/features is empty: run dvc repro, which makes features"):
        read_features(Path("data/features"), ShardReader(folder / "data/shards"), ["00000000"], "")
    with pytest.raises(UserError, match=r"was made with other weights than those of the backbone; run dvc repro$"):
        read_features(folder / "data/features", ShardReader(folder / "data/shards"), ["00000000"], "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"features": FeatureParams([3], 1)}, r"features\.layers: charm_demo has 2 layers, got 3$", id="deep"
        ),
        pytest.param(
            {"backbone": "resnet18", "tokenizer": "standard", "pretrained": False},
            r"train\.mode: resnet18 has no tokens that could be pooled layer by layer: choose fine_tune",
            id="backbone",
        ),
    ],
)
def test_mistakes_are_one_line_before_any_work(made: Workspace, changes: dict[str, object], message: str) -> None:
    _, params = made
    with pytest.raises(UserError, match=message):
        features.main(Params(**(vars(params) | changes)))


def test_a_worker_with_other_weights_makes_nothing(made: Workspace, tmp_path: Path) -> None:
    _, params = made
    with pytest.raises(UserError, match=r"this worker found other weights"):
        make.make_block("data", "shard-000000", make.describe_job(params, "0" * 64, {}), (0, 1), tmp_path / "block")


def test_workers_that_live_on_read_what_was_made_anew(made: Workspace) -> None:
    """A running cluster keeps its workers: other shards in the same place are opened anew."""
    _, params = made
    weights, spot = hash_weights(start_frozen(params)), str(Path("data").resolve())
    one, other = (make.describe_job(params, weights, {"files": [sha256]}) for sha256 in "ab")
    assert make._open_workplace(spot, one) is make._open_workplace(spot, one)
    assert make._open_workplace(spot, one) is not make._open_workplace(spot, other)
