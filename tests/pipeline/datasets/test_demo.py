"""The built-in images: the same everywhere, with known answers, and no photograph in two splits."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from charm.images.decode import decode_image
from pipeline.datasets import demo
from pipeline.datasets import demo_images as demo_images
from pipeline.datasets.demo_images import NUM_IMAGES, SOURCES, DemoImage, render_images, split_sources
from pipeline.manifest.labels import Source, check_listing
from pipeline.settings.params import Params

FIRST = 42


@pytest.fixture(scope="module")
def first() -> list[DemoImage]:
    return list(islice(render_images(), FIRST))


def test_deterministic(first: list[DemoImage]) -> None:
    for one, again in zip(first[:14], render_images(), strict=False):
        assert (one.name, one.score, one.source) == (again.name, again.score, again.source)
        assert np.array_equal(one.image, again.image)


def test_images_are_of_many_sizes_and_in_rgb(first: list[DemoImage]) -> None:
    assert {image.image.dtype for image in first} == {np.dtype(np.uint8)}
    assert len({image.image.shape for image in first}) == FIRST
    aspects = [image.image.shape[1] / image.image.shape[0] for image in first]
    assert min(aspects) < 0.6
    assert max(aspects) > 1.7


def test_names_are_unique_and_scores_spread_over_0_to_1(first: list[DemoImage]) -> None:
    assert len({image.name for image in first}) == FIRST
    scores = [image.score for image in first]
    assert 0 <= min(scores) < 0.2
    assert 0.8 < max(scores) <= 1


def test_sources_take_turns(first: list[DemoImage]) -> None:
    assert set(Counter(image.source for image in first).values()) == {FIRST // len(SOURCES)}


@pytest.mark.parametrize("seed", range(7))
def test_each_photograph_is_in_one_split(seed: int) -> None:
    assert Counter(split_sources(seed).values()) == {"train": len(SOURCES) - 3, "test": 2, "val": 1}
    assert set(split_sources(seed)) == set(SOURCES)


def test_the_seed_turns_over_what_is_held_out() -> None:
    splits = [split_sources(seed) for seed in range(len(SOURCES))]
    assert split_sources(len(SOURCES)) == splits[0]
    for source in SOURCES:
        assert Counter(split[source] for split in splits) == {"train": 4, "test": 2, "val": 1}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    def render() -> Iterator[DemoImage]:
        return islice(demo_images.render_images(), len(SOURCES))

    monkeypatch.setattr(demo, "render_images", render)


@pytest.mark.usefixtures("few")
def test_reader_writes_the_images_that_it_lists(shipped_params: Params, tmp_path: Path) -> None:
    listing = demo.read(Source(Path("unused"), shipped_params.manifest, 3, tmp_path / "images"))
    check_listing(listing)
    assert "nobody judged" in listing.meaning
    assert sorted(file.name for file in listing.root.iterdir()) == sorted(one.path for one in listing.images)
    for image in listing.images:
        decoded = decode_image((listing.root / image.path).read_bytes())
        assert decoded.extension == "jpg"
        assert image.group is not None
        assert image.name.startswith(image.group)
        assert image.split == split_sources(3)[image.group]


@pytest.mark.usefixtures("few")
def test_reader_writes_the_same_bytes_for_every_seed(shipped_params: Params, tmp_path: Path) -> None:
    def digest(seed: int) -> str:
        folder = tmp_path / str(seed)
        demo.read(Source(Path("unused"), shipped_params.manifest, seed, folder))
        return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.iterdir()))).hexdigest()

    assert digest(0) == digest(1)


def test_as_many_as_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_images, "_cut", lambda image_file, image_hw, draws: image_file[:1, :1])
    monkeypatch.setattr(demo_images, "_distort", lambda image, degree, draws: image)
    assert len(list(render_images())) == NUM_IMAGES
