"""G3: no flipped bit and no cut of what the pipeline writes passes for the real thing; each error names the file."""

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from charm.runtime.errors import UserError
from charm.tokenization.budget import AreaSeen
from pipeline.importance.make import make_column
from pipeline.manifest.table import read_manifest
from pipeline.pos_embeds.axes import AreaSummary, PosEmbeds, read_area, write_area, write_axes
from pipeline.settings.params import Params, load_params
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader
from pipeline.verify import verify
from pipeline.work.store import write_record
from tests.conftest import PER_SHARD, Small
from tests.faults.artifacts import read_small_checkpoint, read_small_model, save_small_checkpoint, save_small_model
from tests.faults.conftest import Gate
from tests.faults.processes import made, run_inline, write_workspace

FLIPS, RELIABLE_FLIPS = 100, 1000  # bits of each artifact, by default and with --reliability
SHARD = "shard-000001"
AREA = AreaSummary(AreaSeen(0.5, 0.5, 0.0), AreaSeen(0.25, 0.25, 0.5))
SIDES = torch.cartesian_prod(torch.arange(5), torch.arange(5))  # rows of the axes of two and of three tokens


@pytest.fixture(scope="module")
def data(packed: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything; each test puts back what it has damaged."""
    top = tmp_path_factory.mktemp("damage")
    data = top / "data"
    for name in ("manifest", "shards"):
        (data / name).mkdir(parents=True)
        for file in (packed.data / name).iterdir():
            (data / name / file.name).write_bytes(file.read_bytes())
    scores = {"coarse_patch_sizes": [28, 56], "fit": "nearest"}
    for name, way, settings in (("gradient", "gradient", scores), ("saliency", "mbd", {})):
        column = data.parent / name / "importance"
        column.mkdir(parents=True)
        for part in ("manifest", "shards"):
            (column.parent / part).symlink_to(data / part)
        for shard in ("shard-000000", SHARD):
            make_column(str(data / "shards"), shard, way, settings, column / shard)
        write_record(column / "column.json", {"map": name, "settings": settings})
    (top / "random/importance").mkdir(parents=True)
    write_record(top / "random/importance/column.json", {"map": None, "settings": {}})
    write_axes(data / "pos_embeds", "charm_demo", torch.arange(18.0).reshape(3, 3, 2), [2, 3], "bilinear", False)
    write_area(data / "pos_embeds", AREA)
    save_small_model(top / "runs/train", 0.5)
    for step in (1, 2):
        save_small_checkpoint(top / "work", step)
    return data


@pytest.fixture(scope="session")
def flips(request: pytest.FixtureRequest) -> int:
    """How many bits of an artifact are tried."""
    return FLIPS if request.config.getoption("--reliability") is None else RELIABLE_FLIPS


def damaged(path: Path, flips: int) -> Iterator[str]:
    """Puts `path` into each damaged state, names it, and puts back what was there."""
    whole = path.read_bytes()
    draws = np.random.default_rng(len(whole))
    try:
        for place, bit in zip(draws.integers(0, len(whole), flips), draws.integers(0, 8, flips), strict=True):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(bit)]) + whole[place + 1 :])
            yield f"bit {bit} of byte {place} flipped"
        for length in range(0, len(whole), 512 if len(whole) > 8192 else 16):
            path.write_bytes(whole[:length])
            yield f"cut to {length} bytes"
    finally:
        path.write_bytes(whole)


def read_images(data: Path) -> object:
    reader = ShardReader(data / "shards", SHARD)
    members = {key: [(end, reader.read(key, end)) for end in reader.extensions(key)] for key in reader}
    return members, [reader.read_image(key).tobytes() for key in reader]


def read_column(data: Path, name: str) -> object:
    images = ShardReader(data / "shards")
    column = ColumnReader(data.parent / name / "importance", images, name)
    keys = list(images)[PER_SHARD:]
    if name == "saliency":
        return [column.read_mask(key).tobytes() for key in keys]
    return [column.read_importance(key, size).tobytes() for key in keys for size in (28, 56)]


def read_table(data: Path) -> object:
    manifest = read_manifest(data / "manifest")
    return manifest.table.to_pylist(), manifest.facts


def read_axes(data: Path) -> object:
    return PosEmbeds(data / "pos_embeds", "charm_demo").gather(SIDES).tolist()


def read_area_seen(data: Path) -> object:
    return read_area(data / "pos_embeds")


def read_model(data: Path) -> object:
    return read_small_model(data.parent / "runs/train")


def find_damage(params: Params, data: Path) -> str:
    """What `verify --full` finds wrong; "" if nothing."""
    found = verify(params, full=True, data=data, runs=data.parent / "none")
    return "; ".join(one.found for one in found if not one.whole)


@dataclass(frozen=True)
class Artifact:
    """file: from the folder `data`; read: all that the public readers give of it."""

    file: str
    read: Callable[[Path], object]


ARTIFACTS = {
    "shard": Artifact(f"shards/{SHARD}.tar", read_images),
    "sidecar of a shard": Artifact(f"shards/{SHARD}.json", read_images),
    "scores": Artifact(f"../gradient/importance/{SHARD}.tar", lambda data: read_column(data, "gradient")),
    "sidecar of scores": Artifact(f"../gradient/importance/{SHARD}.json", lambda data: read_column(data, "gradient")),
    "masks": Artifact(f"../saliency/importance/{SHARD}.tar", lambda data: read_column(data, "saliency")),
    "sidecar of masks": Artifact(f"../saliency/importance/{SHARD}.json", lambda data: read_column(data, "saliency")),
    "manifest.parquet": Artifact("manifest/manifest.parquet", read_table),
    "dataset.json": Artifact("manifest/dataset.json", read_table),
    "axes.safetensors": Artifact("pos_embeds/axes.safetensors", read_axes),
    "axes.json": Artifact("pos_embeds/axes.json", read_axes),
    "area_seen.json": Artifact("pos_embeds/area_seen.json", read_area_seen),
    "model.safetensors of a model's folder": Artifact("../runs/train/model.safetensors", read_model),
    "config.json of a model's folder": Artifact("../runs/train/config.json", read_model),
}


@pytest.mark.parametrize("name", ARTIFACTS)
def test_damage(name: str, data: Path, flips: int, shipped_params: Params, gate: Gate) -> None:
    """What readers do not touch, padding and headers of tars, `verify --full` finds."""
    artifact, path = ARTIFACTS[name], (data / ARTIFACTS[name].file).resolve()
    params = replace(shipped_params, selection="saliency" if "masks" in name else "gradient")
    whole = artifact.read(data)
    checked = path.parents[1] if path.parent.name == "importance" else data
    assert find_damage(params, checked) == ""
    found = Counter(cases=0, refused=0, found_by_verify=0, failures=0)
    for what in damaged(path, flips):
        found["cases"] += 1
        try:
            right = artifact.read(data) == whole
        except UserError as error:
            found["refused"] += 1
            right = path.name in str(error) and "\n" not in str(error)
        else:
            if path.suffix == ".tar":
                found["found_by_verify"] += 1
                right = right and path.name in find_damage(params, checked)
        if not right:
            found["failures"] += 1
            print(f"{path.name}: {what}")
    assert artifact.read(data) == whole
    gate("G3", f"{name}: bits flipped, and cut", **found)


def test_damage_of_what_only_verify_reads(data: Path, flips: int, shipped_params: Params, gate: Gate) -> None:
    alone = data.parent / "random"
    path = alone / "importance/column.json"
    assert find_damage(shipped_params, alone) == ""
    cases = [path.name in find_damage(shipped_params, alone) for _ in damaged(path, flips)]
    gate("G3", "column.json: bits flipped, and cut", cases=len(cases), failures=cases.count(False))


def test_damage_of_a_checkpoint(data: Path, flips: int, gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    """The one before stands in, and it is said why."""
    work = data.parent / "work"
    newest = sorted(path for path in work.iterdir() if path.is_dir())[-1]
    assert read_small_checkpoint(work) == (2, [2.0])
    for path in sorted(newest.iterdir()):
        found = Counter(cases=0, refused=0, failures=0)
        for _ in damaged(path, flips):
            found["cases"] += 1
            seen, said = read_small_checkpoint(work), newest.name in capsys.readouterr().out
            found["refused"] += said
            found["failures"] += seen != ((1, [1.0]) if said else (2, [2.0]))
        gate("G3", f"{path.name} of a checkpoint: bits flipped, and cut", **found)


@pytest.mark.parametrize("name", [f"shards/{SHARD}.tar", f"shards/{SHARD}.json", f"importance/{SHARD}.tar"])
def test_the_advice_helps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """Damage is in every name of a file. What the error says to do makes the file anew."""
    write_workspace(tmp_path, 9, samples_per_shard=4)
    run_inline(tmp_path, "manifest", "shards", "importance")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHARM_STORE", raising=False)
    whole, path = made(tmp_path), tmp_path / "data" / name
    with open(path, "r+b") as file:
        file.seek(600)
        file.write(bytes(9))
    params = load_params()
    said = find_damage(params, Path("data"))
    command = re.search("find .*? -delete", said)
    assert command
    subprocess.run(["sh", "-c", command[0]], check=True)
    assert find_damage(params, Path("data"))
    run_inline(tmp_path, "shards", "importance")
    assert find_damage(params, Path("data")) == ""
    gate("G11", f"the advice helps: {path.name} of {path.parent.name}", cases=1, failures=int(made(tmp_path) != whole))
