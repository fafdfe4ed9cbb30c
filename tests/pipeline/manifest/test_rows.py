"""From labels to rows: listed = kept + rejected, each for its exact reason; splits drawn by the files' bytes."""

import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import simplejpeg

from pipeline.manifest.labels import Listed, Listing
from pipeline.manifest.rows import build_rows, inspect_images, stat_image
from pipeline.settings.params import ManifestParams, Params
from pipeline.work.store import mark_changed
from tests.conftest import draw_image

GOOD = simplejpeg.encode_jpeg(draw_image(30, 40))


def inspect(root: Path, *paths: str, max_pixels: int = 10**6, max_edge: int | None = None) -> list[dict[str, Any]]:
    inspect_images(str(root), list(paths), max_pixels, max_edge, root.parent / "found")
    found: list[dict[str, Any]] = json.loads((root.parent / "found.json").read_bytes())["images"]
    return found


def listing(*images: Listed, score_range: tuple[float, float] = (0.0, 1.0)) -> Listing:
    return Listing(Path("/nowhere"), list(images), score_range, 0.5, "nothing")


def listed(name: str = "a.jpg", target: tuple[float, ...] = (0.5,), split: str | None = None) -> Listed:
    return Listed(name, name, target, split, "labels.csv:7")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(shipped_params: Params) -> ManifestParams:
    return shipped_params.manifest


def test_facts_of_good_and_bad_images_in_the_order_of_the_paths(root: Path) -> None:
    (root / "a.jpg").write_bytes(GOOD)
    (root / "b.jpg").write_bytes(simplejpeg.encode_jpeg(draw_image(50, 50)))
    good = {
        "reason": "",
        "extension": "jpg",
        "bytes": len(GOOD),
        "sha256": hashlib.sha256(GOOD).hexdigest(),
        "raw_height": 30,
        "raw_width": 40,
        "height": 30,
        "width": 40,
        "notes": [],
    }
    found = inspect(root, "b.jpg", "a.jpg", "../a.jpg", max_pixels=2000)
    assert found == [{"reason": "too_large"}, good, {"reason": "outside"}]


def test_max_edge_is_of_the_upright_image(root: Path) -> None:
    (root / "a.jpg").write_bytes(GOOD)
    (found,) = inspect(root, "a.jpg", max_edge=32)
    assert [found[name] for name in ("raw_height", "raw_width", "height", "width")] == [30, 40, 24, 32]


def kept(sha256: str) -> dict[str, Any]:
    return {"reason": "", "sha256": sha256}


def test_targets_are_scaled(settings: ManifestParams) -> None:
    scored = listing(listed("a", (1.0,)), listed("b", (4.0,)), score_range=(1.0, 5.0))
    rows = build_rows(scored, [kept("0"), kept("1")], settings, seed=0)
    assert [row["target"] for row in rows] == [[0.0], [0.75]]
    binned = build_rows(listing(listed("a", (1.0, 0.0, 3.0))), [kept("0")], settings, seed=0)
    assert binned[0]["target"] == [0.25, 0.0, 0.75]


def test_every_listed_image_has_a_row_and_a_rejected_one_no_split(settings: ManifestParams) -> None:
    images = [listed(f"{i}", split="train") for i in range(4)]
    found = [kept("0"), {"reason": "missing"}, kept("1"), {"reason": "corrupt"}]
    rows = build_rows(listing(*images), found, settings, seed=0)
    assert [row["key"] for row in rows] == ["00000000", "00000001", "00000002", "00000003"]
    assert [row["reason"] for row in rows] == ["", "missing", "", "corrupt"]
    assert [row["split"] for row in rows] == ["train", None, "train", None]


def drawn(settings: ManifestParams, shas: list[str], seed: int = 0) -> dict[str, str]:
    """sha256 -> split; asserts that equal files share theirs."""
    images = [listed(f"{i}") for i in range(len(shas))]
    rows = build_rows(listing(*images), [kept(sha) for sha in shas], settings, seed)
    pairs = {(row["sha256"], row["split"]) for row in rows}
    assert len(pairs) == len(set(shas))
    return dict(pairs)


def test_drawn_splits_have_their_shares(settings: ManifestParams) -> None:
    settings = replace(settings, test_share=0.2, val_share=0.1)
    splits = drawn(settings, [hashlib.sha256(bytes([i])).hexdigest() for i in range(200)])
    assert Counter(splits.values()) == {"test": 40, "val": 16, "train": 144}


def test_equal_files_are_in_one_split(settings: ManifestParams) -> None:
    splits = drawn(settings, [str(i % 30) for i in range(90)])
    assert set(splits.values()) == {"train", "val", "test"}


def test_drawn_splits_depend_on_the_files_and_the_seed_alone(settings: ManifestParams) -> None:
    shas = [f"{i:03d}" for i in range(100)]
    assert drawn(settings, shas) == drawn(settings, shas) == drawn(settings, shas[::-1])
    assert drawn(settings, shas, seed=1) != drawn(settings, shas, seed=0)


@pytest.mark.parametrize("bad", ["name\udcff.jpg", "\ud800"])
def test_a_name_that_is_no_text_is_rejected(bad: str, settings: ManifestParams) -> None:
    images = [listed("a", split="train"), replace(listed("b"), name=bad), replace(listed("c"), path=bad)]
    rows = build_rows(listing(*images), [kept("0"), kept("1"), kept("2")], settings, seed=0)
    assert [row["reason"] for row in rows] == ["", "name", "name"]
    assert rows[1]["sha256"] is None


def test_validation_is_drawn_from_what_the_labels_do_not_hold_out(settings: ManifestParams) -> None:
    settings = replace(settings, test_share=0.5, val_share=0.1)
    images = [listed(f"{i}", split="test" if i % 5 == 0 else None) for i in range(100)]
    found = [kept(hashlib.sha256(bytes([i])).hexdigest()) for i in range(100)]
    splits = [row["split"] for row in build_rows(listing(*images), found, settings, seed=0)]
    assert splits[::5] == ["test"] * 20
    assert Counter(splits) == {"test": 20, "val": 8, "train": 72}


def test_no_test_image_is_drawn_in_place_of_given_ones_that_cannot_be_used(settings: ManifestParams) -> None:
    images = [listed("held out", split="test"), *(listed(f"{i}") for i in range(20))]
    found = [{"reason": "missing"}, *(kept(f"{i}") for i in range(20))]
    rows = build_rows(listing(*images), found, replace(settings, val_share=0.1), seed=0)
    assert Counter(row["split"] for row in rows) == {None: 1, "train": 18, "val": 2}


def test_stat_tells_a_changed_file(root: Path, store: Path) -> None:
    (root / "a.jpg").write_bytes(b"12345")
    before = stat_image(root, listed("a.jpg"))
    assert before[:2] == ["a.jpg", 5]
    assert stat_image(root, listed("a.jpg")) == before
    os.utime(root / "a.jpg", ns=(0, 1))
    changed = stat_image(root, listed("a.jpg"))
    assert changed[:3] == ["a.jpg", 5, 1]
    assert stat_image(root, listed("b.jpg")) == ["b.jpg", None]
    assert stat_image(root, listed("a\0")) == ["a\0", None]
    (root / "c.jpg").write_bytes(b"54321")
    shutil.copystat(root / "a.jpg", root / "c.jpg")
    (root / "c.jpg").rename(root / "a.jpg")  # as rsync -t leaves it
    replaced = stat_image(root, listed("a.jpg"))
    assert replaced[:3] == changed[:3]
    assert replaced != changed
    mark_changed(root, "a.jpg")
    marked = stat_image(root, listed("a.jpg"))
    assert marked != replaced
    assert stat_image(root, listed("a.jpg")) == marked
    mark_changed(root, "a.jpg")
    assert stat_image(root, listed("a.jpg")) != marked
