"""What `dvc` runs and does not run, counted in a copy of the repository."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from charm.runtime.disk import file_sha256
from pipeline.settings.params import SamHqParams
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader
from tests.stages.conftest import ROOT, write_images
from tests.warm_python import WarmPython

ALL = ["manifest", "shards", "importance", "pos_embeds", "features", "train", "evaluate", "report"]


class Repository:
    """A copy of the project with a commit, on two dozen small images.

    Args:
        folder: gets the copy and the images.
        python: runs DVC and the stages.
    """

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self._python = folder / "charm", python
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("DVC_", "CHARM_", "DASK_", "GIT_"))
            },
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
        }
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file() and name != "dvc.lock":
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.folder / name)
        write_images(folder / "images")
        self._set_params(folder / "images" / "labels.csv")
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
            subprocess.run(["git", *command], cwd=self.folder, check=True, env=self.environment)

    @contextmanager
    def settings(self, **changed: Any) -> Iterator[None]:
        """params.yaml with other values of some keys, `section__key`; afterwards it is as it was."""
        path = self.folder / "params.yaml"
        original = path.read_text()
        document = YAML().load(original)
        for name, value in changed.items():
            *sections, key = name.split("__")
            reduce(getitem, sections, document)[key] = value
        YAML().dump(document, path)
        try:
            yield
        finally:
            path.write_text(original)

    def _set_params(self, csv_file: Path) -> None:
        path = self.folder / "params.yaml"
        params = YAML().load(path)
        params["dataset"], params["labels"] = "csv", str(csv_file)
        params["max_seq_len"] = 48
        params["manifest"] |= {
            "path_column": "file",
            "score_columns": ["stars"],
            "score_range": [1.0, 5.0],
            "accuracy_threshold": 3.0,
            "split_column": "part",
            "max_reject_frac": 0.2,
        }
        params["shards"]["samples_per_shard"] = 10
        params["train"] |= {"epochs": 1, "batch_size": 8}
        params["hardware"]["loader_workers"] = 0
        YAML().dump(params, path)

    def dvc(self, *arguments: str, succeeds: bool | None = True) -> str:
        """What it printed, both streams; succeeds=None: whether it does or not."""
        done = subprocess.run(
            [self._python, "-m", "dvc", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert succeeds in (None, done.returncode == 0), done.stdout
        return done.stdout

    def ran(self, *arguments: str) -> list[str]:
        """The stages that a dvc command ran, in order."""
        return re.findall(r"^Running stage '([^']+)'", self.dvc(*arguments), flags=re.MULTILINE)

    def ran_with(self, *settings: str) -> list[str]:
        """The stages that `dvc exp run` ran with some settings, which stay."""
        return self.ran("exp", "run", *(argument for setting in settings for argument in ("-S", setting)))


CLUSTER = """
import sys
from dask.distributed import LocalCluster

address = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", **address) as cluster:
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""


@contextmanager
def use_one_cluster(repository: Repository, python: Path) -> Iterator[None]:
    """All stages share a Dask cluster of one worker, whose libraries are there, too."""
    with subprocess.Popen(
        [python, "-c", CLUSTER],
        cwd=repository.folder,
        env=repository.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        repository.environment["DASK_SCHEDULER_ADDRESS"] = address = process.stdout.readline().strip()
        assert address.startswith("tcp://")
        try:
            yield
        finally:
            process.stdin.close()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, warm: WarmPython) -> Iterator[Repository]:
    """After the first `dvc repro`, which runs every stage."""
    made = Repository(tmp_path_factory.mktemp("dvc"), warm.command)
    with use_one_cluster(made, warm.command):
        assert made.ran("repro") == ALL
        yield made


def test_a_second_repro_runs_nothing(repository: Repository) -> None:
    assert repository.ran("repro") == []


def test_each_setting_remakes_what_reads_it_and_going_back_runs_nothing(repository: Repository) -> None:
    remade = ["importance", "features", "train", "evaluate", "report"]
    assert repository.ran_with("selection=saliency", "train.min_learning_rate=3e-7") == remade

    with repository.settings(train__mode="head"):
        assert repository.ran("repro") == remade[1:]  # features in the worker
        metrics = json.loads((repository.folder / "runs/evaluate/metrics.json").read_text())
        assert (metrics["scored"], metrics["cv_scored"]) == (6, 27)

    with repository.settings(backbone="vit_tiny_patch16_224", pretrained=False):
        assert repository.ran("repro") == ["pos_embeds", *remade[1:]]

    assert repository.ran_with("selection=random", "train.min_learning_rate=1e-6") == []


def test_saliency_by_sam_hq_in_processes_of_their_own(repository: Repository, tiny_models: SamHqParams) -> None:
    """With the published architecture of vit_tiny, at a threshold that one of the 27 images reaches."""
    from charm.saliency import sam_hq
    from tests.saliency_models import resolve

    images = ShardReader(repository.folder / "data/shards")
    best = resolve(replace(tiny_models, box_threshold=0.0, top_k=1))
    scores = sorted(float(sam_hq.detect(images.read_image(key), best).scores[0]) for key in images)
    torch.save(sam_hq._build_published("vit_tiny").state_dict(), repository.folder / ".dvc/tmp/sam.pth")
    settings = {
        "detector": tiny_models.detector,
        "sam_checkpoint": str(repository.folder / ".dvc/tmp/sam.pth"),
        "sam_sha256": file_sha256(repository.folder / ".dvc/tmp/sam.pth"),
        "box_threshold": (scores[-1] + scores[-2]) / 2,
    }
    sam_hq_settings = {f"importance__saliency__sam_hq__{key}": value for key, value in settings.items()}
    with repository.settings(selection="saliency", importance__saliency__backend="sam_hq", **sam_hq_settings):
        assert repository.ran("repro", "importance") == ["importance"]
    folder = repository.folder / "data/importance"
    assert json.loads((folder / "column.json").read_text())["empty"] == 26
    (found,) = (row.split(",")[0] for row in (folder / "masks.csv").read_text().splitlines() if row.endswith(",1"))
    assert 0 < ColumnReader(folder, images).read_mask(found).mean() < 1


def test_where_things_run_trains_nothing_again(repository: Repository) -> None:
    with repository.settings(dask__workers=1, hardware__loader_workers=1):
        assert repository.ran("repro") == ["report"]


def test_another_inputs_settings_make_and_train_nothing(repository: Repository) -> None:
    """DVC starts the stages that list the section, and they find what is finished in the store."""
    with repository.settings(inputs__square__edge=128):
        printed = repository.dvc("repro", "evaluate")
    started = re.findall(r"^Running stage '([^']+)'", printed, flags=re.MULTILINE)
    assert not {"manifest", "shards", "importance"} & set(started)
    assert "train: finished before, published again" in printed
    assert "evaluate: finished before, published again" in printed


def test_metrics_plots_and_experiments_are_shown(repository: Repository) -> None:
    metrics = json.loads(repository.dvc("metrics", "show", "--json"))
    found = metrics[""]["data"]["runs/evaluate/metrics.json"]["data"]
    assert {"plcc", "srcc", "acc", "listed", "packed", "rejected"} <= found.keys()
    assert "runs/evaluate/metrics.json" in repository.dvc("exp", "show", "--json")
    plots = json.loads(repository.dvc("plots", "show", "--json", "--out", str(repository.folder / ".dvc/tmp/plots")))
    assert plots["data"].keys() == {
        "Agreement on the validation images",
        "Training loss",
        "Predicted against given scores",
    }
    agreement = plots["data"]["Agreement on the validation images"][0]["content"]
    assert "val_srcc" in str(agreement)
    assert "val_plcc" in str(agreement)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new))


def test_an_edited_label_runs_from_the_manifest_on(repository: Repository) -> None:
    labels = repository.folder.parent / "images/labels.csv"
    original = labels.read_text()
    name, _, split = original.splitlines()[1].split(",")
    labels.write_text(original.replace(original.splitlines()[1], f"{name},1.25,{split}"))
    assert repository.ran("repro", "shards") == ["manifest", "shards"]
    assert json.loads(repository.dvc("status", "--json")).keys() == set(ALL[2:])
    labels.write_text(original)
    assert repository.ran("repro") == []


def test_a_line_of_the_model_trains_again_and_neither_going_back_nor_a_comment_does(repository: Repository) -> None:
    folder = repository.folder
    edited = ("charm/model/vit.py", "charm/model/pooling.py", "pipeline/training/loader.py")
    originals = {name: (folder / name).read_text() for name in edited}
    try:
        edit(folder / "charm/model/pooling.py", "sum(1).clamp(min=1)", "sum(1).clamp(min=2)")
        assert "train: epoch" in repository.dvc("repro")
        (folder / "charm/model/pooling.py").write_text(originals["charm/model/pooling.py"])
        edit(folder / "charm/model/vit.py", "class CharmViT(Model):", "# A plain ViT.\nclass CharmViT(Model):")
        edit(folder / "charm/model/vit.py", '"""Scores a batch, ', '"""Scores a batch of images, ')
        edit(folder / "pipeline/training/loader.py", "a loader worker died at", "a worker of the loader died at")
        printed = repository.dvc("repro")
    finally:
        for name, text in originals.items():
            (folder / name).write_text(text)
    assert "Running stage 'train'" in printed
    assert "train: finished before, published again" in printed
    assert "evaluate: finished before, published again" in printed
    assert "train: epoch" not in printed


def test_no_setting_deletes_anything(repository: Repository) -> None:
    """DVC removes outputs before a stage could refuse a setting. No path has a setting: tests/test_architecture.py."""
    made = ("data", "runs", ".dvc", ".charm", ".git", "__pycache__", "dvc.lock")

    def around() -> dict[str, bytes]:
        files = (path for path in repository.folder.parent.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files if not set(made) & set(path.parts)}

    for folder in (repository.folder / "photos", repository.folder.parent / "photos"):
        folder.mkdir()
        (folder / "beach.jpg").write_bytes(b"the only copy")
    before = around()
    for key in ("labels", "selection", "backbone"):
        with repository.settings(**{key: "../../photos"}):
            repository.dvc("repro", succeeds=None)
        assert around() == before, key


def test_an_unknown_key_stops_with_file_line_and_the_nearest_key(repository: Repository) -> None:
    """Here in a section that no stage depends on."""
    with repository.settings(dask__worker=2):
        text = (repository.folder / "params.yaml").read_text()
        printed = repository.dvc("repro", succeeds=False)
    number = text[: text.index("worker: 2")].count("\n") + 1
    assert f"params.yaml:{number}: unknown key dask.worker; did you mean 'workers'?" in printed


def test_a_misspelt_choice_of_an_experiment_is_told_by_us(repository: Repository) -> None:
    with repository.settings():
        printed = repository.dvc("exp", "run", "-S", "selection=salency", succeeds=False)
    assert re.search(r"params\.yaml:\d+: selection: 'salency' is not known; did you mean 'saliency'\?", printed), (
        printed
    )
    assert "Traceback" not in printed


def test_labels_that_are_not_there_are_told_by_dvc(repository: Repository) -> None:
    """It resolves this one setting itself."""
    with repository.settings(labels="nowhere.csv"):
        printed = repository.dvc("repro", succeeds=False)
    assert "nowhere.csv" in printed
    assert "Traceback" not in printed
