"""Which masks a person should look at, and what is dark in them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from charm.runtime.errors import UserError
from pipeline.importance.make import write_coverages
from pipeline.report import gallery
from pipeline.report.gallery import DIMMED, dim, make_contact_sheet
from pipeline.shards.write import write_shard
from pipeline.work.store import write_record
from tests.conftest import Small

ROWS = (10, 0, 41, 41, 2, 0, 60)  # of each image that are salient, from the top


@pytest.fixture
def masks(packed: Small, tmp_path: Path) -> Path:
    """A column whose masks are the top rows of each image."""
    for shard, keys in (("shard-000000", range(4)), ("shard-000001", range(4, 7))):
        samples = []
        for index in keys:
            mask = np.zeros(packed.images.read_image(f"{index:08}").shape[:2], bool)
            mask[: ROWS[index]] = True
            buffer = io.BytesIO()
            Image.fromarray(mask).save(buffer, format="PNG")
            facts = json.dumps({"coverage": mask.mean()}).encode()
            samples.append((f"{index:08}", {"mask.png": buffer.getvalue(), "mask.json": facts}))
        write_shard(tmp_path / shard, samples, packed.images.images[shard])
    write_record(tmp_path / "column.json", {"map": "saliency", "backend": "mbd"} | write_coverages(tmp_path))
    return tmp_path


def test_largest_smallest_and_empty_masks_are_shown_none_twice(
    masks: Path, packed: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {f"{index:08}": f"{index}.jpg" for index in range(7)}
    monkeypatch.setattr(gallery, "SHOWN_MASKS", 3)
    sheet = make_contact_sheet(masks, packed.images, names)
    assert {title: [mask.name for mask in shown] for title, shown in sheet.groups.items()} == {
        "Largest": ["3.jpg", "6.jpg", "2.jpg"],
        "Smallest": ["4.jpg", "0.jpg"],
        "Empty": ["1.jpg", "5.jpg"],
    }
    assert sheet.facts["empty"] == 2
    assert sheet.groups["Largest"][0].coverage == 1.0


def test_a_group_without_masks_is_left_out(masks: Path, packed: Small) -> None:
    assert set(make_contact_sheet(masks, packed.images, {}).groups) == {"Largest", "Empty"}


def test_what_is_not_salient_is_dark_unless_nothing_is() -> None:
    image = np.full((480, 240, 3), 200, np.uint8)
    mask = np.zeros((480, 240), bool)
    assert np.array_equal(dim(image, mask), np.full((240, 120, 3), 200))
    mask[:240] = True
    dimmed = dim(image, mask)
    assert np.array_equal(dimmed[:120], np.full((120, 120, 3), 200))
    assert np.array_equal(dimmed[120:], np.full((120, 120, 3), round(200 * DIMMED)))


def test_no_column_is_one_line(tmp_path: Path, packed: Small) -> None:
    with pytest.raises(UserError, match=r"column\.json: missing or damaged .*; run dvc repro"):
        make_contact_sheet(tmp_path, packed.images, {})
