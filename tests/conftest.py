"""A handful of small images, their manifest and their shards; each test that changes them takes a copy."""

import atexit
import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from playwright.sync_api import Browser, expect, sync_playwright

from pipeline.importance.make import make_column
from pipeline.manifest.labels import Listed, Listing
from pipeline.manifest.rows import build_rows, inspect_images
from pipeline.manifest.table import Manifest, read_manifest, write_manifest
from pipeline.settings.params import Params, SamHqParams, load_params
from pipeline.shards.read import ShardReader
from pipeline.shards.write import pack_shard
from pipeline.work.store import parse_record, read_sidecar
from tests.hub import StubHub, serve_hub
from tests.warm_python import WarmPython, find_warm_python

pytest_plugins = ["tests.gates"]

# Who starts the tests may ignore or block signals, as a shell does for a job in the background; processes that the
# tests start would inherit that. Nor are these processes to compile every library anew.
for _number, _handler in {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}.items():
    signal.signal(_number, _handler)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Threads of torch that wait for work spin, and take the cores from the other workers' tests: 39 seconds of computing
# in place of 9 for the tests of the model. Read when torch is loaded; their number stays as it is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Nor is a thread to print a stack of C++ between the dots when a test has ended whose other process is no torch.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

# A worker's modules need not be taken apart at its end, which takes it four seconds. What is registered first is called
# last.
if "PYTEST_XDIST_WORKER" in os.environ:
    atexit.register(os._exit, 0)

# Each collection of garbage walks through all that torch, timm and the tests consist of, and which stays: a sixth of
# the time in which tests are collected, a tenth of some tests.
gc.disable()

# Power does not fail while tests run, and a disk takes milliseconds to write what it holds back. tests/faults/disk.py
# counts each call.
os.fsync = lambda descriptor: None

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser: apt-get install chromium")
# (height, width): some of a single scale at 24 tokens of 14 pixels, some of two; upright and lying, odd sizes.
SIZES = ((60, 80), (120, 90), (100, 150), (41, 57), (85, 113), (130, 70), (112, 112))
PER_SHARD = 4


# Begun first, so that none of them is left alone at the end: ten seconds or more, each. Those that wait for most of
# their time stand between those that compute, or the cores would wait, too.
LONG = (
    "tests/stages/test_dvc.py",
    "tests/faults/test_crash.py",
    "tests/stages/test_train.py",
    "tests/faults/test_kill.py",
    "tests/charm/app/test_evaluate.py",
    "tests/charm/app/test_page.py",
    "tests/pipeline/training/test_loader.py",
    "tests/charm/test_export.py",
    "tests/charm/app/test_connections.py",
    "tests/charm/test_onnx_scorer.py",
    "tests/charm/runtime/test_streams.py",
    "tests/faults/test_quarantine.py",
    "tests/stages/test_variants.py",
    "tests/charm/app/test_server.py",
    "tests/faults/test_image_files.py",
    "tests/faults/test_waiting.py",
    "tests/charm/model/test_image.py",
    "tests/pipeline/work/test_executor.py",
    "tests/faults/test_choices.py",
    "tests/pipeline/training/test_distributed.py",
    "tests/stages/test_importance.py",
    "tests/test_architecture.py",
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One file, or some tests of one, start at once in this process; more are shared out over the cores.

    By one process more than there are cores, since tests of signals and of processes wait for a fifth of their time.
    """
    files = {argument.split("::")[0] for argument in config.args}
    return 0 if len(files) == 1 and files.pop().endswith(".py") else (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first; within a file, the order is kept."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(LONG)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)
    atexit.register(gc.unfreeze)  # libraries report what they think is lost


@dataclass(frozen=True)
class Small:
    """Seven images, packed.

    Attributes:
        root: the files as they came.
        listing, rows: their labels and their rows of the manifest.
        data: holds manifest/, shards/ (shard-000000 of four, shard-000001 of three) and gradient/, a column.
    """

    root: Path
    listing: Listing
    rows: list[dict[str, Any]]
    data: Path

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.data / "manifest")

    @property
    def images(self) -> ShardReader:
        return ShardReader(self.data / "shards")


def draw_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3): smooth shades with some detail, as in a photograph."""
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + draws.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that nobody trained; read only."""
    from tests.untrained import write_model  # imports torch, which takes seconds

    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> WarmPython:
    """For processes of which it is not the start that is tested; one server for all workers of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        return find_warm_python(folder.parent / "warm", os.getppid())
    return find_warm_python(folder / "warm", os.getpid())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a module, since it keeps asyncio for itself; closed with all pages that a test leaves open."""
    expect.set_options(timeout=60_000)  # not 5 s, in which a busy machine scores sixty photographs
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield opened
        opened.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubHub]:
    """What $HF_ENDPOINT names, and a cache of this test's own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", f"{served.address}/")
        yield served


def sidecar_of(tar: Path) -> dict[str, Any]:
    """What the sidecar of a shard says."""
    return parse_record(tar.with_suffix(".json").read_bytes())


@pytest.fixture(scope="session")
def drawn() -> Callable[..., np.ndarray]:
    """Called with height, width and a seed."""
    return draw_image


@pytest.fixture(scope="session")
def shipped_params() -> Params:
    """params.yaml of the repository."""
    return load_params(ROOT / "params.yaml")


@pytest.fixture(scope="session")
def packed(shipped_params: Params, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Read only; `small` may be changed."""
    top = tmp_path_factory.mktemp("small")
    root, data = top / "images", top / "data"
    for folder in (root, data / "manifest", data / "shards", data / "gradient"):
        folder.mkdir(parents=True)
    listed = []
    for index, (height, width) in enumerate(SIZES):
        encoded = simplejpeg.encode_jpeg(draw_image(height, width, index), quality=90)
        (root / f"{index}.jpg").write_bytes(encoded)
        split = ("train", "train", "train", "train", "train", "val", "test")[index]
        listed.append(Listed(f"{index}.jpg", f"{index}.jpg", (index / 10,), split, f"labels.csv:{index + 2}"))
    listing = Listing(root, listed, (0.0, 1.0), 0.5, "nothing")
    inspect_images(str(root), [one.path for one in listed], 10**6, None, top / "found")
    found = (read_sidecar(top / "found.json") or {})["images"]
    rows = build_rows(listing, found, shipped_params.manifest, seed=0)
    write_manifest(data / "manifest", rows, listing, "csv")
    for number, start in enumerate(range(0, len(rows), PER_SHARD)):
        name = f"shard-{number:06d}"
        pack_shard(rows[start : start + PER_SHARD], str(root), "jpg", 95, (0.0, 1.0), data / "shards" / name)
        settings = {"coarse_patch_sizes": [28, 56], "fit": "nearest"}
        make_column(str(data / "shards"), name, "gradient", settings, data / "gradient" / name)
    return Small(root, listing, rows, data)


@pytest.fixture
def small(packed: Small, tmp_path: Path) -> Small:
    """A copy of `packed` that a test may damage."""
    shutil.copytree(packed.root, tmp_path / "images")
    shutil.copytree(packed.data, tmp_path / "data")
    return Small(tmp_path / "images", packed.listing, packed.rows, tmp_path / "data")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of this test's own, a working folder besides, and no Dask cluster from the environment."""
    monkeypatch.setenv("CHARM_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "store"


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> SamHqParams:
    """A detector and a SAM-HQ on disk, tiny and random; read only."""
    from tests.saliency_models import save_models  # 5 seconds, which only the tests of SAM-HQ pay

    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def tiny_models(saved_models: SamHqParams, monkeypatch: pytest.MonkeyPatch) -> Iterator[SamHqParams]:
    """The same, where the name `vit_tiny` stands for a model of their size; in this process alone."""
    from charm.saliency import sam_hq
    from tests.saliency_models import build_tiny_sam

    monkeypatch.setitem(sam_hq.SAM_MODELS, "vit_tiny", build_tiny_sam)
    sam_hq._load.cache_clear()
    yield saved_models
    sam_hq._load.cache_clear()
