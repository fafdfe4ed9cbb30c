"""Every tokenizer, three scales and score distributions, from pos_embeds to evaluate."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from charm.inputs.registry import INPUTS
from pipeline.settings.params import Params
from stages import evaluate, manifest, pos_embeds, train

Workspace = tuple[Path, Params]
Change = Callable[[Params], Params]


@pytest.mark.parametrize(
    "change",
    [
        *(
            pytest.param(lambda params, name=name: replace(params, tokenizer=name), id=name)
            for name in INPUTS
            if name not in ("charm", "square")
        ),
        pytest.param(lambda params: replace(params, tokenizer="square", selection="saliency"), id="square by saliency"),
        pytest.param(lambda params: replace(params, selection="gradient"), id="by gradient"),
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
