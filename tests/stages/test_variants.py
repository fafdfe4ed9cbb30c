"""Every tokenizer, three scales and score distributions, from pos_embeds to evaluate."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from charm import CharmScorer
from charm.inputs.settings import SETTINGS
from pipeline.settings.params import Params
from pipeline.shards.read import ShardReader
from stages import evaluate, manifest, pos_embeds, train

Workspace = tuple[Path, Params]
Change = Callable[[Params], Params]


def with_input(params: Params, name: str) -> Params:
    """Another input; one that its size defines has its own length."""
    return replace(params, tokenizer=name, max_seq_len=params.max_seq_len if SETTINGS[name].has_budget else None)


def with_backbone(params: Params, backbone: str, head: str, name: str) -> Params:
    """A model of timm that is no plain ViT, with random weights, on whole images of 64 pixels."""
    square = {"edge": 64, "crop": 64, "grids": [2, 4], "grid": 4}
    block = getattr(params.inputs, name)
    block = replace(block, **{key: value for key, value in square.items() if hasattr(block, key)})
    changed = replace(params, inputs=replace(params.inputs, **{name: block}), backbone=backbone, pretrained=False)
    return with_input(replace(changed, train=replace(params.train, head=head, rotate=1.0)), name)


@pytest.mark.parametrize(
    "change",
    [
        *(
            pytest.param(partial(with_input, name=name), id=name)
            for name in SETTINGS
            if name not in ("charm", "square")
        ),
        *(
            pytest.param(partial(with_backbone, backbone=backbone, head=head, name=name), id=f"{backbone}, {name}")
            for backbone, head, name in (
                ("test_resnet", "mean", "padding"),
                ("test_vit_relpos", "first_mean", "standard"),
                ("test_convnext", "mean", "flexi"),
            )
        ),
        pytest.param(lambda params: replace(params, tokenizer="square", selection="saliency"), id="square by saliency"),
        pytest.param(lambda params: replace(params, selection="gradient"), id="by gradient"),
        pytest.param(
            lambda params: replace(
                params,
                train=replace(
                    params.train,
                    mixout=0.5,
                    grey=0.5,
                    long_tail=replace(params.train.long_tail, pairs=1, similarity=1.0),
                ),
            ),
            id="ELTA, mixout, grey",
        ),
        pytest.param(
            lambda params: replace(
                params,
                pos_embeds=replace(params.pos_embeds, fit="additive"),
                train=replace(params.train, scale_embed="none"),
            ),
            id="additive positions, no scale embedding",
        ),
        pytest.param(
            lambda params: replace(params, tokens=replace(params.tokens, num_scales=3, budget="fill")),
            id="3 scales",
        ),
        pytest.param(
            lambda params: replace(params, train=replace(params.train, head="cls_mean", loss="mse")), id="cls_mean, mse"
        ),
    ],
)
def test_trains_and_scores_every_test_image(
    finished: Workspace, change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = finished
    shutil.copytree(folder / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    changed = change(replace(params, train=replace(params.train, epochs=1)))
    if changed.selection != "random":
        shutil.rmtree("data/importance")
        shutil.copytree(folder / "columns" / changed.selection, "data/importance")
    for stage in (pos_embeds, train, evaluate):
        stage.main(changed)
    metrics = json.loads((tmp_path / "runs/evaluate/metrics.json").read_text())
    assert metrics["scored"] == 6
    assert metrics["mae"] < 1
    scorer, images = CharmScorer.from_pretrained("runs/evaluate/model"), ShardReader("data/shards")
    if not scorer.needs_mask:
        rows = pq.read_table("runs/evaluate/predictions.parquet").to_pylist()
        found = scorer([images.read_image(row["key"]) for row in rows])
        assert [one.raw for one in found] == pytest.approx([row["raw"] for row in rows], abs=1e-5)


def test_distributions_are_learnt_with_the_emd_and_scored_by_their_mean(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = finished
    shutil.copytree(folder / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    rows = (folder / "images/labels.csv").read_text().splitlines()[1:28]
    lines = ["file,one,two,three,part"]
    for index, row in enumerate(rows):
        name, _, split = row.split(",")
        lines.append(f"{name},{index},{27 - index},5,{split}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    labels = replace(
        params.manifest,
        root=str(folder / "images"),
        score_columns=["one", "two", "three"],
        score_range=[1.0, 3.0],
        accuracy_threshold=2.0,
    )
    changed = replace(params, labels="labels.csv", manifest=labels, train=replace(params.train, epochs=1))
    for stage in (manifest, pos_embeds, train, evaluate):
        stage.main(changed)
    predictions = [line.split(",") for line in (tmp_path / "runs/evaluate/predictions.csv").read_text().splitlines()]
    last = dict(zip(predictions[0], predictions[-1], strict=True))
    assert float(last["target"]) == pytest.approx((26 * 1 + 1 * 2 + 5 * 3) / 32, abs=1e-6)
    assert 1 < float(last["predicted"]) < 3
    table = pq.read_table(tmp_path / "runs/evaluate/predictions.parquet")
    shares = np.array(table["distribution"].to_pylist())
    assert shares.shape == (6, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(shares @ [1, 2, 3], table["predicted"].to_numpy(), atol=1e-12)
    assert json.loads((tmp_path / "runs/train/config.json").read_text())["model"]["num_outputs"] == 3
