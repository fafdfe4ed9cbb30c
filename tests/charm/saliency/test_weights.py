"""Weights are those whose sha256 is known, however the network behaves; and the way by hand is always named."""

import fcntl
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from charm.runtime.disk import file_sha256
from charm.runtime.errors import UserError
from charm.saliency import weights
from charm.saliency.weights import Published, cache_folder, find_checkpoint, find_detector

CONTENT = np.random.default_rng(0).bytes(300_000)
URL = "/lkeab/hq-sam/resolve/a3a77cd0a2e5e50eaa76faccf61b964732d9b35f/sam_hq_vit_b.pth"


@dataclass
class Hub:
    """A file server on loopback.

    Attributes:
        content: of every file.
        cut_after: bytes after which a connection is cut.
        ranges: whether it knows them.
        status: of every answer, if not that of success.
        asked: path and Range header of each request.
    """

    content: bytes = CONTENT
    cut_after: int | None = None
    ranges: bool = True
    status: int | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """What $HF_ENDPOINT names; the published vit_b is CONTENT, the cache is this test's own."""
    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            served.asked.append((self.path, asked))
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and served.ranges else 0
            rest = served.content[start:]
            if served.status or (start and not rest):
                self.send_error(served.status or 416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}")
            self.end_headers()
            self.wfile.write(rest[: served.cut_after])

        def log_message(self, *arguments: object) -> None:
            pass

    published = Published("sam_hq_vit_b.pth", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    monkeypatch.setitem(weights.SAM_HQ, "vit_b", published)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
        yield served
        server.shutdown()
        thread.join()


def fetch() -> bytes:
    return find_checkpoint("vit_b", None, None)[0].read_bytes()


def test_the_published_file_is_downloaded_once(hub: Hub) -> None:
    path, sha256 = find_checkpoint("vit_b", None, None)
    assert path == cache_folder() / "sam_hq_vit_b.pth"
    assert path.read_bytes() == CONTENT
    assert sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert fetch() == CONTENT
    assert hub.asked == [(URL, None)]
    assert not path.with_suffix(".part").exists()


def test_cut_connections_are_gone_on_from(hub: Hub) -> None:
    hub.cut_after = 100_000
    assert fetch() == CONTENT
    assert [asked for _, asked in hub.asked] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_download_that_is_cut_too_often_goes_on_next_time(hub: Hub) -> None:
    hub.cut_after = 10_000
    with pytest.raises(UserError, match="cut 5 times, 50000 of 300000 bytes are kept") as error:
        fetch()
    assert str(cache_folder() / "sam_hq_vit_b.pth") in str(error.value)
    assert "\n" not in str(error.value)
    assert not (cache_folder() / "sam_hq_vit_b.pth").exists()
    hub.cut_after = None
    assert fetch() == CONTENT
    assert hub.asked[-1] == (URL, "bytes=50000-")


def test_a_login_page_is_no_download(hub: Hub) -> None:
    hub.content = b"<!DOCTYPE html><title>Welcome to our network</title>"
    with pytest.raises(UserError, match=r"sam_hq_vit_b\.pth is a web page, of a login or an error perhaps"):
        fetch()
    assert len(hub.asked) == 1
    hub.content = CONTENT
    assert fetch() == CONTENT


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:1", b"Entry not found"])
def test_what_lies_in_the_place_of_weights_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    kind = (
        "a Git LFS pointer" if b"git-lfs" in content else "a text and no file of weights; it begins 'Entry not found'"
    )
    with pytest.raises(UserError, match=f"sam_checkpoint: .* is {kind}"):
        find_checkpoint("vit_b", str(tmp_path / "model.safetensors"), None)
    with pytest.raises(UserError, match=rf"detector: {tmp_path}/model\.safetensors is {kind}"):
        find_detector(str(tmp_path))


def test_a_server_without_ranges_is_asked_for_all(hub: Hub) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "sam_hq_vit_b.part").write_bytes(b"x" * 1000)
    hub.ranges = False
    assert fetch() == CONTENT


@pytest.mark.parametrize(
    "left", [b"\xfe" * 1000, b"\xfe" * 400_000, CONTENT + b"x"], ids=["short", "long", "one more byte"]
)
def test_a_part_of_another_file_is_found_out_and_dropped(left: bytes, hub: Hub) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "sam_hq_vit_b.part").write_bytes(left)
    with pytest.raises(UserError, match="it is another file"):
        fetch()
    assert fetch() == CONTENT


def test_a_whole_part_needs_no_more_bytes(hub: Hub) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "sam_hq_vit_b.part").write_bytes(CONTENT)
    assert fetch() == CONTENT


def test_another_file_under_the_same_name(hub: Hub) -> None:
    hub.content = CONTENT[:-1] + b"x"
    expected = rf"has sha256 {hashlib.sha256(hub.content).hexdigest()}, expected {hashlib.sha256(CONTENT).hexdigest()}"
    with pytest.raises(UserError, match=expected):
        fetch()
    assert [path.name for path in cache_folder().iterdir()] == ["sam_hq_vit_b.lock"]


def test_a_damaged_cache_is_filled_again(hub: Hub) -> None:
    fetch()
    (cache_folder() / "sam_hq_vit_b.pth").write_bytes(CONTENT[:-1] + b"x")
    assert fetch() == CONTENT
    assert len(hub.asked) == 2


def test_no_such_file_is_asked_for_once(hub: Hub) -> None:
    hub.status = 404
    with pytest.raises(UserError, match=rf"cannot download http://127\.0\.0\.1:\d+{URL} \(HTTP Error 404") as error:
        fetch()
    assert "sam_checkpoint" in str(error.value)
    assert len(hub.asked) == 1


def test_a_server_in_trouble_is_asked_again(hub: Hub) -> None:
    hub.status = 503
    with pytest.raises(UserError, match="HTTP Error 503"):
        fetch()
    assert len(hub.asked) == 5


def test_no_network_is_one_line_with_the_address_and_the_way_by_hand(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=re.escape(f"cannot download http://127.0.0.1:9{URL} (")) as error:
        fetch()
    assert f"put it at {cache_folder() / 'sam_hq_vit_b.pth'}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_second_downloader_waits_for_the_first(hub: Hub) -> None:
    cache_folder().mkdir(parents=True)
    found: list[bytes] = []
    with open(cache_folder() / "sam_hq_vit_b.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: found.append(fetch()))
        second.start()
        time.sleep(0.1)
        assert hub.asked == []
        (cache_folder() / "sam_hq_vit_b.pth").write_bytes(CONTENT)
    second.join(timeout=10)
    assert found == [CONTENT]
    assert hub.asked == []


def test_pinned_files_are_the_published_ones() -> None:
    assert {name: published.sha256[:8] for name, published in weights.SAM_HQ.items()} == {
        "vit_tiny": "0f32c075",
        "vit_b": "14a9d662",
        "vit_l": "e1a6c385",
        "vit_h": "a7ac14a0",
    }
    assert all(re.fullmatch("[0-9a-f]{64}", published.sha256) for published in weights.SAM_HQ.values())


def test_a_file_of_ones_own_needs_its_sha256(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(b"\x80weights")
    actual = file_sha256(path)
    assert find_checkpoint("vit_b", str(path), actual) == (path, actual)
    with pytest.raises(UserError, match=rf"mine\.pth has sha256 {actual}, not the published vit_b's; if it is yours"):
        find_checkpoint("vit_b", str(path), None)
    with pytest.raises(UserError, match=rf"mine\.pth has sha256 {actual}, not sam_sha256, {'0' * 64}"):
        find_checkpoint("vit_b", str(path), "0" * 64)
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.pth"):
        find_checkpoint("vit_b", str(tmp_path / "nowhere.pth"), None)
    with pytest.raises(UserError, match="sam_sha256 is not that of the published vit_b"):
        find_checkpoint("vit_b", None, actual)


def test_the_published_file_by_path_needs_no_sha256(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "b.pth").write_bytes(CONTENT)
    assert find_checkpoint("vit_b", str(tmp_path / "b.pth"), None)[0] == tmp_path / "b.pth"
    assert hub.asked == []


def test_a_detector_is_known_by_all_that_it_reads(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "vocab.txt", "README.md"):
        (tmp_path / name).write_text(f"\0{name}")
    folder, sha256 = find_detector(str(tmp_path))
    assert folder == tmp_path
    (tmp_path / "README.md").write_text("other")
    assert find_detector(str(tmp_path))[1] == sha256
    (tmp_path / "vocab.txt").write_text("other")
    assert find_detector(str(tmp_path))[1] != sha256


def test_a_detector_of_pickles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds no \.safetensors file"):
        find_detector(str(tmp_path))


@pytest.mark.parametrize("name", ["no such folder", "a/b/c", "/nowhere", "grounding-dino-tiny"])
def test_what_is_neither_folder_nor_name(name: str) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*; expected for example IDEA-Research/"):
        find_detector(name)


def test_a_detector_without_network_is_one_line_with_the_way_by_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot download http://127\.0\.0\.1:9/nobody/nothing \(.+\)") as error:
        find_detector("nobody/nothing")
    assert "name it in detector" in str(error.value)
    assert "\n" not in str(error.value)
