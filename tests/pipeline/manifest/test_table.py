"""The manifest on disk: a round trip, counts that add up, and no damage that passes unnoticed."""

import csv
import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from charm.images.reasons import REASONS
from charm.runtime.errors import UserError
from charm.runtime.schema import build
from pipeline.manifest.labels import Listed, Listing
from pipeline.manifest.splits import find_leaks
from pipeline.manifest.table import SCHEMA, DatasetFacts, read_manifest, write_manifest
from pipeline.work.store import read_record
from tests.conftest import SIZES, Small

NAMES = ["plain.jpg", "two\nlines.jpg", 'quo"ted, with a comma.jpg', "é" * 300, "nul\0.jpg", "=1+1"]


def rows_of(names: list[str], reason: str = "") -> list[dict[str, object]]:
    facts = {"extension": "jpg", "bytes": 9, "sha256": "ab", "split": "train", "target": [0.25]}
    facts |= {"group": None, "ratings": 1, "spread": None}
    facts |= {"reason": reason, "notes": None if reason else ["grey"]}
    sizes = {"raw_height": 40, "raw_width": 30, "height": 20, "width": 15}
    return [facts | sizes | {"key": f"{i:08d}", "name": name, "path": name} for i, name in enumerate(names)]


def scores(folder: Path) -> Listing:
    return Listing(folder, [Listed("a", "a", (3.0,), None, "x")], (1.0, 5.0), 3.5, "nothing")


def test_round_trip(small: Small) -> None:
    manifest = small.manifest
    assert manifest.table.to_pylist() == small.rows
    assert manifest.table.schema.equals(SCHEMA)
    assert manifest.keys == [f"{i:08d}" for i in range(7)]
    assert manifest.image_hws == list(SIZES)
    assert np.array_equal(manifest.targets, np.arange(7)[:, None] / 10)
    assert manifest.of_split("val").keys == ["00000005"]
    assert manifest.of_split("val").facts == manifest.facts


def test_hostile_names_survive(tmp_path: Path) -> None:
    write_manifest(tmp_path, rows_of(NAMES) + rows_of(NAMES, "missing"), scores(tmp_path), "csv")
    assert read_manifest(tmp_path).table["name"].to_pylist() == NAMES
    with open(tmp_path / "rejected.csv", newline="", encoding="utf-8") as file:
        expected = [name.replace("=1+1", "./=1+1") for name in NAMES]  # a spreadsheet would run it
        assert [row["name"] for row in csv.DictReader(file)] == expected


@pytest.mark.parametrize("name", ["name\udcff.jpg", "\ud800"])
def test_names_of_rejected_images_that_are_no_text_are_escaped(name: str, tmp_path: Path) -> None:
    write_manifest(tmp_path, rows_of(["good"]) + rows_of([name], "name"), scores(tmp_path), "csv")
    escaped = name.replace("\udcff", "\\udcff").replace("\ud800", "\\ud800")
    assert pq.read_table(tmp_path / "manifest.parquet")["path"].to_pylist() == ["good", escaped]
    assert escaped in (tmp_path / "rejected.csv").read_text()


def test_listed_is_kept_and_rejected(tmp_path: Path) -> None:
    rows = rows_of(["a", "b", "c"]) + [row for reason in REASONS for row in rows_of(["d", "e"], reason)]
    facts = write_manifest(tmp_path, rows, scores(tmp_path), "csv")
    assert facts.listed == 3 + 2 * len(REASONS)
    assert facts.packed == 3
    assert facts.rejected == dict.fromkeys(sorted(REASONS), 2)
    assert facts.splits == {"train": 3}
    assert facts.notes == {"grey": 3}
    assert build(DatasetFacts, read_record(tmp_path / "dataset.json")) == facts
    with open(tmp_path / "rejected.csv", newline="") as file:
        rejected = list(csv.DictReader(file))
    assert Counter(row["reason"] for row in rejected) == facts.rejected
    assert {row["meaning"] for row in rejected} == set(REASONS.values())


def test_scale_of_scores(tmp_path: Path) -> None:
    facts = write_manifest(tmp_path, rows_of(["a"]), scores(tmp_path), "csv")
    assert (facts.groups, facts.rated_again, facts.mean_spread) == (facts.splits, 0, None)
    rows = rows_of(["a", "b", "c"])
    for row, spread in zip(rows, (1.0, 2.0), strict=False):
        row |= {"group": "one photograph", "ratings": 2, "spread": spread}
    facts = write_manifest(tmp_path, rows, scores(tmp_path), "csv")
    assert (facts.splits, facts.groups) == ({"train": 3}, {"train": 2})
    assert (facts.rated_again, facts.mean_spread) == (2, 1.5)
    assert (facts.score_range, facts.accuracy_threshold, facts.num_bins) == ((1.0, 5.0), 3.5, 1)
    assert read_manifest(tmp_path).unit_bins.tolist() == [1.0]


def test_bins_of_distributions(tmp_path: Path) -> None:
    listing = Listing(tmp_path, [Listed("a", "a", (1.0, 2.0, 1.0), None, "x")], (1.0, 3.0), 2.0, "nothing")
    write_manifest(tmp_path, rows_of(["a"]), listing, "csv")
    assert read_manifest(tmp_path).unit_bins.tolist() == [0.0, 0.5, 1.0]


def rows_in(*files: tuple[str, str]) -> list[dict[str, object]]:
    """Rows of (sha256, split)."""
    blank = rows_of([f"{index}" for index in range(len(files))])
    return [row | {"sha256": one, "split": split} for row, (one, split) in zip(blank, files, strict=True)]


def split_sha256(folder: Path, *files: tuple[str, str]) -> str:
    sha: str = write_manifest(folder, rows_in(*files), scores(folder), "csv").split_sha256
    return sha


def test_splits_are_identified_by_who_is_in_which(tmp_path: Path) -> None:
    sha = split_sha256(tmp_path, ("aa", "train"), ("bb", "test"))
    assert sha == hashlib.sha256(b"aa train\nbb test").hexdigest()
    assert sha == split_sha256(tmp_path, ("bb", "test"), ("aa", "train"))
    others = [("aa", "test"), ("bb", "train")], [("aa", "train")], [("aa", "train"), ("bc", "test")]
    assert sha not in {split_sha256(tmp_path, *files) for files in others}


def test_leaks_are_images_whose_bytes_stand_in_two_splits(tmp_path: Path) -> None:
    files = [("a", "train"), ("b", "test"), ("a", "test"), ("c", "val"), ("b", "test"), ("a", "train")]
    rows = rows_in(*files) + rows_of(["gone"], "missing")
    assert find_leaks(rows) == [[0, 2, 5]]
    assert write_manifest(tmp_path, rows, scores(tmp_path), "csv").leaks == 3
    for place in (1, 2):
        rows[place]["group"] = "g"
    assert find_leaks(rows) == [[0, 2, 5]]
    rows[3]["group"] = "g"
    assert find_leaks(rows) == [[0, 2, 5], [1, 2, 3]]
    assert write_manifest(tmp_path, rows, scores(tmp_path), "csv").leaks == 5


def test_pages_have_checksums(small: Small) -> None:
    """The sha256 in dataset.json finds more, but is not there for people who read the table with other programs."""
    path, table = small.data / "manifest" / "manifest.parquet", small.manifest.table
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    refused = 0
    for place in range(4, footer, 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert pq.read_table(path, page_checksum_verification=True).equals(table), place
        except (pa.ArrowException, OSError):
            refused += 1
    assert refused > footer // 11 // 2


def test_equal_rows_are_equal_bytes(small: Small, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    write_manifest(again, small.rows, small.listing, "csv")
    for name in ("manifest.parquet", "dataset.json", "rejected.csv"):
        assert (again / name).read_bytes() == (small.data / "manifest" / name).read_bytes(), name


@pytest.mark.parametrize("name", ["manifest.parquet", "dataset.json"])
def test_missing_file(name: str, small: Small) -> None:
    (small.data / "manifest" / name).unlink()
    with pytest.raises(UserError, match=re.escape(str(small.data / "manifest"))):
        read_manifest(small.data / "manifest")


def test_flipped_bits_are_found(small: Small) -> None:
    """In the pages and in the footer, which Parquet gives no checksum."""
    path = small.data / "manifest" / "manifest.parquet"
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 300)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="missing or damaged"):
            read_manifest(path.parent)


def test_a_table_cut_anywhere_is_found(small: Small) -> None:
    path = small.data / "manifest" / "manifest.parquet"
    whole = path.read_bytes()
    for length in range(0, len(whole), 256):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="missing or damaged"):
            read_manifest(path.parent)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "3"])
def test_damaged_facts(content: str, small: Small) -> None:
    (small.data / "manifest" / "dataset.json").write_text(content)
    with pytest.raises(UserError, match="missing or damaged"):
        read_manifest(small.data / "manifest")
