"""G4 and G5: what comes in shards, columns, models, settings and addresses is data. It is neither run nor unpacked."""

import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from charm.app.reading import load_scorer
from charm.runtime.disk import file_sha256
from charm.runtime.errors import UserError
from pipeline.manifest.table import SCHEMA, read_manifest
from pipeline.pos_embeds import axes as pos_embeds
from pipeline.pos_embeds.axes import PosEmbeds
from pipeline.settings.params import DaskParams, Params, load_params
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader, decode_array
from pipeline.shards.write import describe_tar, write_shard
from pipeline.training.artifacts import Inputs
from pipeline.verify import verify
from pipeline.work import executor
from pipeline.work.store import write_record
from tests.conftest import ROOT, Small
from tests.faults.artifacts import save_small_model
from tests.faults.conftest import Gate
from tests.faults.sweep import tree


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A folder that is there when something was executed; the traps do work."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "trial")))
    assert (tmp_path / "trial").is_dir()
    (tmp_path / "trial").rmdir()
    return tmp_path / "executed"


def traps(marker: Path) -> dict[str, bytes]:
    """Pickles in several coats."""
    array, zipped, saved = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.array([Trap(marker)], dtype=object), allow_pickle=True)
    np.savez(zipped, x=np.array([Trap(marker)], dtype=object))
    torch.save(Trap(marker), saved)
    return {
        "pickle": pickle.dumps(Trap(marker)),
        "array of objects": array.getvalue(),
        "archive of arrays": zipped.getvalue(),
        "torch file": saved.getvalue(),
    }


def refuses(read: Callable[..., object], *arguments: object) -> bool:
    """Whether a reader raises UserError, in one line."""
    try:
        read(*arguments)
    except UserError as error:
        return "\n" not in str(error)
    return False


def test_members(small: Small, marker: Path, tmp_path: Path, gate: Gate) -> None:
    """In the place of an image, of raw pixels, of scores, of a mask; and beside them, where nobody asks for them."""
    results = []
    for number, (kind, trap) in enumerate(traps(marker).items()):
        folder = tmp_path / str(number)
        for name in ("images", "column"):
            (folder / name).mkdir(parents=True)
        samples = {"jpg": {"jpg": trap}, "npy": {"npy": trap}, "png": {"png": trap, "pkl": trap, "pyd": trap}}
        write_shard(folder / "images/shard-000000", samples.items())
        images = ShardReader(folder / "images")
        column = ((key, {"p28.npy": trap, "mask.png": trap}) for key in samples)
        write_shard(folder / "column/shard-000000", column, images.images["shard-000000"])
        maps = ColumnReader(folder / "column", images)
        for key in samples:
            results.append(refuses(images.read_image, key))
            results.append(refuses(maps.read_importance, key, 28))
            results.append(refuses(maps.read_mask, key))
        assert images.read("png", "pkl") == trap, kind  # bytes, and no more
    gate("G4", "pickles as members of shards", cases=len(results), failures=results.count(False))
    assert not marker.exists()


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n",
        b"{'descr': '<f4', 'fortran_order': __import__('os').mkdir('x'), 'shape': (1,), }\n",
        b"__import__('os').mkdir('x')",
        b"'''",
        b"1\n\t2\n 3",
        b"(" * 9000,
        b"-" * 9000 + b"1",
        b"1" * 20000,
        b"\x00\xff\xfe",
    ],
    ids=lambda header: repr(header[:40]),
)
def test_headers_of_arrays_are_not_evaluated(header: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"\w"):
        decode_array(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert not list(tmp_path.iterdir())


def test_position_embeddings(marker: Path, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles under the name of safetensors, with a digest that fits."""
    monkeypatch.setattr(pos_embeds, "file_sha256", lambda path: "the same")
    results = []
    for trap in traps(marker).values():
        pos_embeds.write_axes(tmp_path, "charm_demo", torch.zeros(2, 2, 3), [2], "bilinear", False)
        (tmp_path / "axes.safetensors").write_bytes(trap)
        results.append(refuses(PosEmbeds, tmp_path, "charm_demo"))
    gate("G4", "pickles as position embeddings", cases=len(results), failures=results.count(False))
    assert not marker.exists()


def test_models(marker: Path, tmp_path: Path, gate: Gate) -> None:
    results = []
    for trap in traps(marker).values():
        save_small_model(tmp_path, 1)
        (tmp_path / "model.safetensors").write_bytes(trap)
        results.append(refuses(load_scorer, str(tmp_path), "cpu"))
        config: dict[str, Any] = json.loads((tmp_path / "config.json").read_bytes())
        del config["config_sha256"]
        config["weights_sha256"] = hashlib.sha256(trap).hexdigest()
        config["config_sha256"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        (tmp_path / "config.json").write_text(json.dumps(config))
        results.append(refuses(load_scorer, str(tmp_path), "cpu"))
    gate("G4", "pickles as models", cases=len(results), failures=results.count(False))
    assert not marker.exists()


def test_tables(small: Small, marker: Path, gate: Gate) -> None:
    """A column type that older versions of pyarrow unpickled when they opened the file."""
    folder, facts = small.data / "manifest", small.manifest.facts
    table = pq.read_table(folder / "manifest.parquet")
    storage = table["name"].combine_chunks()
    kind = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": traps(marker)["pickle"]}
    schema = SCHEMA.set(SCHEMA.names.index("name"), pa.field("name", storage.type, metadata=kind))
    pq.write_table(table.cast(schema), folder / "manifest.parquet")
    write_record(folder / "dataset.json", asdict(facts) | {"sha256": file_sha256(folder / "manifest.parquet")})
    assert read_manifest(folder).table["name"].to_pylist() == [one.name for one in small.listing.images]
    gate("G4", "pickled column types", cases=1, failures=int(marker.exists()))


TAGS = (
    "!!python/object/apply:os.mkdir [MARKER]",
    "!!python/object/new:os.mkdir [MARKER]",
    "!!python/object:pipeline.settings.params.Params {}",
    "!!python/name:os.mkdir",
    "!!python/module:antigravity",
    "!!python/tuple [1, 2]",
    "!!map {seed: 1}",
)


def test_settings(shipped_params: Params, marker: Path, tmp_path: Path, gate: Gate) -> None:
    """Refused; before a section, which stays what it is, ignored."""
    shipped = (ROOT / "params.yaml").read_text()
    results = []
    for tag in TAGS:
        for key in ("seed:", "backbone:", "train:"):
            line = next(line for line in shipped.splitlines() if line.startswith(key))
            file = tmp_path / "params.yaml"
            file.write_text(shipped.replace(line, f"{key} {tag.replace('MARKER', str(marker))}", 1))
            results.append(refuses(load_params, file) or load_params(file) == shipped_params)
    gate("G4", "YAML tags in params.yaml", cases=len(results), failures=results.count(False))
    assert not marker.exists()


def test_addresses(small: Small, shipped_params: Params, marker: Path, tmp_path: Path, gate: Gate) -> None:
    """No address runs a command or reads a variable of the environment."""
    places = [
        f"pipe:mkdir {marker}",
        f"pipe://mkdir {marker}",
        f"pipe:cat {small.data}/shards/shard-000000.tar; mkdir {marker} #",
        f"|mkdir {marker}",
        f"file://{small.data};mkdir {marker}",
        f"simplecache::pipe://mkdir {marker}",
        f"$(mkdir {marker})",
        f"`mkdir {marker}`://x",
        "$CHARM_TRAP",
        "${CHARM_TRAP}",
        "file://$CHARM_TRAP",
        "reference://x",
    ]
    work = tmp_path / "work"
    (work / "data").mkdir(parents=True)
    (work / "data/manifest").symlink_to(small.data / "manifest")
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setenv("CHARM_TRAP", str(small.data))
        for place in places:
            params = replace(shipped_params, hardware=replace(shipped_params.hardware, remote=place))
            results.append(refuses(Inputs, params))
    gate("G4", "addresses that are commands", cases=len(results), failures=results.count(False))
    assert not marker.exists()


def hostile_tar(path: Path, outside: Path) -> None:
    """Members that a careless unpacking would write elsewhere."""
    with tarfile.open(path, "w") as tar:
        for name in ("../../escape.json", f"{outside}/escape.json", "a/../../../escape.json", "x" * 300 + ".json"):
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"{}"))
        for name, kind, target in (
            ("link.json", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.json", tarfile.LNKTYPE, f"{outside}/kept"),
            ("pipe.json", tarfile.FIFOTYPE, ""),
            ("device.json", tarfile.CHRTYPE, ""),
            ("folder.json", tarfile.DIRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, 0
            tar.addfile(member)


def test_members_that_would_leave_the_folder(
    small: Small, shipped_params: Params, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by their place in the tar, they stay bytes; `verify --full` reads them and writes nothing."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    shard = small.data / "shards/shard-000000"
    hostile_tar(shard.with_suffix(".tar"), outside)
    described = describe_tar(shard.with_suffix(".tar"))
    write_record(shard.with_suffix(".json"), {"fingerprint": "x", "source": None, **described})
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    reader = ShardReader(small.data / "shards", "shard-000000")
    read = [reader.read(key, end) for key in reader for end in reader.extensions(key)]
    found = list(verify(replace(shipped_params, selection="gradient"), True, small.data, tmp_path / "runs"))
    assert len(read) == 9
    assert set(read) == {b"{}", b""}
    assert [one.whole for one in found if one.place.name == "shards"] == [False]
    gate("G5", "members that would leave the folder", cases=len(read), failures=int(tree(tmp_path) != before))


@pytest.mark.parametrize("size", [2**40, 2**80, -512])
def test_members_of_impossible_sizes(size: int, tmp_path: Path) -> None:
    """Neither is memory taken for them, nor is the way to the next member lost for ever."""
    header = bytearray(tarfile.TarInfo("0.json").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (size & (1 << 96) - 1 | (0x80 << 88 if size > 0 else 0)).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(9728))
    with pytest.raises(tarfile.ReadError, match=rf"0\.json of {size} bytes"):
        describe_tar(tmp_path / "a.tar")


def test_sidecars_that_lie(small: Small, gate: Gate) -> None:
    """Their checksum fits; what they say does not."""
    shard = small.data / "shards/shard-000000"
    whole = {"fingerprint": "x", "source": None, **describe_tar(shard.with_suffix(".tar"))}
    place = [512, 3, 1]
    lies: list[dict[str, Any]] = [{name: None} for name in ("bytes", "members")]
    members: list[Any] = [[], 3, "x", {"k": []}, {"k": "x"}, {"k": {}}, {"../../k": {"jpg": place}}]
    members += [{"é": {"jpg": place}}, {"\ud800": {"jpg": place}}, {"": {"jpg": place}}]
    for wrong in ([512, 3], ["a", 1, 2], [2**70, 1, 2], [-5, 3, 2], [512, -3, 2], [512, 2**40, 2], [0.5, 3, 1]):
        members.append({"k": {"jpg": wrong}})
    members += [{"k": {"jpg": [512, 3, -1]}}, {"k": {"jpg": [512, 3, 2**40]}}]

    def read_all() -> None:
        reader = ShardReader(small.data / "shards", "shard-000000")
        for key in reader:
            reader.read_image(key)

    results = []
    for lie in lies + [{"members": value} for value in members]:
        write_record(shard.with_suffix(".json"), whole | lie)
        results.append(refuses(read_all))
    gate("G5", "sidecars that lie", cases=len(results), failures=results.count(False))


def test_only_loopback_sockets_are_opened(gate: Gate) -> None:
    """By the scheduler, its dashboard and its workers."""
    with executor.connect(DaskParams(address=None, workers=2, memory="auto"), 2) as client:
        client.wait_for_workers(2, timeout=60)
        here = psutil.Process()
        listening = [
            connection.laddr.ip
            for process in (here, *here.children(recursive=True))
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    strangers = [address for address in listening if address not in ("127.0.0.1", "::1")]
    gate("G5", "sockets that listen", cases=len(listening), failures=len(strangers))
