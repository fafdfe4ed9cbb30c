"""Weights are those whose sha256 is known, however the network behaves; and the way by hand is always named."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from charm.runtime.disk import file_sha256
from charm.runtime.errors import UserError
from charm.saliency import weights
from charm.saliency.weights import Published, find_checkpoint, find_detector
from tests.hub import StubHub

CONTENT = np.random.default_rng(0).bytes(300_000)
REPOSITORY, REVISION = "lkeab/hq-sam", "a3a77cd0a2e5e50eaa76faccf61b964732d9b35f"


@pytest.fixture
def published(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> StubHub:
    """A hub on which the published vit_b is CONTENT."""
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(weights.SAM_HQ, "vit_b", Published("sam_hq_vit_b.pth", sha256))
    hub.revisions = (REVISION,)
    hub.repositories[REPOSITORY] = {"sam_hq_vit_b.pth": CONTENT, "sam_hq_vit_l.pth": b"", "setup.py": b""}
    return hub


def fetch() -> bytes:
    return find_checkpoint("vit_b", None, None)[0].read_bytes()


def test_the_published_file_is_downloaded_once(published: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sha256 = find_checkpoint("vit_b", None, None)
    assert path.read_bytes() == CONTENT
    assert sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert fetch() == CONTENT
    gets = [asked for asked in published.asked if asked.startswith("GET") and "/resolve/" in asked]
    assert gets == [f"GET /{REPOSITORY}/resolve/{REVISION}/sam_hq_vit_b.pth"]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch() == CONTENT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>Welcome to our network</title>", "is a web page, of a login or an error perhaps"),
        (
            b"\x80" + CONTENT,
            r"has sha256 [0-9a-f]{64}, not the published vit_b's; delete it, and it is downloaded again",
        ),
    ],
    ids=["a login page", "another file"],
)
def test_what_comes_in_the_place_of_the_published_file(content: bytes, message: str, published: StubHub) -> None:
    published.repositories[REPOSITORY]["sam_hq_vit_b.pth"] = content
    with pytest.raises(UserError, match=message):
        fetch()


@pytest.mark.parametrize("address", [None, "http://127.0.0.1:9"], ids=["no such file", "no network"])
def test_without_it_there_is_one_line_with_the_way_by_hand(
    address: str | None, published: StubHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.repositories.clear()
    monkeypatch.setenv("HF_ENDPOINT", address or published.address)
    expected = (
        rf"cannot download {re.escape(address or published.address)}/{REPOSITORY} at {REVISION} \(.+\): download "
    )
    with pytest.raises(
        UserError, match=rf"{expected}sam_hq_vit_b\.pth by any other way, and name it in sam_checkpoint"
    ) as e:
        fetch()
    assert "\n" not in str(e.value)


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


def test_the_published_file_by_path_needs_no_sha256(published: StubHub, tmp_path: Path) -> None:
    (tmp_path / "b.pth").write_bytes(CONTENT)
    assert find_checkpoint("vit_b", str(tmp_path / "b.pth"), None)[0] == tmp_path / "b.pth"
    assert published.asked == []


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
