import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.manifest import read_manifest
from pipeline.params import Params
from stages import manifest

Workspace = tuple[Path, Params]


def test_every_listed_picture_is_kept_or_rejected_with_its_reason(workspace: Workspace) -> None:
    folder, _ = workspace
    facts = json.loads((folder / "data/manifest/dataset.json").read_text())
    with (folder / "data/manifest/rejected.csv").open() as text:
        rejected = {row["name"]: row["reason"] for row in csv.DictReader(text)}
    assert rejected == {"missing.jpg": "missing", "empty.jpg": "empty", "cut.jpg": "corrupt"}
    assert (facts["listed"], facts["packed"]) == (30, 27)
    assert facts["rejected"] == {"corrupt": 1, "empty": 1, "missing": 1}
    assert facts["splits"] == {"train": 15, "val": 6, "test": 6}


def test_scores_and_threshold_are_scaled_to_0_1(workspace: Workspace) -> None:
    folder, _ = workspace
    read = read_manifest(folder / "data/manifest")
    first = float((folder / "pictures/labels.csv").read_text().splitlines()[1].split(",")[1])
    assert read.targets[0, 0] == pytest.approx((first - 1) / 4)
    assert read.facts["accuracy_threshold"] == 0.5


def test_too_many_rejects_stop_the_run(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, params = workspace
    monkeypatch.chdir(tmp_path)
    strict = replace(params, manifest=replace(params.manifest, max_reject_frac=0.05))
    with pytest.raises(UserError, match=r"3 of 30 listed pictures cannot be used .*max_reject_frac = 0.05"):
        manifest.main(strict)


def test_an_empty_split_stops_the_run(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, params = workspace
    monkeypatch.chdir(tmp_path)
    drawn = replace(params.manifest, split_column=None, val_share=0.0)
    with pytest.raises(UserError, match="no picture is in the split 'val'"):
        manifest.main(replace(params, manifest=drawn))
