"""A working folder in which every stage up to `train` has run on two dozen small images, shared by the session."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from ruamel.yaml import YAML

from pipeline.settings.params import DaskParams, Params, load_params
from stages import importance, manifest, pos_embeds, shards, train
from tests.no_cluster import use_no_cluster

ROOT = Path(__file__).parents[2]
NUM_GOOD = 27


def write_images(folder: Path) -> None:
    """27 readable images of 27 sizes with splits 15, 6, 6, and one that is missing, empty, and cut short."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = ["file,stars,part"]
    splits = ["train"] * 15 + ["val"] * 6 + ["test"] * 6
    for index, split in enumerate(splits):
        height, width = 40 + 7 * index, 200 - 5 * index
        noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        sigma = 0.5 + generator.uniform()
        data = simplejpeg.encode_jpeg(cv2.GaussianBlur(noise, (0, 0), sigma), quality=95)
        (folder / f"{index}.jpg").write_bytes(data)
        lines.append(f"{index}.jpg,{5 - 2 * sigma:.3f},{split}")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((folder / "0.jpg").read_bytes()[:900])
    lines += [f"{name}.jpg,3,train" for name in ("missing", "empty", "cut")]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def small_params(folder: Path) -> Params:
    """params.yaml on these images, at a size that takes seconds."""
    params = load_params(ROOT / "params.yaml")
    return replace(
        params,
        dataset="csv",
        labels=str(folder / "labels.csv"),
        max_seq_len=48,
        manifest=replace(
            params.manifest,
            path_column="file",
            score_columns=["stars"],
            score_range=[1.0, 5.0],
            accuracy_threshold=3.0,
            split_column="part",
            max_reject_frac=0.2,
        ),
        shards=replace(params.shards, samples_per_shard=10),
        train=replace(params.train, epochs=3, batch_size=8, warmup_epochs=1.0),
        hardware=replace(params.hardware, device="cpu", loader_workers=0),
        dask=DaskParams(address=None, workers=1, memory="auto"),
    )


def write_params(path: Path, params: Params) -> None:
    """As a params.yaml, for stages that run in a process of their own."""
    YAML().dump(asdict(params), path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """The folder and its params; data/ and runs/train are there, with two more columns in columns/."""
    folder = tmp_path_factory.mktemp("workspace")
    write_images(folder / "images")
    params = small_params(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("CHARM_STORE", raising=False)
        patch.delenv("DVC_ROOT", raising=False)
        use_no_cluster(patch)
        manifest.main(params)
        shards.main(params)
        for name in ("gradient", "saliency", "random"):
            importance.main(replace(params, selection=name))
            shutil.copytree("data/importance", f"columns/{name}")
        pos_embeds.main(params)
        train.main(params)
    return folder, params


@pytest.fixture
def workspace(finished: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Params]:
    """The finished folder as working directory."""
    monkeypatch.chdir(finished[0])
    monkeypatch.delenv("CHARM_STORE", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return finished
