"""`python -m pipeline verify` and `prune`: what is damaged is named, and pruning takes what nobody uses."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.__main__ import main
from pipeline.pos_embeds.axes import write_area, write_axes
from pipeline.settings.params import Params
from pipeline.shards.write import pack_shard, write_shard
from pipeline.verify import verify
from pipeline.work.store import publish_shards, read_record, store_folder, write_json, write_record
from tests.conftest import ROOT, Small
from tests.faults.artifacts import save_small_model
from tests.untrained import write_model

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def data(small: Small, store: Path) -> Path:
    """data/ and runs/ with one of everything, in the current folder."""
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    edit_params("selection: random", "selection: gradient")
    small.data.rename("data")
    Path("data/gradient").rename("data/importance")
    write_record(Path("data/importance/column.json"), {"map": "gradient", "settings": {}})
    write_axes(Path("data/pos_embeds"), "charm_demo", torch.zeros(2, 2, 3), [2, 3], "bilinear", False)
    write_area(Path("data/pos_embeds"), None)
    save_small_model(Path("runs/train"), 1)
    write_predictions(["00000006"])
    write_model(Path("runs/evaluate/model"))
    return Path("data")


@pytest.fixture
def run(data: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Called with arguments of the command line; the exit code and what was printed, errors last."""

    def run_command(*arguments: str) -> tuple[int, str]:
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(str(ended.code))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run_command


def edit_params(old: str, new: str) -> None:
    path = Path("params.yaml")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def write_predictions(keys: list[str], scored: int | None = None) -> None:
    Path("runs/evaluate").mkdir(parents=True, exist_ok=True)
    numbers = [0.5] * len(keys)
    columns = {"key": keys, "name": keys, "target": numbers, "predicted": numbers, "spread": numbers}
    pq.write_table(pa.table(columns), "runs/evaluate/predictions.parquet", write_page_checksum=True)
    write_json(Path("runs/evaluate/metrics.json"), {"scored": len(keys) if scored is None else scored})


def flip(name: str, place: int = -20) -> None:
    """One bit of a file, in place."""
    whole = bytearray(Path(name).read_bytes())
    whole[place] ^= 1
    Path(name).write_bytes(whole)


def test_everything_is_whole(run: Run) -> None:
    code, printed = run("verify")
    assert code == 0
    assert printed.splitlines() == [
        "ok       data/manifest: 7 listed = 7 packed + 0 rejected",
        "ok       data/shards: 7 samples in 2 shards",
        "ok       data/importance: 7 samples in 2 shards",
        "ok       data/pos_embeds: position embeddings",
        "ok       runs/train: charm_demo, 62 parameters",
        "ok       runs/evaluate: 1 predictions",
        "ok       runs/evaluate/model: charm_demo, 154,561 parameters",
    ]
    code, printed = run("verify", "--full")
    assert (code, printed.count("every byte read")) == (0, 2)


def test_only_what_is_there_and_selected_is_checked(run: Run) -> None:
    edit_params("selection: gradient", "selection: random")
    write_record(Path("data/importance/column.json"), {"map": None, "settings": {}})
    shutil.rmtree("runs")
    flip("data/importance/shard-000000.json")
    code, printed = run("verify")
    assert code == 0
    assert "data/importance: none is needed" in printed
    assert "runs" not in printed


def test_nothing_to_verify(run: Run) -> None:
    shutil.rmtree("data")
    shutil.rmtree("runs")
    assert run("verify") == (2, f"error: there is nothing to verify in {Path.cwd()}: run dvc repro first\n")


def test_a_mistake_in_the_settings(run: Run) -> None:
    edit_params("selection: gradient", "selection: gradiant")
    code, printed = run("verify")
    assert code == 2
    assert printed.startswith("error: params.yaml:8: selection: 'gradiant' is not known; did you mean 'gradient'?")


def lose_shard() -> None:
    for end in ("tar", "json"):
        Path(f"data/shards/shard-000001.{end}").unlink()


def add_shard() -> None:
    write_shard(Path("data/shards/shard-000002"), [("00000007", {"jpg": b"1"})])


def pack_others() -> None:
    write_shard(Path("data/shards/shard-000001"), [(f"0000000{number}", {"jpg": b"1"}) for number in (4, 5, 6)])


def move_members() -> None:
    """In the sidecar, whose checksum then fits again."""
    path = Path("data/shards/shard-000001.json")
    sidecar = read_record(path)
    sidecar["members"]["00000004"]["jpg"][0] += 1
    write_record(path, sidecar)


def cut(name: str) -> None:
    Path(name).write_bytes(Path(name).read_bytes()[:-512])


@dataclass(frozen=True)
class Damage:
    """says: after "DAMAGED  "; full: whether it takes --full to find it."""

    make: Callable[[], object]
    says: tuple[str, ...]
    full: bool = False


DAMAGES = {
    "manifest.parquet": Damage(
        lambda: flip("data/manifest/manifest.parquet"), ("data/manifest: data/manifest/manifest.parquet: missing or",)
    ),
    "dataset.json": Damage(lambda: flip("data/manifest/dataset.json"), ("data/manifest/dataset.json: missing or",)),
    "no manifest": Damage(
        lambda: Path("data/manifest/manifest.parquet").unlink(), ("data/manifest/manifest.parquet: missing or",)
    ),
    "sidecar": Damage(
        lambda: flip("data/shards/shard-000000.json"), ("data/shards: data/shards/shard-000000.json: damaged",)
    ),
    "tar cut": Damage(lambda: cut("data/shards/shard-000001.tar"), ("data/shards/shard-000001.tar: missing, or not",)),
    "no tar": Damage(
        lambda: Path("data/shards/shard-000001.tar").unlink(), ("data/shards/shard-000001.tar: missing, or not",)
    ),
    "shard lost": Damage(lose_shard, ("data/shards: 3 keys of the manifest are missing, 0 are not in it", "00000004")),
    "shard too many": Damage(add_shard, ("data/shards: 0 keys of the manifest are missing, 1 are not in", "00000007")),
    "image": Damage(
        lambda: flip("data/shards/shard-000001.tar", 2000),
        ("data/shards/shard-000001.tar: its sha256 is not what its sidecar says", "find . "),
        full=True,
    ),
    "padding": Damage(
        lambda: flip("data/shards/shard-000001.tar"), ("data/shards/shard-000001.tar: its sha256 is not",), full=True
    ),
    "header": Damage(lambda: flip("data/shards/shard-000001.tar", 0), ("data/shards/shard-000001.tar: ",), full=True),
    "places of members": Damage(
        move_members, ("data/shards/shard-000001.tar: its members is not what its sidecar says",), full=True
    ),
    "scores": Damage(
        lambda: flip("data/importance/shard-000001.tar"),
        ("data/importance/shard-000001.tar: its sha256 is not what its sidecar says",),
        full=True,
    ),
    "column.json": Damage(lambda: flip("data/importance/column.json"), ("data/importance/column.json: missing or",)),
    "no column.json": Damage(
        lambda: Path("data/importance/column.json").unlink(), ("importance/column.json: missing or damaged",)
    ),
    "column of other images": Damage(pack_others, ("data/importance/shard-000001.tar was not made from",)),
    "axes": Damage(
        lambda: flip("data/pos_embeds/axes.safetensors"),
        ("data/pos_embeds/axes.safetensors: missing or damaged",),
    ),
    "area seen": Damage(
        lambda: flip("data/pos_embeds/area_seen.json"), ("data/pos_embeds/area_seen.json: missing or damaged",)
    ),
    "model": Damage(lambda: flip("runs/train/model.safetensors"), ("runs/train: ", "model.safetensors")),
    "predictions": Damage(
        lambda: flip("runs/evaluate/predictions.parquet", 60), ("runs/evaluate/predictions.parquet: missing or",)
    ),
    "no predictions": Damage(
        lambda: Path("runs/evaluate/predictions.parquet").unlink(), ("runs/evaluate/predictions.parquet: missing",)
    ),
    "no metrics": Damage(
        lambda: Path("runs/evaluate/metrics.json").write_text("{}"), ("runs/evaluate/metrics.json: missing or",)
    ),
    "predictions of others": Damage(
        lambda: write_predictions(["00000005"]), ("runs/evaluate: 1 predictions, 1 scored, 1 test images",)
    ),
    "too few predictions": Damage(
        lambda: write_predictions([]), ("runs/evaluate: 0 predictions, 0 scored, 1 test images",)
    ),
    "weights of the model's folder": Damage(
        lambda: flip("runs/evaluate/model/model.safetensors"),
        ("runs/evaluate/model: runs/evaluate/model/model.safetensors is damaged", "model.safetensors -delete"),
    ),
    "config of the model's folder": Damage(
        lambda: flip("runs/evaluate/model/config.json"),
        ("runs/evaluate/model: runs/evaluate/model/config.json is not as", "config.json -delete"),
    ),
    "no model card": Damage(
        lambda: Path("runs/evaluate/model/README.md").unlink(),
        ("runs/evaluate/model: runs/evaluate/model/README.md: No such file or directory; run dvc repro",),
    ),
    "empty model card": Damage(
        lambda: Path("runs/evaluate/model/README.md").write_bytes(b""),
        ("runs/evaluate/model: runs/evaluate/model/README.md is empty",),
    ),
    "no model's folder": Damage(
        lambda: shutil.rmtree("runs/evaluate/model"), ("runs/evaluate/model: runs/evaluate/model/config.json: No such",)
    ),
    "other numbers in the metrics": Damage(
        lambda: write_predictions(["00000006"], 7), ("runs/evaluate: 1 predictions, 7 scored, 1 test images",)
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(name: str, run: Run) -> None:
    damage = DAMAGES[name]
    damage.make()
    assert run("verify")[0] == (0 if damage.full else 4)
    code, printed = run("verify", "--full")
    assert code == 4
    lines = printed.splitlines()
    assert len(lines) == 7, "what else there is is checked all the same"
    assert all(line.startswith(("ok       ", "DAMAGED  ")) for line in lines)
    assert any(line.startswith("DAMAGED") and all(part in line for part in damage.says) for line in lines), printed


def test_folders_elsewhere(data: Path, shipped_params: Params, tmp_path: Path) -> None:
    params = replace(shipped_params, selection="gradient")
    data.rename(tmp_path / "elsewhere")
    found = list(verify(params, False, data=tmp_path / "elsewhere", runs=tmp_path / "none"))
    assert [one.place.name for one in found] == ["manifest", "shards", "importance", "pos_embeds"]
    assert all(one.whole for one in found)


def test_prune(run: Run, small: Small) -> None:
    """Goes: a shard that no folder uses, and what a killed writer left. Stays: what is used, checkpoints, the lock."""
    kept = store_folder("shards")
    for name, rows in (("used", small.rows[:2]), ("unused", small.rows[2:4])):
        pack_shard(rows, str(small.root), "jpg", 95, (0.0, 1.0), kept / name)
    publish_shards({"shard-000000": kept / "used.json"}, Path("out"))
    (kept / ".half.tar.0123.part").write_bytes(bytes(10**6))
    (store_folder("train") / "run").mkdir()
    (store_folder("train") / "run/checkpoint").touch()
    freed = sum((kept / f"unused.{end}").stat().st_size for end in ("tar", "json")) + 10**6
    assert run("prune") == (0, f"shards: 3 files removed, {freed / 1e6:.1f} MB freed\n")
    assert sorted(path.name for path in kept.iterdir()) == [".lock", "used.json", "used.tar"]
    assert (store_folder("train") / "run/checkpoint").exists()
    shutil.rmtree("out")
    assert run("prune")[1].startswith("shards: 2 files removed")
    assert run("prune") == (0, "shards: 0 files removed, 0.0 MB freed\n")


def test_prune_of_no_store(run: Run, store: Path) -> None:
    assert run("prune") == (0, "")
    assert not store.exists()


def test_commands_have_to_be_named(run: Run) -> None:
    for arguments in ((), ("verfy",), ("prune", "--full")):
        assert run(*arguments)[0] == 2
