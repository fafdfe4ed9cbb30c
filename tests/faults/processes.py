"""The stages as processes of their own, in a folder with many tiny images."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import simplejpeg
from ruamel.yaml import YAML

from pipeline.settings.params import load_params
from pipeline.work.store import read_sidecar
from stages import importance, manifest, shards
from tests.conftest import ROOT
from tests.faults.sweep import tree
from tests.no_cluster import use_no_cluster

PATIENCE = 120  # seconds; a stage takes five on a quiet machine


def write_workspace(folder: Path, images: int, **settings: Any) -> None:
    """params.yaml, images/ and its labels; `settings` are entries of the section `shards`."""
    (folder / "images").mkdir(parents=True)
    draws = np.random.default_rng(0)
    lines = ["path,score,split"]
    for index in range(images):
        pixels = draws.integers(0, 256, (40 + index % 7, 48 - index % 5, 3), dtype=np.uint8)
        (folder / "images" / f"{index}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, quality=80))
        lines.append(f"{index}.jpg,{index / images},{('train', 'val', 'test')[index % 3]}")
    (folder / "images/labels.csv").write_text("\n".join(lines) + "\n")
    params = YAML().load(ROOT / "params.yaml")
    params["dataset"], params["selection"] = "csv", "gradient"
    params["labels"] = "images/labels.csv"
    params["manifest"]["split_column"] = "split"
    params["shards"] |= settings
    params["dask"]["workers"] = 1
    YAML().dump(params, folder / "params.yaml")


def run_inline(folder: Path, *commands: str) -> None:
    """Stages in this process, without a cluster: "manifest", "importance entropy", ..."""
    mains = {"manifest": manifest.main, "shards": shards.main, "importance": importance.main}
    with pytest.MonkeyPatch.context() as patch:
        use_no_cluster(patch)
        patch.chdir(folder)
        for variable in ("CHARM_STORE", "DVC_ROOT"):
            patch.delenv(variable, raising=False)
        for command in commands:
            stage, *selection = command.split()
            params = load_params()
            mains[stage](replace(params, selection=selection[0]) if selection else params)


def start_stage(
    folder: Path, name: str, popen: type[subprocess.Popen[str]] = subprocess.Popen, **environment: str
) -> subprocess.Popen[str]:
    """`python -m stages.<name>` in a folder, beginning; alone in a group of processes, as from a terminal."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("CHARM_", "DVC_", "DASK_"))}
    return popen(
        [sys.executable, "-m", f"stages.{name}"],
        cwd=folder,
        env=own | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def finish(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=PATIENCE)
    return Ended(process.returncode, out, err)


def wait_for_shards(count: int, folder: Path, process: subprocess.Popen[str]) -> None:
    """Until so many are in the store; fails where the process ends before."""
    store, end = folder / ".charm/store/shards", time.monotonic() + PATIENCE
    while sum(path.suffix == ".json" for path in store.glob("[!.]*")) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.003)


def whole_shards(folder: Path) -> dict[str, int]:
    """Fingerprint -> inode of the tar, of the shards that are finished in the store."""
    store = folder / ".charm/store/shards"
    return {path.stem: path.with_suffix(".tar").stat().st_ino for path in store.glob("*.json") if read_sidecar(path)}


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def made(folder: Path) -> dict[str, str]:
    """What is under data/, by path."""
    return tree(folder / "data")
