"""Runs on one page: folders and experiments, paired on the test images that all have."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charm.app.comparison import Judge, Sample, agree, find_disputed
from charm.hub import write_model_folder
from charm.model.metrics import srcc
from pipeline.__main__ import main
from pipeline.experiments import compare
from tests.conftest import Small
from tests.untrained import describe

HOSTILE = "<script>alert('x')</script>.jpg"


def write_run(folder: Path, noise: float, count: int = 30, **changes: Any) -> Path:
    """A run of `count` test images, whose keys are those of `packed` as far as these go."""
    draws = np.random.default_rng(round(100 * noise))
    labels = np.random.default_rng(0).uniform(1, 5, 30)[:count]
    scores = labels + draws.normal(0, noise, count)
    config = describe()
    write_model_folder(folder / "evaluate/model", {}, replace(config, labels=replace(config.labels, **changes)))
    (folder / "evaluate/metrics.json").write_text(json.dumps({"interval_coverage": 0.875}))
    (folder / "train").mkdir()
    (folder / "train/history.csv").write_text("epoch,val_srcc\n1,nan\n2,0.25\n3,0.5\n")
    with open(folder / "evaluate/predictions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "name", "target", "predicted"])
        rows.writerows([f"{at:08}", f"{at} {HOSTILE}", labels[at], scores[at]] for at in range(count))
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [str(write_run(Path(name), noise)) for name, noise in (("good", 0.2), ("bad", 2.0))]


def test_runs_are_compared_on_one_page(runs: list[str], packed: Small, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").symlink_to(packed.data)
    main(["compare", *runs, "--out", "page"])
    page, said = Path("page/compare.html").read_text(), capsys.readouterr().out
    good, bad = (compare.read_run(name).images for name in runs)
    labels, *scores = ([row[place] for row in found.values()] for found, place in ((good, 1), (good, 2), (bad, 2)))
    ours, theirs = (srcc(np.array(one), np.array(labels)) for one in scores)
    assert "good: PLCC" in said
    assert f"SRCC {ours:.3f} (" in said
    assert "bad less good: PLCC" in said
    assert f"SRCC {theirs - ours:+.3f} (" in said
    assert "held 87.5&nbsp;% of the labels" in page
    assert page.count('<path class="line"') == 2  # curves of training
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    shown = page.count("<figure><img src=")
    disputed = find_disputed([Judge(name, np.array(one), 4.0) for name, one in zip(runs, scores, strict=True)])
    assert shown == sum(at < len(packed.rows) for at in disputed)
    with open("page/compare.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == pytest.approx([*scores[0], *scores[1]])
    assert {row["model"] for row in rows} == {"good", "bad"}


def test_only_images_that_all_runs_have_count(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("short"), 0.5, count=20)
    main(["compare", *runs, "short"])
    assert "20 test images" in capsys.readouterr().out
    assert "held" not in Path("runs/compare/compare.html").read_text().partition("short</b> held")[0]


@pytest.mark.parametrize(
    ("made", "named", "told"),
    [
        ({"count": 1}, ["good", "other"], "good, other: 1 test images in common: expected two"),
        ({"score_range": (0.0, 5.0)}, ["good", "other"], "other: 0 labels, or their scale, are others"),
        ({}, ["good", "good"], "good, good: expected two different runs"),
        ({}, ["good"], "good: expected two different runs"),
        ({}, ["good", "."], "evaluate/model/config.json: "),
        ({}, ["good", "nonesuch"], "nonesuch: "),
    ],
    ids=["nothing in common", "another scale", "twice", "alone", "no run", "no experiment"],
)
def test_what_cannot_be_compared_is_said(
    made: dict[str, Any], named: list[str], told: str, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(Path("other"), 0.5, **made)
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *named])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")


def test_differences_are_paired() -> None:
    """Two models that err alike differ by far less than either does from the labels, and the interval says so."""
    draws = np.random.default_rng(0)
    labels = draws.normal(size=300)
    first = labels + draws.normal(0, 1, 300)
    second = first + draws.normal(0, 0.1, 300)
    sample = Sample([], labels, 0.0)
    reference, other = agree(first, sample), agree(second, sample)
    own, paired = other.rate()["srcc"], (other - reference).rate()["srcc"]
    assert paired[0] == pytest.approx(srcc(second, labels) - srcc(first, labels))
    assert paired[1] <= paired[0] <= paired[2]
    assert paired[2] - paired[1] < (own[2] - own[1]) / 5
    assert (reference - agree(first, sample)).rate()["krcc"] == (0.0, 0.0, 0.0)
