"""Shards elsewhere are read as those on a disk, part by part, from any process."""

import pickle
import re
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from torch.utils.data import DataLoader

from charm.runtime.errors import UserError
from pipeline.shards.columns import ColumnReader
from pipeline.shards.folders import LocalFolder, RemoteFolder, open_folder
from pipeline.shards.read import ShardReader
from tests.conftest import Small
from tests.silent import serve
from tests.test_requirements import EXTRA


class RangeHandler(SimpleHTTPRequestHandler):
    """Serves parts of files, which Python's own handler does not."""

    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        path = Path(self.translate_path(self.path))
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "")
        if not found or not path.is_file():
            return super().do_GET()
        data = path.read_bytes()
        first, last = int(found[1]), min(int(found[2]), path.stat().st_size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(data[first : last + 1])
        return None

    def log_message(self, *arguments: object) -> None:
        """Nothing on the screen."""


@pytest.fixture
def server(small: Small) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """The address of the folder data/, and what was asked for."""
    asked: list[tuple[str, str | None]] = []
    handler = type("Handler", (RangeHandler,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(small.data))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shards.folders._PATIENCE", 1)
    with serve() as address, pytest.raises(UserError, match=r"shards: cannot be read \(no answer within 1 s\)"):
        ShardReader(f"http://{address}/shards")


def test_errors_of_a_library_are_told_as_those_of_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto's, for example, are of kinds that only boto knows."""

    class NoCredentials(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise NoCredentials("none found")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.ls", refuse)
    with pytest.raises(UserError, match=r"memory://shards: cannot be read \(NoCredentials: none found\)"):
        ShardReader("memory://shards")


def test_an_address_has_a_protocol(tmp_path: Path) -> None:
    assert isinstance(open_folder("s3://bucket/shards"), RemoteFolder)
    assert isinstance(open_folder(tmp_path), LocalFolder)
    assert isinstance(open_folder(str(tmp_path)), LocalFolder)


def test_images_and_columns_over_http(small: Small, server: tuple[str, list[tuple[str, str | None]]]) -> None:
    address, asked = server
    remote = ShardReader(f"{address}/shards")
    column = ColumnReader(f"{address}/gradient/", remote)
    asked.clear()
    for key in small.images:
        assert remote.read(key, "jpg") == small.images.read(key, "jpg")
    assert len(asked) == len(remote)
    assert all(wanted for _, wanted in asked)  # never a whole shard
    local = ColumnReader(small.data / "gradient", small.images)
    assert (column.read_importance("00000005", 28) == local.read_importance("00000005", 28)).all()


def test_other_processes_open_connections_of_their_own(
    small: Small, server: tuple[str, list[tuple[str, str | None]]]
) -> None:
    remote = ShardReader(f"{server[0]}/shards")
    assert remote.read("00000000", "jpg")  # this process has one
    keys = list(remote)
    loader = DataLoader(keys, batch_size=None, num_workers=2, collate_fn=lambda key: (key, remote.read(key, "jpg")))  # type: ignore[arg-type]
    assert dict(loader) == {key: small.images.read(key, "jpg") for key in keys}
    assert pickle.loads(pickle.dumps(remote)).read("00000001", "jpg") == small.images.read("00000001", "jpg")


def test_damage_far_away_is_found(small: Small, server: tuple[str, list[tuple[str, str | None]]]) -> None:
    remote = ShardReader(f"{server[0]}/shards")
    path = small.data / "shards" / "shard-000000.tar"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(UserError, match=rf"{server[0]}/shards/shard-000000\.tar: 00000000\.jpg is damaged"):
        remote.read("00000000", "jpg")


def test_a_library_that_lists_names_alone_unless_asked(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """As s3fs and gcsfs do."""
    files, plain = MemoryFileSystem(), MemoryFileSystem.ls
    files.put(str(small.data / "shards"), "/bucket/shards", recursive=True)
    monkeypatch.setattr(MemoryFileSystem, "ls", lambda self, path, detail=False: plain(self, path, detail=detail))
    remote = ShardReader("memory://bucket/shards")
    assert [remote.read(key, "jpg") for key in remote] == [small.images.read(key, "jpg") for key in small.images]
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("address", "package", "extra"),
    [("s3://bucket/shards", "s3fs", "s3"), ("gs://bucket/shards", "gcsfs", "gcs"), ("gcs://b/shards", "gcsfs", "gcs")],
)
def test_a_store_whose_package_is_missing_names_the_extra(
    address: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert package in EXTRA[extra]
    with pytest.raises(UserError, match=rf"{address} needs a package that is not installed: uv sync --extra {extra}$"):
        ShardReader(address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        pytest.param("nosuch://bucket/shards", "nosuch://bucket/shards cannot be opened: .*nosuch", id="protocol"),
        pytest.param("http://127.0.0.1:9/shards", "http://127.0.0.1:9/shards: cannot be read", id="nobody answers"),
    ],
)
def test_addresses_that_lead_nowhere(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ShardReader(address)
