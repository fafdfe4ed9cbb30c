"""G2: a writer stopped at any operation on the disk: readers never see less in silence, and the next run ends equal."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from charm.runtime.disk import atomic_write
from pipeline.manifest.table import read_manifest, write_manifest
from pipeline.pos_embeds.axes import PosEmbeds, write_axes
from pipeline.settings.params import Params
from pipeline.shards.write import write_shard
from pipeline.work.store import prune, publish, read_record, read_sidecar, write_json, write_record
from stages import importance, manifest, shards
from tests.conftest import Small
from tests.faults.artifacts import (
    copy_data,
    read_samples,
    read_scores,
    read_small_checkpoint,
    read_small_model,
    save_small_checkpoint,
    save_small_model,
    small_params,
    write_labels,
)
from tests.faults.conftest import Gate
from tests.faults.disk import EFFECTS, Disk
from tests.faults.sweep import Writer, sweep
from tests.no_cluster import use_no_cluster

OLD, NEW = ("old" * 300).encode(), ("new" * 700).encode()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty; the store is in it."""
    monkeypatch.chdir(tmp_path)  # and back at the end
    monkeypatch.setenv("CHARM_STORE", str(tmp_path / "work" / "store"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def write_chunks(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        for start in range(0, len(content), 500):
            file.write(content[start : start + 500])


def read_bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def refused(read: Callable[[Path], object], path: Path) -> object:
    """What a reader gives; None where it says that the file is not there or damaged."""
    try:
        return read(path)
    except (OSError, ValueError):
        return None


SAMPLES = [(f"{i:08d}", {"json": b'{"a": 1}', "bin": bytes([i]) * 700}) for i in range(3)]
OTHERS = [(f"{i:08d}", {"json": b'{"a": 2}', "bin": bytes([i]) * 800}) for i in range(1, 4)]


def keep(folder: Path) -> None:
    """Some files, as in the store."""
    (folder / "kept").mkdir()
    for text in "abcde":
        (folder / "kept" / text).write_text(text * 100)


def link(folder: Path, texts: str) -> None:
    publish({f"{index}.tar": folder / "kept" / text for index, text in enumerate(texts)}, folder / "out")


def keep_and_link(folder: Path) -> None:
    keep(folder)
    link(folder, "abc")


def read_table(folder: Path) -> object:
    if not folder.is_dir():
        return None
    found = read_manifest(folder)
    return found.table.to_pylist(), found.facts


def read_folder(folder: Path) -> dict[str, bytes] | None:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else None


def copy(folder: Path) -> None:
    with mock.patch.object(os, "link", side_effect=OSError(errno.EXDEV, "Invalid cross-device link")):
        link(folder, "de")


def rows_of(bias: int) -> torch.Tensor:
    return torch.arange(18.0).reshape(3, 3, 2) + bias


def read_axes(folder: Path) -> object:
    rows = torch.cartesian_prod(torch.arange(5), torch.arange(5))  # of the axes of two and of three tokens
    return PosEmbeds(folder / "axes", "charm_demo").gather(rows).tolist() if folder.joinpath("axes").is_dir() else None


WRITERS = {
    "a file over an older one": Writer(
        prepare=lambda folder: (folder / "a").write_bytes(OLD),
        write=lambda folder: write_chunks(folder / "a", NEW),
        read=lambda folder: read_bytes(folder / "a"),
        gap=False,
    ),
    "a record": Writer(
        prepare=lambda folder: None,
        write=lambda folder: write_record(folder / "a.json", {"new": [2]}),
        read=lambda folder: refused(read_record, folder / "a.json"),
    ),
    "a record over an older one": Writer(
        prepare=lambda folder: write_record(folder / "a.json", {"old": 1}),
        write=lambda folder: write_record(folder / "a.json", {"new": [2]}),
        read=lambda folder: refused(read_record, folder / "a.json"),
        gap=False,
    ),
    "JSON over older": Writer(
        prepare=lambda folder: write_json(folder / "a.json", {"old": 1}),
        write=lambda folder: write_json(folder / "a.json", {"new": [2]}),
        read=lambda folder: read_bytes(folder / "a.json"),
        gap=False,
    ),
    "a shard": Writer(
        prepare=lambda folder: None,
        write=lambda folder: write_shard(folder / "shard-000000", SAMPLES),
        read=read_samples,
    ),
    "a shard over an older one": Writer(
        prepare=lambda folder: write_shard(folder / "shard-000000", OTHERS),
        write=lambda folder: write_shard(folder / "shard-000000", SAMPLES),
        read=read_samples,
    ),
    "a folder of links": Writer(
        prepare=keep,
        write=lambda folder: link(folder, "de"),
        read=lambda folder: read_folder(folder / "out"),
    ),
    "a folder of links over an older one": Writer(
        prepare=keep_and_link,
        write=lambda folder: link(folder, "de"),
        read=lambda folder: read_folder(folder / "out"),
    ),
    "a folder of copies over an older one": Writer(
        prepare=keep_and_link,
        write=copy,
        read=lambda folder: read_folder(folder / "out"),
    ),
    "position embeddings": Writer(
        prepare=lambda folder: None,
        write=lambda folder: write_axes(folder / "axes", "charm_demo", rows_of(0), [2, 3], "bilinear", False),
        read=read_axes,
    ),
    "position embeddings over older ones": Writer(
        prepare=lambda folder: write_axes(folder / "axes", "charm_demo", rows_of(7), [2, 3], "bilinear", False),
        write=lambda folder: write_axes(folder / "axes", "charm_demo", rows_of(0), [2, 3], "bilinear", False),
        read=read_axes,
    ),
    "a model over an older one": Writer(
        prepare=lambda folder: save_small_model(folder / "model", 1),
        write=lambda folder: save_small_model(folder / "model", 2),
        read=lambda folder: read_small_model(folder / "model"),
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_writers(name: str, folder: Path, gate: Gate) -> None:
    gate("G2", f"{name}, stopped everywhere", **sweep(WRITERS[name], folder))


def test_checkpoints(folder: Path, gate: Gate) -> None:
    """A run has the checkpoint before or the new one, whatever happens to its writer."""

    def prepare(folder: Path) -> None:
        for step in (1, 2, 3):  # so that the next one is saved over none and removes one
            save_small_checkpoint(folder / "run", step)

    def read(folder: Path) -> object:
        return read_small_checkpoint(folder / "run")

    writer = Writer(prepare, lambda folder: save_small_checkpoint(folder / "run", 4), read, gap=False, result=read)
    gate("G2", "a checkpoint, stopped everywhere", **sweep(writer, folder))


def test_manifest(small: Small, folder: Path, gate: Gate) -> None:
    older = [row | {"target": [0.5]} for row in small.rows[:5]]

    def prepare(folder: Path) -> None:
        (folder / "manifest").mkdir()
        write_manifest(folder / "manifest", older, small.listing, "csv")

    writer = Writer(
        prepare,
        write=lambda folder: write_manifest(folder / "manifest", small.rows, small.listing, "csv"),
        read=lambda folder: read_table(folder / "manifest"),
    )
    gate("G2", "a manifest over an older one, stopped everywhere", **sweep(writer, folder))


@pytest.fixture
def params(small: Small, shipped_params: Params, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Of stages that run in this process."""
    use_no_cluster(monkeypatch)
    write_labels(small)
    return small_params(shipped_params, small)


@pytest.fixture
def share(request: pytest.FixtureRequest) -> int:
    """One in how many stops of a whole stage is tried by each effect; all with --reliability."""
    return len(EFFECTS) if request.config.getoption("--reliability") is None else 1


def test_stage_manifest(folder: Path, params: Params, gate: Gate, share: int) -> None:
    writer = Writer(
        prepare=lambda folder: None,
        write=lambda folder: manifest.main(params),
        read=lambda folder: read_table(folder / "data/manifest"),
    )
    gate("G2", "stage manifest, stopped at a quarter of its places", **sweep(writer, folder, share))


def test_stage_shards(small: Small, folder: Path, params: Params, gate: Gate, share: int) -> None:
    writer = Writer(
        prepare=lambda folder: copy_data(small, folder, "manifest"),
        write=lambda folder: shards.main(params),
        read=lambda folder: read_samples(folder / "data/shards"),
    )
    gate("G2", "stage shards, stopped at a quarter of its places", **sweep(writer, folder, share))


def test_stage_shards_over_those_of_another_size(
    small: Small, folder: Path, params: Params, gate: Gate, share: int
) -> None:
    larger = replace(params, shards=replace(params.shards, samples_per_shard=4))

    def prepare(folder: Path) -> None:
        copy_data(small, folder, "manifest")
        shards.main(larger)

    writer = Writer(
        prepare,
        write=lambda folder: shards.main(params),
        read=lambda folder: read_samples(folder / "data/shards"),
    )
    gate("G2", "stage shards over older ones, stopped at a quarter of its places", **sweep(writer, folder, share))


def test_stage_importance(small: Small, folder: Path, params: Params, gate: Gate, share: int) -> None:
    def read(folder: Path) -> object:
        return read_scores(folder / "data/importance", folder / "data/shards")

    writer = Writer(
        prepare=lambda folder: copy_data(small, folder, "shards"),
        write=lambda folder: importance.main(params),
        read=read,
    )
    gate("G2", "stage importance, stopped at a quarter of its places", **sweep(writer, folder, share))


def test_prune(small: Small, folder: Path, params: Params, gate: Gate) -> None:
    """Of what is used nothing goes; of the rest no sidecar is left without its tar."""
    larger = replace(params, shards=replace(params.shards, samples_per_shard=4))

    def prepare(folder: Path) -> None:
        copy_data(small, folder, "manifest")
        for settings in (larger, params):
            shards.main(settings)
        (folder / "store/shards/.abc.tar.0123.part").write_bytes(OLD)

    def read(folder: Path) -> object:
        lost = [path for path in (folder / "store/shards").glob("*.json") if read_sidecar(path) is None]
        return lost, read_samples(folder / "data/shards")

    writer = Writer(prepare, write=lambda folder: prune(), read=read, gap=False)
    gate("G2", "prune, stopped everywhere", **sweep(writer, folder))
    assert not list(folder.rglob("*.part"))
    shards.main(larger)
    shards.main(params)
    with Disk(folder, 0, "disk full"):
        assert prune()["shards"][0] > 0  # what makes room takes none
