"""What is kept is whole, found again by what it was made from, and made by one maker at a time."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from charm.runtime.disk import atomic_write, file_sha256, fingerprint
from charm.runtime.errors import UserError
from pipeline.work.code import code_digest
from pipeline.work.store import (
    locked,
    parse_record,
    publish,
    publish_shards,
    read_sidecar,
    repository,
    store_folder,
    write_json,
    write_record,
)

ROOT = Path(__file__).parents[3]


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_is_there_whole(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as file:
        file.write(b"one")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"one"
    assert names_in(tmp_path) == ["a"]


def test_a_writer_that_fails_leaves_nothing_new(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def fail() -> None:
        with atomic_write(tmp_path / "a") as file:
            file.write(b"new")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert names_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_json_is_sorted_and_digests_follow_values(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": [2.5, None]})
    write_json(tmp_path / "b", {"a": [2.5, None], "b": 1})
    assert file_sha256(tmp_path / "a") == file_sha256(tmp_path / "b")
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1}) != fingerprint({"a": 2, "b": 2})
    assert fingerprint("a", "b") != fingerprint("ab")


def test_a_record_says_when_it_is_not_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "a", {"b": [1, None], "a": {"key": "value"}})
    data = (tmp_path / "a").read_bytes()
    assert parse_record(data) == {"b": [1, None], "a": {"key": "value"}}
    damaged = [data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :] for place in range(len(data))]
    damaged += [data[:length] for length in range(len(data))] + [data + b" "]
    for other in damaged:
        with pytest.raises(ValueError, match="not as it was written"):
            parse_record(other)


@pytest.mark.parametrize(
    ("sidecar", "tar", "whole"),
    [
        pytest.param(slice(None), b"1234", True, id="whole"),
        pytest.param(slice(None), b"123", False, id="tar cut"),
        pytest.param(slice(None), None, False, id="no tar"),
        pytest.param(slice(90), b"1234", False, id="sidecar cut"),
        pytest.param(slice(0), b"1234", False, id="sidecar empty"),
        pytest.param(None, b"1234", False, id="no sidecar"),
    ],
)
def test_a_shard_without_a_sidecar_that_fits_does_not_exist(
    sidecar: slice | None, tar: bytes | None, whole: bool, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    write_record(path, {"bytes": 4})
    written = path.read_bytes()
    path.unlink()
    if sidecar is not None:
        path.write_bytes(written[sidecar])
    if tar is not None:
        (tmp_path / "a.tar").write_bytes(tar)
    found = read_sidecar(path)
    assert (found is not None and found["bytes"] == 4) is whole


CODE = '''"""A module."""
import os

def work(path, items):
    """Says what it does."""
    with open(path) as file:
        file.write(items)
    for item in items:
        items.append(item)
    del items[0]

class Kind:
    """Of thing."""
    size = 3

def nothing():
    """Does nothing."""
'''


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest_of(source: str) -> str:
        (tmp_path / "some_module.py").write_text(source)
        importlib.invalidate_caches()
        return code_digest("some_module")

    return digest_of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("import os\n", "# why\nimport os  # what for\n", id="comments"),
        pytest.param('"""Says what it does."""', '"""Says more,\n    at length."""', id="docstring of a function"),
        pytest.param('    """Says what it does."""\n', "", id="docstring removed"),
        pytest.param('"""A module."""\n', "", id="docstring of the module"),
        pytest.param('"""Of thing."""', '"""Of things."""', id="docstring of a class"),
        pytest.param('    """Does nothing."""', "    pass", id="docstring that is the whole body"),
        pytest.param("def work(path, items):", "def work(\n    path,\n    items,\n):", id="layout"),
        pytest.param("del items[0]", "del  items[ 0 ]\n\n", id="blanks"),
        pytest.param("    del items[0]", "    print(items)\n    del items[0]", id="a printed line"),
    ],
)
def test_what_does_nothing_does_not_count(old: str, new: str, digest: Callable[[str], str]) -> None:
    assert CODE.count(old) == 1
    assert digest(CODE.replace(old, new)) == digest(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("size = 3", "size = 4", id="number"),
        pytest.param("del items[0]", "del items[1]", id="last statement"),
        pytest.param("file.write(items)", "file.write(items * 2)", id="call that opens a with block"),
        pytest.param("items.append(item)", "items.remove(item)", id="call that opens a loop"),
        pytest.param("def work(path, items):", "def work(path, items=()):", id="default"),
    ],
)
def test_what_does_something_counts(old: str, new: str, digest: Callable[[str], str]) -> None:
    assert CODE.count(old) == 1
    assert digest(CODE.replace(old, new)) != digest(CODE)


def test_a_queued_run_finds_what_lies_beside_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmp1"
    copy.mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(copy))
    assert repository() == tmp_path
    monkeypatch.delenv("DVC_ROOT")
    monkeypatch.chdir(tmp_path)
    assert repository() == tmp_path


def test_every_module_counts() -> None:
    assert code_digest("pipeline.shards.write", "charm.images.decode") != code_digest(
        "pipeline.shards.write", "pipeline.work.store"
    )
    with pytest.raises(ImportError):
        code_digest("pipeline.no_such_module")


def test_a_second_maker_waits_and_says_for_whom(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from pipeline.work.store import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('made', flush=True)"
    )
    with locked(tmp_path):
        second = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        assert second.stdout.readline() == f"waiting for process {os.getpid()}, which makes the same artifacts\n"
        assert second.poll() is None
    assert second.communicate(timeout=60)[0] == "made\n"
    assert second.returncode == 0


def test_a_maker_that_failed_holds_up_nobody(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()}"


def test_published_files_are_other_names_of_the_stored_ones(tmp_path: Path) -> None:
    kept, out = tmp_path / "kept", tmp_path / "out"
    kept.mkdir()
    for name in ("f1", "f2"):
        (kept / name).write_text(name)
    publish({"a": kept / "f1", "b": kept / "f2"}, out)
    assert (out / "a").stat().st_ino == (kept / "f1").stat().st_ino
    (out / "stale folder").mkdir()
    (out / "stale folder" / "file").touch()
    publish({"b": kept / "f1"}, out)
    assert names_in(out) == ["b"]
    assert (out / "b").read_text() == "f1"
    assert names_in(kept) == ["f1", "f2"]
    assert (kept / "f2").read_text() == "f2"


def test_published_across_disks_as_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "f").write_text("f")
    publish({"a": tmp_path / "f"}, tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "f"


def test_a_file_that_was_pruned_before_it_was_published(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").touch()
    with pytest.raises(UserError, match="gone was removed meanwhile: run the same command again"):
        publish({"a": tmp_path / "gone"}, tmp_path / "out")
    assert names_in(tmp_path / "out") == ["a"]


def test_an_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    """To another disk, say."""
    (tmp_path / "disk" / "shards").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "shards")
    (tmp_path / "f").write_text("f")
    publish({"a": tmp_path / "f"}, tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert names_in(tmp_path / "disk" / "shards") == ["a"]


def test_shards_are_published_with_their_sidecars(tmp_path: Path) -> None:
    for name in ("0123.tar", "0123.json"):
        (tmp_path / name).write_text(name)
    publish_shards({"shard-000000": tmp_path / "0123.json"}, tmp_path / "out")
    assert {file.name: file.read_text() for file in (tmp_path / "out").iterdir()} == {
        "shard-000000.tar": "0123.tar",
        "shard-000000.json": "0123.json",
    }


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param({}, "work/.charm/store", id="working folder"),
        pytest.param({"DVC_ROOT": "repo"}, "repo/.charm/store", id="root of the repository"),
        pytest.param({"DVC_ROOT": "repo/.dvc/tmp/exps/x1"}, "repo/.charm/store", id="a queued experiment"),
        pytest.param({"CHARM_STORE": "big", "DVC_ROOT": "repo"}, "big", id="CHARM_STORE goes first"),
        pytest.param({"CHARM_STORE": "", "DVC_ROOT": "repo"}, "repo/.charm/store", id="an empty CHARM_STORE is none"),
    ],
)
@pytest.mark.usefixtures("store")
def test_where_the_store_is(
    variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHARM_STORE")
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value else "")
    assert store_folder("maps") == tmp_path / expected / "maps"
    assert store_folder("maps").is_dir()
