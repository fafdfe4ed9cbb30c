"""Shards: bytes that are a function of the samples, readable by WebDataset, and verified at every read."""

import hashlib
import io
import json
import pickle
import re
import shutil
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from webdataset import tariterators

from charm.images.decode import decode_image
from charm.images.limits import Colour
from charm.runtime.errors import UserError
from pipeline.manifest.labels import Listed, Listing
from pipeline.manifest.rows import build_rows, inspect_images
from pipeline.settings.params import Params
from pipeline.shards.read import ShardReader
from pipeline.shards.write import choose_member, describe_tar, pack_shard, write_shard
from tests.charm.images.files import encode
from tests.charm.images.test_colour import P3
from tests.conftest import SIZES, Small, draw_image, sidecar_of

SAMPLES = [(f"{i:08d}", {"jpg": bytes([i]) * (300 * i + 1), "json": b"{}", "p28.npy": b"scores"}) for i in range(5)]


def test_equal_samples_are_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "later").mkdir()
    write_shard(tmp_path / "a", SAMPLES)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    write_shard(tmp_path / "later" / "a", ((key, dict(reversed(sample.items()))) for key, sample in SAMPLES))
    for end in ("tar", "json"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / "later" / f"a.{end}").read_bytes()


def test_sidecar_says_what_the_tar_holds(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", SAMPLES)
    data = (tmp_path / "a.tar").read_bytes()
    sidecar = json.loads((tmp_path / "a.json").read_bytes())
    assert sidecar["bytes"] == len(data)
    assert sidecar["sha256"] == hashlib.sha256(data).hexdigest()
    assert list(sidecar["members"]) == [key for key, _ in SAMPLES]
    assert describe_tar(tmp_path / "a.tar").items() <= sidecar.items()
    for key, sample in SAMPLES:
        for extension, (start, size, _) in sidecar["members"][key].items():
            assert data[start : start + size] == sample[extension]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def samples() -> Any:
        yield SAMPLES[1]
        raise UserError("image has changed")

    with pytest.raises(UserError, match="image has changed"):
        write_shard(tmp_path / "a", samples())
    assert not list(tmp_path.iterdir())


def test_webdataset_reads_the_same_keys_and_bytes(packed: Small) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # webdataset's own
        import webdataset

        urls = [str(path) for path in sorted((packed.data / "shards").glob("*.tar"))]
        read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in read] == packed.manifest.keys
    images = packed.images
    for index, sample in enumerate(read):
        assert sample["jpg"] == (packed.root / f"{index}.jpg").read_bytes() == images.read(sample["__key__"], "jpg")
        label = {"name": f"{index}.jpg", "target": [index / 10], "score_range": [0.0, 1.0]}
        assert json.loads(sample["json"]) == label | {"split": packed.rows[index]["split"]}
        assert json.loads(images.read(sample["__key__"], "json"))["name"] == f"{index}.jpg"


def test_extension_begins_at_the_first_dot_as_in_webdataset() -> None:
    assert tariterators.base_plus_ext("00000001.p28.npy") == ("00000001", "p28.npy")


def tars(packed: Small) -> dict[str, Path]:
    return {path.stem: path for path in sorted((packed.data / "shards").glob("*.tar"))}


def test_reader_knows_keys_shards_and_pixels(packed: Small) -> None:
    images = packed.images
    assert list(images) == packed.manifest.keys
    assert [images.shard_of(key) for key in images] == ["shard-000000"] * 4 + ["shard-000001"] * 3
    assert images.extensions("00000000") == ["jpg", "json"]
    assert "00000007" not in images
    assert [images.read_image(key).shape[:2] for key in images] == list(SIZES)
    assert len(images) == len(SIZES)
    assert images.shards == {name: sidecar_of(small_tar)["sha256"] for name, small_tar in tars(packed).items()}
    assert list(ShardReader(packed.data / "shards", "shard-000001")) == packed.manifest.keys[4:]


def test_reader_may_be_handed_to_another_process(packed: Small) -> None:
    images = packed.images
    expected = images.read("00000006", "jpg")
    assert pickle.loads(pickle.dumps(images)).read("00000006", "jpg") == expected


def test_reading_leaves_no_file_open(packed: Small) -> None:
    """A data set of 300,000 images has more shards than a process may have files."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    readers = [packed.images for _ in range(5)]
    assert all(reader.read(key, "jpg") for reader in readers for key in reader)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_flipped_bit_in_any_member_is_found(small: Small) -> None:
    path = small.data / "shards" / "shard-000001.tar"
    whole = path.read_bytes()
    reader = small.images
    for key in small.manifest.keys[4:]:
        for extension, (start, size, _) in sidecar_of(path)["members"][key].items():
            for place in {start, start + size // 2, start + size - 1}:
                damaged = bytearray(whole)
                damaged[place] ^= 1 << (place % 8)
                path.write_bytes(damaged)
                with pytest.raises(UserError, match=re.escape(f"{path}: {key}.{extension} is damaged")):
                    reader.read(key, extension)
    path.write_bytes(whole)
    assert reader.read("00000006", "jpg") == (small.root / "6.jpg").read_bytes()


def test_a_tar_cut_after_opening_is_found(small: Small) -> None:
    reader = small.images
    path = small.data / "shards" / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="is damaged"):
        reader.read("00000006", "jpg")


@pytest.mark.parametrize("length", [0, 512, 1024, -512, -1])
def test_a_truncated_tar_is_an_error_at_opening(length: int, small: Small) -> None:
    path = small.data / "shards" / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=re.escape(f"{path}: missing, or not what its sidecar says")):
        ShardReader(path.parent)


def test_a_missing_tar_is_an_error_at_opening(small: Small) -> None:
    path = small.data / "shards" / "shard-000000.tar"
    path.unlink()
    with pytest.raises(UserError, match=re.escape(f"{path}: missing")):
        ShardReader(path.parent)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"3", b"[]", b"{}"])
def test_a_damaged_sidecar_is_an_error_at_opening(content: bytes, small: Small) -> None:
    path = small.data / "shards" / "shard-000000.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-000000\.json: damaged"):
        ShardReader(path.parent)


def test_a_key_in_two_shards_is_an_error(small: Small) -> None:
    shards = small.data / "shards"
    for end in (".tar", ".json"):
        shutil.copy(shards / f"shard-000000{end}", shards / f"shard-000002{end}")
    with pytest.raises(UserError, match="00000000 is in shard-000000 and in shard-000002"):
        ShardReader(shards)


def test_bytes_that_are_no_image_name_the_member(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard-000000", [("00000000", {"jpg": b"no image"})])
    with pytest.raises(UserError, match=r"shard-000000\.tar: 00000000\.jpg: not a JPEG"):
        ShardReader(tmp_path).read_image("00000000")


@pytest.mark.parametrize("key", ["a.b", "../a", "", "a/b", "a b", "\n"])
def test_keys_that_a_tar_would_not_give_back(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected letters, digits"):
        write_shard(tmp_path / "a", [("0", {"jpg": b"1"}), (key, {"jpg": b"2"})])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "second",
    [("0", {"jpg": b"2"}), ("1", {}), ("1", {"_jpg": b"2"}), ("1", {"a/b": b"2"})],
    ids=["twice", "without bytes", "an extension that is left out", "a folder"],
)
def test_samples_that_would_get_lost(second: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="once, with plain extensions"):
        write_shard(tmp_path / "a", [("0", {"jpg": b"1"}), second])


def test_raw_shards_hold_pixels(small: Small, tmp_path: Path) -> None:
    rows = [dict(small.rows[0]), small.rows[1] | {"height": 40, "width": 30}]
    pack_shard(rows, str(small.root), "npy", 95, (0.0, 1.0), tmp_path / "shard-000000")
    reader = ShardReader(tmp_path)
    assert reader.extensions("00000000") == ["json", "npy"]
    stored = reader.read_image("00000000")
    assert np.array_equal(stored, small.images.read_image("00000000"))
    assert not stored.flags.writeable
    assert reader.read_image("00000001").shape == (40, 30, 3)
    assert np.array_equal(np.load(io.BytesIO(reader.read("00000000", "npy"))), stored)


def test_an_array_that_was_written_elsewhere_and_does_not_fit(tmp_path: Path) -> None:
    pickled, turned = io.BytesIO(), io.BytesIO()
    np.save(pickled, np.array([print], dtype=object), allow_pickle=True)
    np.save(turned, np.asfortranarray(np.zeros((2, 3), np.uint8)))
    samples = {
        "objects": pickled.getvalue(),
        "turned": turned.getvalue(),
        "other": b"no array",
        "cut": pickled.getvalue()[:20],
    }
    write_shard(tmp_path / "shard-000000", ((key, {"npy": data}) for key, data in samples.items()))
    reader = ShardReader(tmp_path)
    for key in samples:
        with pytest.raises(UserError, match=rf"shard-000000\.tar: {key}\.npy: "):
            reader.read_image(key)


def test_damage_after_the_first_read_is_found_by_the_next_process(small: Small) -> None:
    path = small.data / "shards" / "shard-000001.tar"
    reader = small.images
    assert reader.read("00000006", "jpg")
    start, size, _ = sidecar_of(path)["members"]["00000006"]["jpg"]
    damaged = bytearray(path.read_bytes())
    damaged[start + size // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"00000006\.jpg is damaged"):
        small.images.read("00000006", "jpg")


@pytest.mark.parametrize("change", ["other bytes", "removed"])
def test_a_source_image_that_changed_is_refused(change: str, small: Small) -> None:
    path = small.root / "1.jpg"
    path.unlink()
    if change == "other bytes":
        path.write_bytes(simplejpeg.encode_jpeg(draw_image(*SIZES[1], seed=99)))
    with pytest.raises(UserError, match=re.escape("1.jpg has changed since it was listed")):
        pack_shard(small.rows[:3], str(small.root), "jpg", 95, (0.0, 1.0), small.data / "new")
    assert not list(small.data.glob("new*"))


def test_max_edge_downscales_and_other_images_keep_their_bytes(small: Small, tmp_path: Path) -> None:
    rows = [dict(row) for row in small.rows[:2]]
    rows[1] |= {"height": 60, "width": 45}  # 120 x 90
    pack_shard(rows, str(small.root), "jpg", 95, (0.0, 1.0), tmp_path / "shard-000000")
    reader = ShardReader(tmp_path)
    assert reader.read("00000000", "jpg") == (small.root / "0.jpg").read_bytes()
    original = decode_image((small.root / "1.jpg").read_bytes()).pixels.astype(int)
    halved = original.reshape(60, 2, 45, 2, 3).mean(axis=(1, 3))
    assert np.abs(reader.read_image("00000001") - halved).mean() < 4


def test_a_downscaled_image_of_any_format_is_a_jpeg(small: Small, tmp_path: Path) -> None:
    Image.fromarray(draw_image(40, 60)).save(small.root / "p.png")
    data = (small.root / "p.png").read_bytes()
    row = small.rows[0] | {"path": "p.png", "extension": "png", "sha256": hashlib.sha256(data).hexdigest()}
    row |= {"raw_height": 40, "raw_width": 60, "height": 20, "width": 30}
    pack_shard([row], str(small.root), "jpg", 95, (0.0, 1.0), tmp_path / "shard-000000")
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        assert tar.getnames() == ["00000000.jpg", "00000000.json"]
    assert ShardReader(tmp_path).read_image("00000000").shape == (20, 30, 3)


@pytest.mark.parametrize("colour", ["srgb", "as_is"])
@pytest.mark.parametrize(("encoding", "edge"), [("jpeg", None), ("jpeg", 32), ("raw", None)])
def test_wide_colours_are_read_as_the_manifest_says(
    colour: Colour, encoding: str, edge: int | None, tmp_path: Path, shipped_params: Params
) -> None:
    """From the labels to the reader: an image in Display P3 and one without a tag."""
    root, flat = tmp_path / "images", np.full((48, 64, 3), (200, 60, 80), np.uint8)
    root.mkdir()
    (root / "0.jpg").write_bytes(encode(flat, "JPEG", icc_profile=P3, quality=100))
    (root / "1.jpg").write_bytes(encode(flat, "JPEG", quality=100))
    listing = Listing(root, [Listed(name, name, (0.5,), "train", "") for name in ("0.jpg", "1.jpg")], (0, 1), 0.5, "")
    inspect_images(str(root), ["0.jpg", "1.jpg"], 10**6, edge, tmp_path / "found")
    settings = replace(shipped_params.manifest, colour=colour)
    rows = build_rows(listing, json.loads((tmp_path / "found.json").read_bytes())["images"], settings, 0)
    assert [row["notes"] for row in rows] == [["icc" if colour == "srgb" else "as_is"], []]
    pack_shard(rows, str(root), choose_member(rows, encoding), 95, (0.0, 1.0), tmp_path / "shard-000000")
    reader = ShardReader(tmp_path)
    wide, plain = (reader.read_image(key)[8, 8].astype(int) for key in reader)
    assert np.abs(plain - (200, 60, 80)).max() <= 2
    assert np.abs(wide - ((217, 42, 76) if colour == "srgb" else (200, 60, 80))).max() <= 2
    if encoding == "jpeg" and not edge:
        extension = "jpg" if colour == "srgb" else "asis.jpg"
        assert reader.extensions("00000000") == [extension, "json"]
        assert reader.read("00000000", extension) == (root / "0.jpg").read_bytes()
