"""Columns beside the shards: joined by key, and never silently to other pictures."""

import re
from pathlib import Path

import numpy as np
import pytest

from charm.importance import score_patches
from pipeline.columns import ColumnReader
from pipeline.errors import UserError
from pipeline.shards import ShardReader, write_shard
from tests.conftest import Small


@pytest.mark.parametrize("size", [28, 56])
def test_stored_scores_are_those_of_the_decoded_picture(size: int, packed: Small) -> None:
    pictures = packed.pictures
    column = ColumnReader(packed.data / "gradient", pictures)
    for key in pictures:
        expected = score_patches(pictures.read_picture(key), "gradient", size, "nearest")
        stored = column.read_importance(key, size)
        assert stored.dtype == np.float32
        assert np.array_equal(stored, expected)


def test_size_that_was_not_stored_says_what_to_add(packed: Small) -> None:
    column = ColumnReader(packed.data / "gradient", packed.pictures)
    with pytest.raises(UserError, match=r"add 42 to coarse_patch_sizes of this map in params\.yaml"):
        column.read_importance("00000000", 42)


def test_scores_instead_of_masks(packed: Small) -> None:
    column = ColumnReader(packed.data / "gradient", packed.pictures)
    with pytest.raises(UserError, match="gradient has no mask of 00000000"):
        column.read_mask("00000000")


def test_no_column(packed: Small, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: no map for 00000000 of")):
        ColumnReader(tmp_path, packed.pictures)


def test_missing_key_names_both_sides(small: Small) -> None:
    write_shard(small.data / "gradient" / "shard-000001", [("00000004", {"p28.npy": b""}), ("00000006", {})])
    with pytest.raises(UserError) as error:
        ColumnReader(small.data / "gradient", small.pictures)
    assert f"{small.data / 'gradient'}: no map for 00000005" in str(error.value)
    assert str(small.data / "shards" / "shard-000001.tar") in str(error.value)


def swap(folder: Path, end: str) -> None:
    first, second = (folder / f"shard-00000{number}{end}" for number in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def test_swapped_shards_are_named_both(small: Small) -> None:
    for end in (".tar", ".json"):
        swap(small.data / "gradient", end)
    with pytest.raises(UserError) as error:
        ColumnReader(small.data / "gradient", small.pictures)
    assert str(small.data / "gradient" / "shard-000001.tar") in str(error.value)
    assert str(small.data / "shards" / "shard-000000.tar") in str(error.value)


def test_swapped_tars_under_their_old_sidecars(small: Small) -> None:
    swap(small.data / "gradient", ".tar")
    column = ColumnReader(small.data / "gradient", small.pictures)  # tars are padded: these two are equally long
    for key in small.pictures:
        with pytest.raises(UserError, match=rf"{key}\.p28\.npy is damaged"):
            column.read_importance(key, 28)


def test_damaged_scores(small: Small) -> None:
    path = small.data / "gradient" / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    start, size, _ = ShardReader(path.parent)._where["00000002"][1]["p28.npy"]
    data[start + size - 2] ^= 4
    path.write_bytes(data)
    column = ColumnReader(small.data / "gradient", small.pictures)
    with pytest.raises(UserError, match=re.escape(f"{path}: 00000002.p28.npy is damaged")):
        column.read_importance("00000002", 28)


def test_scores_are_never_unpickled(small: Small, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([print], dtype=object), allow_pickle=True)
    keys = list(small.pictures)
    for number, part in enumerate((keys[:4], keys[4:])):
        sample = {"p28.npy": (tmp_path / "x.npy").read_bytes()}
        write_shard(small.data / "gradient" / f"shard-00000{number}", ((key, sample) for key in part))
    column = ColumnReader(small.data / "gradient", small.pictures)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        column.read_importance("00000000", 28)
