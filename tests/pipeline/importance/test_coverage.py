"""Numbers of the masks without decoding one."""

import json
from pathlib import Path

import pytest

from charm.runtime.errors import UserError
from pipeline.importance.make import read_coverages, write_coverages
from pipeline.shards.write import write_shard


def write_masks(folder: Path, coverages: list[float]) -> None:
    """A shard of masks whose images nobody reads."""
    samples = (
        (f"{index:08}", {"mask.json": json.dumps({"coverage": coverage}).encode(), "mask.png": b""})
        for index, coverage in enumerate(coverages)
    )
    write_shard(folder / "shard-000000", samples)


def test_empty_masks_are_counted_apart_and_flagged(tmp_path: Path) -> None:
    write_masks(tmp_path, [0.5, 0.0, 0.1, 0.3, 1e-8, 0.0, 1.0, 0.2])
    assert write_coverages(tmp_path) == {
        "images": 8,
        "empty": 2,
        "empty_rate": 0.25,
        "coverage": {"0.0": 0.0, "0.25": 0.125, "0.5": 0.25, "0.75": 0.45, "1.0": 1.0},
    }
    lines = (tmp_path / "masks.csv").read_text().splitlines()
    assert lines[:3] == ["key,coverage,salient", "00000000,0.500000000,1", "00000001,0.000000000,0"]
    assert lines[5] == "00000004,0.000000010,1"  # one pixel of 100 million is an object
    assert list(read_coverages(tmp_path).values()) == [0.5, 0.0, 0.1, 0.3, 1e-8, 0.0, 1.0, 0.2]


@pytest.mark.parametrize("coverages", [[], [0.0, 0.0]], ids=["no images", "all empty"])
def test_without_any_object_there_are_no_quantiles(coverages: list[float], tmp_path: Path) -> None:
    write_masks(tmp_path, coverages)
    facts = write_coverages(tmp_path)
    assert facts["coverage"] == {}
    assert facts["empty_rate"] == (1.0 if coverages else 0.0)


@pytest.mark.parametrize("content", [None, "key,coverage,salient\na,much,1\n", "key\na\n"])
def test_a_damaged_table_is_one_line(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "masks.csv").write_text(content)
    with pytest.raises(UserError, match=r"masks\.csv: missing or damaged .*; run dvc repro"):
        read_coverages(tmp_path)
