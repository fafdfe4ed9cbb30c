"""The manifest on disk: a round trip, counts that add up, and no damage that passes unnoticed."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.listing import Listed, Listing
from pipeline.manifest import SCHEMA, read_manifest, write_manifest
from pipeline.reasons import REASONS
from pipeline.store import read_record
from tests.conftest import SIZES, Small

NAMES = ["plain.jpg", "two\nlines.jpg", 'quo"ted, with a comma.jpg', "é" * 300, "nul\0.jpg", "=1+1"]


def rows_of(names: list[str], reason: str = "") -> list[dict[str, object]]:
    facts = {"extension": "jpg", "bytes": 9, "sha256": "ab", "split": "train", "target": [0.25], "reason": reason}
    sizes = {"raw_height": 40, "raw_width": 30, "height": 20, "width": 15}
    return [facts | sizes | {"key": f"{i:08d}", "name": name, "path": name} for i, name in enumerate(names)]


def scores(folder: Path) -> Listing:
    return Listing(folder, [Listed("a", "a", (3.0,), None, "x")], (1.0, 5.0), 3.5)


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
        assert [row["name"] for row in csv.DictReader(file)] == NAMES


def test_listed_is_kept_and_rejected(tmp_path: Path) -> None:
    rows = rows_of(["a", "b", "c"]) + [row for reason in REASONS for row in rows_of(["d", "e"], reason)]
    facts = write_manifest(tmp_path, rows, scores(tmp_path), "csv")
    assert facts["listed"] == 3 + 2 * len(REASONS)
    assert facts["packed"] == 3
    assert facts["rejected"] == dict.fromkeys(sorted(REASONS), 2)
    assert facts["splits"] == {"train": 3}
    assert read_record(tmp_path / "dataset.json") == facts
    with open(tmp_path / "rejected.csv", newline="") as file:
        rejected = list(csv.DictReader(file))
    assert Counter(row["reason"] for row in rejected) == facts["rejected"]
    assert {row["meaning"] for row in rejected} == set(REASONS.values())


def test_scale_of_scores(tmp_path: Path) -> None:
    facts = write_manifest(tmp_path, rows_of(["a"]), scores(tmp_path), "csv")
    assert (facts["score_range"], facts["accuracy_threshold"], facts["num_bins"]) == ([1.0, 5.0], 0.625, 1)
    assert read_manifest(tmp_path).bins.tolist() == [1.0]


def test_bins_of_distributions(tmp_path: Path) -> None:
    listing = Listing(tmp_path, [Listed("a", "a", (1.0, 2.0, 1.0), None, "x")], (1.0, 3.0), 2.0)
    write_manifest(tmp_path, rows_of(["a"]), listing, "csv")
    assert read_manifest(tmp_path).bins.tolist() == [0.0, 0.5, 1.0]


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
