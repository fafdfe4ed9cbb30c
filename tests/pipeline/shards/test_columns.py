"""Columns beside the shards: joined by key, and never silently to other images."""

import re
from pathlib import Path

import numpy as np
import pytest

from charm.runtime.errors import UserError
from charm.tokenization.importance import score_patches
from pipeline.shards.columns import ColumnReader
from pipeline.shards.write import pack_shard, write_shard
from tests.conftest import Small, sidecar_of


@pytest.mark.parametrize("size", [28, 56])
def test_stored_scores_are_those_of_the_decoded_image(size: int, packed: Small) -> None:
    images = packed.images
    column = ColumnReader(packed.data / "gradient", images)
    for key in images:
        expected = score_patches(images.read_image(key), "gradient", size, "nearest")
        stored = column.read_importance(key, size)
        assert stored.dtype == np.float32
        assert np.array_equal(stored, expected)


def test_size_that_was_not_stored_says_what_to_add(packed: Small) -> None:
    column = ColumnReader(packed.data / "gradient", packed.images)
    with pytest.raises(UserError, match=r"add 42 to coarse_patch_sizes of this map in params\.yaml"):
        column.read_importance("00000000", 42)


def test_scores_instead_of_masks(packed: Small) -> None:
    column = ColumnReader(packed.data / "gradient", packed.images)
    with pytest.raises(UserError, match="gradient has no mask of 00000000"):
        column.read_mask("00000000")


def test_no_column(packed: Small, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: no map for 00000000 of")):
        ColumnReader(tmp_path, packed.images)


def test_missing_key_names_both_sides(small: Small) -> None:
    write_shard(
        small.data / "gradient" / "shard-000001", [("00000004", {"p28.npy": b""}), ("00000006", {"p28.npy": b""})]
    )
    with pytest.raises(UserError) as error:
        ColumnReader(small.data / "gradient", small.images)
    assert f"{small.data / 'gradient'}: no map for 00000005" in str(error.value)
    assert str(small.data / "shards" / "shard-000001.tar") in str(error.value)


def write_masks(small: Small, sample: dict[str, bytes], keys: list[str]) -> None:
    """A column `masks`, with the same sample for every key, four to a shard and the rest in the second."""
    (small.data / "masks").mkdir()
    for number, part in enumerate((keys[:4], keys[4:])):
        name = f"shard-00000{number}"
        write_shard(small.data / "masks" / name, ((key, sample) for key in part), small.images.images[name])


def swap(folder: Path, end: str) -> None:
    first, second = (folder / f"shard-00000{number}{end}" for number in (0, 1))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def test_swapped_shards_are_named_both(small: Small) -> None:
    for end in (".tar", ".json"):
        swap(small.data / "gradient", end)
    with pytest.raises(UserError) as error:
        ColumnReader(small.data / "gradient", small.images)
    assert str(small.data / "gradient" / "shard-000001.tar") in str(error.value)
    assert str(small.data / "shards" / "shard-000000.tar") in str(error.value)


def test_swapped_tars_under_their_old_sidecars(small: Small) -> None:
    swap(small.data / "gradient", ".tar")
    column = ColumnReader(small.data / "gradient", small.images)  # tars are padded: these two are equally long
    for key in small.images:
        with pytest.raises(UserError, match=rf"{key}\.p28\.npy is damaged"):
            column.read_importance(key, 28)


def test_damaged_scores(small: Small) -> None:
    path = small.data / "gradient" / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    start, size, _ = sidecar_of(path)["members"]["00000002"]["p28.npy"]
    data[start + size - 2] ^= 4
    path.write_bytes(data)
    column = ColumnReader(small.data / "gradient", small.images)
    with pytest.raises(UserError, match=re.escape(f"{path}: 00000002.p28.npy is damaged")):
        column.read_importance("00000002", 28)


def test_scores_are_never_unpickled(small: Small, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([print], dtype=object), allow_pickle=True)
    keys = list(small.images)
    for number, part in enumerate((keys[:4], keys[4:])):
        sample = {"p28.npy": (tmp_path / "x.npy").read_bytes()}
        name = f"shard-00000{number}"
        write_shard(small.data / "gradient" / name, ((key, sample) for key in part), small.images.images[name])
    column = ColumnReader(small.data / "gradient", small.images)
    with pytest.raises(UserError, match=r"00000000\.p28\.npy: an array of object"):
        column.read_importance("00000000", 28)


def test_a_mask_that_is_no_png(small: Small) -> None:
    write_masks(small, {"mask.png": b"no image"}, list(small.images))
    with pytest.raises(UserError, match=r"shard-000000\.tar: 00000000\.mask\.png: "):
        ColumnReader(small.data / "masks", small.images).read_mask("00000000")


def test_a_key_too_many(small: Small) -> None:
    write_masks(small, {"mask.png": b"1"}, [*small.images, "00000099"])
    with pytest.raises(UserError, match=r"masks/shard-000001\.tar holds 00000099, which is not in"):
        ColumnReader(small.data / "masks", small.images)


def test_a_shard_too_many(small: Small) -> None:
    write_shard(small.data / "gradient" / "shard-000002", [])
    with pytest.raises(UserError, match="its shards are not those of"):
        ColumnReader(small.data / "gradient", small.images)


def test_a_column_of_earlier_images_with_the_same_keys(small: Small) -> None:
    name = "shard-000001"
    rows = [row | {"target": [0.9], "split": "val"} for row in small.rows[4:]]
    pack_shard(rows, str(small.root), "jpg", 95, (0.0, 1.0), small.data / "shards" / name)
    ColumnReader(small.data / "gradient", small.images)  # another label makes no other map
    rows[0] |= {"height": 10, "width": 10}
    pack_shard(rows, str(small.root), "jpg", 95, (0.0, 1.0), small.data / "shards" / name)
    with pytest.raises(UserError, match=rf"gradient/{name}\.tar was not made from .*/shards/{name}\.tar but"):
        ColumnReader(small.data / "gradient", small.images)
