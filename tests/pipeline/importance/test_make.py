"""Making columns: one map per image, under the images' keys, lossless."""

import json
from pathlib import Path

import numpy as np
import pytest

from charm.tokenization.importance import IMPORTANCE, score_patches
from pipeline.importance import make as maps
from pipeline.importance.make import MAP_CODE, MAPS, make_block, make_column
from pipeline.shards.blocks import join_blocks
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader
from pipeline.work import code
from pipeline.work.code import code_digest
from tests.conftest import Small

SHARDS = ("shard-000000", "shard-000001")
SCORES = {"coarse_patch_sizes": [28], "fit": "nearest"}


def make(packed: Small, name: str, folder: Path, fit: str = "nearest") -> ColumnReader:
    for shard in SHARDS:
        make_column(str(packed.data / "shards"), shard, name, {"coarse_patch_sizes": [28], "fit": fit}, folder / shard)
    return ColumnReader(folder, packed.images)


@pytest.mark.parametrize("fit", ["nearest", "pad"])
@pytest.mark.parametrize("name", sorted(IMPORTANCE))
def test_scores(name: str, fit: str, packed: Small, tmp_path: Path) -> None:
    column = make(packed, name, tmp_path, fit)
    for key in packed.images:
        expected = score_patches(packed.images.read_image(key), name, 28, fit)
        assert np.array_equal(column.read_importance(key, 28), expected)


def test_masks_come_back_as_they_were_at_the_images_size(
    packed: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detect(image: np.ndarray) -> np.ndarray:
        return np.asarray(np.random.default_rng(len(image)).random(image.shape[:2]) < 0.5)

    monkeypatch.setattr(maps, "detect", detect)
    column = make(packed, "mbd", tmp_path)
    for key in packed.images:
        image = packed.images.read_image(key)
        mask = column.read_mask(key)
        assert mask.dtype == bool
        assert np.array_equal(mask, detect(image))


def test_saliency_is_the_detected_mask(packed: Small, tmp_path: Path) -> None:
    make_column(str(packed.data / "shards"), "shard-000001", "mbd", {}, tmp_path / "shard-000001")
    column = ColumnReader(tmp_path, ShardReader(packed.data / "shards", "shard-000001"))
    image = packed.images.read_image("00000005")
    assert np.array_equal(column.read_mask("00000005"), maps.detect(image))


def test_a_column_is_a_function_of_the_shard(packed: Small, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        make(packed, "entropy", tmp_path / folder)
    for shard in SHARDS:
        for end in (".tar", ".json"):
            assert (tmp_path / "a" / shard).with_suffix(end).read_bytes() == (tmp_path / "b" / shard).with_suffix(
                end
            ).read_bytes()


def test_masks_say_what_they_cover(packed: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "detect", lambda image: np.arange(image[..., 0].size).reshape(image.shape[:2]) < 60)
    make(packed, "mbd", tmp_path)
    found = ShardReader(tmp_path)
    assert json.loads(found.read("00000000", "mask.json")) == {"coverage": 60 / (60 * 80)}


def test_a_column_joined_from_blocks_is_that_made_at_once(packed: Small, tmp_path: Path) -> None:
    (tmp_path / "joined").mkdir()
    spans = [(0, 3), (3, 4)]
    for start, stop in spans:
        folder = str(packed.data / "shards")
        make_block(folder, SHARDS[0], "entropy", SCORES, (start, stop), tmp_path / f"block-{start}")
    join_blocks([str(tmp_path / f"block-{start}") for start, _ in spans], tmp_path / "joined" / SHARDS[0])
    make_column(str(packed.data / "shards"), SHARDS[0], "entropy", SCORES, tmp_path / SHARDS[0])
    for end in (".tar", ".json"):
        joined = (tmp_path / "joined" / SHARDS[0]).with_suffix(end)
        assert joined.read_bytes() == (tmp_path / SHARDS[0]).with_suffix(end).read_bytes()


def test_another_maps_code_remakes_no_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of each map, one changed after the other: the digest of that map changes, and no other."""
    before = {way: code_digest(*MAP_CODE[way]) for way in MAPS}
    assert len(set(before.values())) == len(MAPS)
    read = code._read_source
    for module, old, new, changed in (
        ("charm.tokenization.importance", "share[0] = 1.0", "share[0] = 2.0", {"entropy"}),
        ("charm.tokenization.importance", "luminance, cv2.CV_32F, 1, 0", "luminance, cv2.CV_32F, 2, 0", {"gradient"}),
        ("charm.tokenization.importance", "np.log1p(power)", "np.log2(power)", {"frequency"}),
        (
            "charm.tokenization.importance",
            "cv2.COLOR_RGB2GRAY",
            "cv2.COLOR_BGR2GRAY",
            {"frequency", "gradient", "entropy"},
        ),
        ("charm.saliency.mbd", "SWEEP_ROUNDS = 2", "SWEEP_ROUNDS = 3", {"mbd"}),
        ("charm.saliency.sam_hq", "MAX_ASPECT = 1000", "MAX_ASPECT = 999", {"sam_hq"}),
        (
            "pipeline.importance.make",
            "return encode_mask(detect(image))",
            "return encode_mask(~detect(image))",
            {"mbd"},
        ),
    ):
        assert read(module).count(old) == 1, old
        source = read(module).replace(old, new)
        monkeypatch.setattr(
            code, "_read_source", lambda name, module=module, source=source: source if name == module else read(name)
        )
        assert {way for way in MAPS if code_digest(*MAP_CODE[way]) != before[way]} == changed
