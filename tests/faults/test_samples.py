"""G8 and G9: who reads a sample, with which others, has no say in it; every sample comes exactly once an epoch.

The golden digests are of images made of integers, in raw shards, with columns made of integers: no decoder and no
floating-point number is in their way. They change only with the draws, the tokenizer or the loader.
"""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from charm.tokenization.importance import score_patches
from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.manifest.table import SCHEMA, Manifest
from pipeline.pos_embeds.axes import PosEmbeds, list_axes, write_axes
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader
from pipeline.shards.write import encode_array, write_shard
from pipeline.training.loader import Loader, TokenDataset
from pipeline.training.sampler import EpochSampler
from tests.faults.conftest import Gate

SIZES = ((140, 196), (224, 168), (113, 261), (28, 28), (280, 199))
KEYS = [f"{index:08d}" for index in range(len(SIZES))]
EPOCHS = 2
# (selection, seed) -> for each epoch, of each image, the first ten digits of its digest.
GOLDEN: dict[tuple[str, int], list[list[str]]] = {
    ("random", 0): [
        ["01d3ce0327", "170a414728", "64daa765eb", "6fb68f6b62", "8bf01e43cd"],
        ["df1fb937b3", "14717fde88", "7ae1987f23", "66edce5367", "27d0b97258"],
    ],
    ("random", 7): [
        ["ae261c13f9", "edbcdaa146", "85e6321f04", "89d516e76d", "354a5f4fc1"],
        ["263710c2eb", "bbeeaf4b1d", "bd34b5f5f5", "66edce5367", "131431410b"],
    ],
    ("gradient", 0): [
        ["e39bd2b411", "3c62b39924", "8c6afac0e1", "6fb68f6b62", "f1696714b4"],
        ["bccdc3e3bf", "5ff219736a", "24a821f5dc", "66edce5367", "eec49c40a6"],
    ],
    ("gradient", 7): [
        ["bdc79d08ba", "bf2c4ca34e", "4ff68195c3", "89d516e76d", "66d36abd42"],
        ["6a6158472b", "b83e945c47", "8512062f17", "66edce5367", "2ecb21eabd"],
    ],
    ("saliency", 0): [
        ["2e3b61d299", "42228a8a0c", "46248885be", "6fb68f6b62", "98606ba3d6"],
        ["ea2988f000", "49be9dc2c4", "26b4a37a74", "66edce5367", "22d6043ed3"],
    ],
    ("saliency", 7): [
        ["4996b37546", "9b2519353e", "c3e1a8e1de", "89d516e76d", "a90d9f7b1d"],
        ["7b771e1209", "84e0671cf5", "afe49a7bc7", "66edce5367", "378e0e8099"],
    ],
}


def draw_integers(height: int, width: int, index: int) -> np.ndarray:
    """uint8 (H, W, 3)."""
    y, x, channel = np.indices((height, width, 3))
    return ((3 * y * y + 7 * x + x * y // 5 + 31 * channel + 17 * index) % 256).astype(np.uint8)


def tokenizer_of(selection: str) -> CharmTokenizer:
    return CharmTokenizer(patch_size=14, max_seq_len=48, selection=selection, budget="share", native_share=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ in two shards, gradient/ and saliency/ beside them, axes/."""
    folder = tmp_path_factory.mktemp("samples")
    for name in ("images", "gradient", "saliency"):
        (folder / name).mkdir()
    for number, indices in enumerate(((0, 1, 2), (3, 4))):
        name = f"shard-{number:06d}"
        images = {index: draw_integers(*SIZES[index], index) for index in indices}
        shard = ((KEYS[index], {"npy": encode_array(image), "json": b"{}"}) for index, image in images.items())
        write_shard(folder / "images" / name, shard)
        sha256 = ShardReader(folder / "images", name).images[name]
        scores, masks = [], []
        for index, image in images.items():
            grid = score_patches(image, "gradient", 28, "nearest").shape
            ranks = (np.arange(np.prod(grid)) * 7919 % 1009).astype(np.float32).reshape(grid)
            mask = io.BytesIO()
            Image.fromarray(np.add(*np.indices(image.shape[:2])) < sum(image.shape) // 3).save(mask, format="PNG")
            scores.append((KEYS[index], {"p28.npy": encode_array(ranks)}))
            masks.append((KEYS[index], {"mask.png": mask.getvalue()}))
        write_shard(folder / "gradient" / name, scores, sha256)
        write_shard(folder / "saliency" / name, masks, sha256)
    axes = list_axes(tokenizer_of("random"), SIZES)
    write_axes(folder / "axes", "charm_demo", torch.zeros(2, 2, 3), axes, "bilinear", False)
    return folder


Build = Callable[..., TokenDataset]


@pytest.fixture(scope="module")
def build(folder: Path) -> Build:
    """Called with a selection and a seed, and how many of the images."""

    def build_dataset(selection: str, seed: int, count: int = len(KEYS)) -> TokenDataset:
        rows = [
            dict.fromkeys(SCHEMA.names)
            | {"key": key, "height": height, "width": width, "target": [0.5], "reason": "", "split": "train"}
            for key, (height, width) in zip(KEYS[:count], SIZES, strict=False)
        ]
        manifest = Manifest(pa.Table.from_pylist(rows, schema=SCHEMA), {"num_bins": 1})
        images = ShardReader(folder / "images")
        column = None if selection == "random" else ColumnReader(folder / selection, images)
        axes = PosEmbeds(folder / "axes", "charm_demo")
        return TokenDataset(manifest, images, column, tokenizer_of(selection), axes, seed, flip=0.5, rotate=0.5)

    return build_dataset


def digests(dataset: TokenDataset, seed: int, batch_size: int, workers: int, shuffle: bool) -> list[list[str]]:
    """As in GOLDEN; an empty text for an image that did not come."""
    sampler = EpochSampler(len(dataset), batch_size, seed=seed, shuffle=shuffle)
    loader = Loader(dataset, sampler, workers, torch.device("cpu"))
    found = [[""] * len(dataset) for _ in range(EPOCHS)]
    for sampler.epoch in range(EPOCHS):
        for batch in loader:
            for index, key in enumerate(batch.keys):
                valid = batch.patch_valid[index]
                parts = (batch.patches, batch.patch_coord, batch.scale_id)
                content = b"".join(part[index][valid].numpy().tobytes() for part in parts)
                assert not found[sampler.epoch][KEYS.index(key)], f"{key} twice"
                found[sampler.epoch][KEYS.index(key)] = hashlib.sha256(content).hexdigest()[:10]
    return found


@pytest.mark.parametrize(("selection", "seed"), GOLDEN, ids=str)
def test_golden_samples(selection: str, seed: int, build: Build, gate: Gate) -> None:
    found = digests(build(selection, seed), seed, 2, 0, shuffle=True)
    wrong = sum(a != b for pair in zip(found, GOLDEN[selection, seed], strict=True) for a, b in zip(*pair, strict=True))
    gate("G8", f"golden samples: {selection}, seed {seed}", cases=EPOCHS * len(KEYS), failures=wrong)


@pytest.mark.parametrize("selection", ["random", "gradient", "saliency"])
def test_samples_do_not_depend_on_who_reads_them(selection: str, build: Build, gate: Gate) -> None:
    dataset = build(selection, 7)
    ways = [(batch_size, 0, shuffle) for batch_size in (1, 2, 3, 4, 5, 100) for shuffle in (False, True)]
    ways += [(1, 1, True), (2, 2, True), (3, 2, False)]
    wrong = [way for way in ways if digests(dataset, 7, *way) != GOLDEN[selection, 7]]
    gate("G8", f"batch sizes, workers and orders: {selection}", cases=len(ways), failures=len(wrong))


def test_every_sample_once_by_the_sampler(gate: Gate) -> None:
    failures = cases = 0
    for size in range(1, 65):
        for batch_size in (1, 2, 3, 7, 16, 64, 100):
            for shuffle in (False, True):
                sampler = EpochSampler(size, batch_size, seed=5, shuffle=shuffle)
                for sampler.epoch in (0, 3):
                    batches = list(sampler)
                    cases += 1
                    failures += sorted(place[1] for batch in batches for place in batch) != list(range(size))
                    failures += len(batches) != len(sampler)
    gate("G9", "every sample once an epoch, by the sampler", cases=cases, failures=failures)


def test_every_sample_once_by_the_loader(build: Build, gate: Gate) -> None:
    """Also where there are fewer samples, or fewer batches, than workers."""
    ways = [(size, batch_size, 0) for size in range(1, 6) for batch_size in (1, 2, 3, 5, 9)]
    ways += [(1, 1, 2), (2, 4, 2), (5, 2, 2)]
    failures = 0
    for size, batch_size, workers in ways:
        dataset = build("random", 3, size)
        sampler = EpochSampler(size, batch_size, seed=3, shuffle=True)
        loader = Loader(dataset, sampler, workers, torch.device("cpu"))
        for sampler.epoch in range(2):
            failures += sorted(key for batch in loader for key in batch.keys) != KEYS[:size]
    gate("G9", "every sample once an epoch, by the loader", cases=2 * len(ways), failures=failures)
