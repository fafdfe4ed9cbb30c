"""Every sample exactly once per epoch, and the same samples whoever reads them."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from charm.inputs.flexi import FlexiInput
from charm.inputs.protocol import Input
from charm.inputs.settings import FlexiSettings, StandardSettings
from charm.inputs.standard import StandardInput
from charm.runtime.errors import UserError
from charm.tokenization.augment import IDENTITY, draw_symmetry
from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.importance.make import make_column
from pipeline.pos_embeds.axes import PosEmbeds, list_axes, write_axes
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader
from pipeline.shards.write import pack_shard
from pipeline.training.loader import Batch, Loader, TokenDataset
from pipeline.training.sampler import EpochSampler, SampleRef
from tests.conftest import Small

CPU = torch.device("cpu")
GRADIENT = CharmTokenizer(patch_size=14, max_seq_len=24, selection="gradient", budget="fixed")
FIELDS = ("patches", "patch_coord", "scale_id", "patch_valid", "pos_row", "target")


@pytest.fixture(scope="module")
def build(packed: Small, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TokenDataset]:
    """Called with a tokenizer and settings of TokenDataset."""
    folder = tmp_path_factory.mktemp("pos_embeds")

    def build_dataset(
        tokenizer: Input = GRADIENT, column: str | None = "gradient", sides: tuple[int, ...] = (), **settings: Any
    ) -> TokenDataset:
        write_axes(
            folder,
            "charm_demo",
            torch.randn(4, 4, 3),
            sorted({*list_axes(tokenizer, packed.manifest.image_hws), *sides}),
            "bilinear",
            False,
        )
        reader = ColumnReader(packed.data / column, packed.images) if column else None
        pos_embeds = PosEmbeds(folder, "charm_demo")
        return TokenDataset(packed.manifest, packed.images, reader, tokenizer, pos_embeds, seed=3, **settings)

    return build_dataset


def batches(dataset: TokenDataset, batch_size: int, workers: int = 0, epochs: int = 1) -> Iterator[Batch]:
    sampler = EpochSampler(len(dataset), batch_size, seed=3, shuffle=True)
    loader = Loader(dataset, sampler, workers, CPU)
    for epoch in range(epochs):
        sampler.epoch = epoch
        yield from loader


def samples(dataset: TokenDataset, batch_size: int, workers: int) -> dict[tuple[int, str], dict[str, np.ndarray]]:
    """(epoch, key) -> the sample without its padding, of two epochs; asserts that each comes once."""
    found: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    for place, batch in enumerate(batches(dataset, batch_size, workers, epochs=2)):
        epoch = place // -(-len(dataset) // batch_size)
        for index, key in enumerate(batch.keys):
            assert (epoch, key) not in found
            valid = batch.patch_valid[index]
            found[epoch, key] = {name: getattr(batch, name)[index][valid].numpy() for name in FIELDS[:-1]}
            found[epoch, key]["target"] = batch.target[index].numpy()
    return found


@pytest.mark.parametrize(
    ("batch_size", "workers", "sizes"),
    [
        pytest.param(1, 0, [1] * 7, id="one by one"),
        pytest.param(3, 0, [3, 3, 1], id="the last batch is kept"),
        pytest.param(7, 0, [7], id="one batch"),
        pytest.param(100, 0, [7], id="a batch that is never full"),
        pytest.param(3, 1, [3, 3, 1], id="one worker"),
        pytest.param(3, 2, [3, 3, 1], id="two workers"),
        pytest.param(4, 2, [4, 3], id="two workers, as many batches"),
    ],
)
def test_every_sample_exactly_once(
    batch_size: int, workers: int, sizes: list[int], build: Callable[..., TokenDataset]
) -> None:
    read = list(batches(build(), batch_size, workers))
    assert [len(batch.keys) for batch in read] == sizes
    assert sorted(key for batch in read for key in batch.keys) == [f"{i:08d}" for i in range(7)]


def test_samples_do_not_depend_on_workers_and_batches(build: Callable[..., TokenDataset]) -> None:
    dataset = build(flip=0.5, rotate=0.5)
    expected = samples(dataset, 1, 0)
    assert len(expected) == 14
    for batch_size, workers in ((3, 0), (7, 0), (2, 1), (3, 2)):
        found = samples(dataset, batch_size, workers)
        assert found.keys() == expected.keys()
        for place, sample in expected.items():
            for name in FIELDS:
                assert np.array_equal(found[place][name], sample[name]), (batch_size, workers, place, name)


def test_a_sample_is_the_image_tokenized_with_its_column_and_draws(
    packed: Small, build: Callable[..., TokenDataset]
) -> None:
    dataset = build(flip=0.5, rotate=0.5)
    column = ColumnReader(packed.data / "gradient", packed.images)
    symmetries = set()
    for epoch in range(3):
        for index, key in enumerate(packed.manifest.keys):
            symmetry = draw_symmetry(3, epoch, key, 0.5, 0.5)
            symmetries.add(symmetry)
            tokens = GRADIENT(
                packed.images.read_image(key),
                importance=column.read_importance(key, 28),
                seed=3,
                epoch=epoch,
                key=key,
                symmetry=symmetry,
            )
            sample = dataset[epoch, index]
            for name in ("patches", "patch_coord", "scale_id", "patch_valid"):
                assert np.array_equal(sample[name], getattr(tokens, name))
            assert sample["target"] == np.float32(index / 10)
    assert len(symmetries) > 4


@pytest.mark.parametrize(("micro_batch", "workers", "first_step"), [(None, 0, 0), (1, 0, 1), (2, 2, 0), (1, 2, 3)])
def test_all_samples_of_a_step_are_cut_on_the_grid_of_that_step(
    micro_batch: int | None, workers: int, first_step: int, build: Callable[..., TokenDataset]
) -> None:
    """Whoever reads them, in micro-batches of any size, and after the epoch is gone on with at any step."""
    settings = FlexiSettings(edge=60, crop=60, grids=[2, 3, 4, 5, 6], grid=3)
    tokenizer = FlexiInput.build(settings, CharmTokenizer(14), True)
    dataset = build(tokenizer, None, sides=settings.drawn_sides)
    sampler = EpochSampler(len(dataset), 2, seed=3, shuffle=True, micro_batch=micro_batch)
    sides = {}
    loader = Loader(dataset, sampler, workers, CPU)
    for sampler.epoch, sampler.first_step in ((0, 0), (1, first_step)):
        read = iter(loader)
        for step in range(sampler.first_step, sampler.steps):
            for _ in range(sampler.micro_batches(step)):
                batch = next(read)
                side = 60 // batch.patches.shape[2]
                assert side**2 == batch.patches.shape[1]
                assert sides.setdefault((sampler.epoch, step), side) == side
    expected = {place: 60 // tokenizer.of_step(3, *place).patch_size for place in sides}
    assert sides == expected
    assert len(set(sides.values())) > 2


def test_without_augmentation_images_stay_upright(packed: Small, build: Callable[..., TokenDataset]) -> None:
    tokens = GRADIENT(packed.images.read_image("00000002"), seed=3, key="00000002", symmetry=IDENTITY)
    assert np.array_equal(build()[0, 2]["patches"], tokens.patches)


def test_masks_reach_the_tokenizer(packed: Small, build: Callable[..., TokenDataset]) -> None:
    folder = packed.data / "saliency"
    folder.mkdir()
    for shard in ("shard-000000", "shard-000001"):
        make_column(str(packed.data / "shards"), shard, "mbd", {}, folder / shard)
    tokenizer = CharmTokenizer(patch_size=14, max_seq_len=24, selection="saliency")
    mask = ColumnReader(folder, packed.images).read_mask("00000002")
    tokens = tokenizer(packed.images.read_image("00000002"), saliency_mask=mask, seed=3, key="00000002")
    assert np.array_equal(build(tokenizer, "saliency")[0, 2]["patch_coord"], tokens.patch_coord)


def test_tokenizers_that_need_no_column(packed: Small, build: Callable[..., TokenDataset]) -> None:
    image = packed.images.read_image("00000001")
    for tokenizer in (CharmTokenizer(patch_size=14, max_seq_len=24), StandardInput(14, StandardSettings(64, 56))):
        tokens = tokenizer(image, seed=3, epoch=5, key="00000001")
        assert np.array_equal(build(tokenizer, None)[5, 1]["patches"], tokens.patches)


def test_a_column_without_the_tokenizers_patch_size(build: Callable[..., TokenDataset]) -> None:
    tokenizer = CharmTokenizer(patch_size=16, max_seq_len=24, selection="gradient")
    with pytest.raises(UserError, match="add 32 to coarse_patch_sizes"):
        build(tokenizer)[0, 2]


def test_batches_are_trimmed_to_the_longest(build: Callable[..., TokenDataset]) -> None:
    tokenizer = CharmTokenizer(patch_size=14, max_seq_len=500)  # all of them fit; the longest has 88 patches
    lengths = {}
    for batch in batches(build(tokenizer, None), 3):
        counts = batch.patch_valid.sum(1)
        assert batch.patch_valid.shape[1] == int(counts.max())
        lengths |= dict(zip(batch.keys, counts.tolist(), strict=True))
        assert {len(getattr(batch, name)) for name in FIELDS} == {len(batch.keys)}
        assert {getattr(batch, name).shape[1] for name in FIELDS[:-1]} == {batch.patch_valid.shape[1]}
    assert sorted(lengths.values()) == [12, 24, 45, 48, 54, 64, 77]


def test_dtypes(build: Callable[..., TokenDataset]) -> None:
    batch = next(batches(build(), 7))
    kinds = {name: str(getattr(batch, name).dtype).removeprefix("torch.") for name in FIELDS}
    assert kinds == {
        "patches": "uint8",
        "patch_coord": "int32",
        "scale_id": "uint8",
        "patch_valid": "bool",
        "pos_row": "int32",
        "target": "float32",
    }


def test_workers_start_after_opencv_has_used_its_threads(build: Callable[..., TokenDataset]) -> None:
    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 3)  # starts the pool
    loader = Loader(build(), EpochSampler(7, 4, seed=3, shuffle=False), workers=1, device=CPU)
    assert cv2.getNumThreads() == 1  # a worker that inherits the pool waits for threads that it does not have
    assert [batch.keys[0] for batch in loader] == ["00000000", "00000004"]


def test_damage_is_reported_from_a_worker_in_one_line(
    small: Small, build: Callable[..., TokenDataset], tmp_path: Path
) -> None:
    dataset = build()
    dataset._images = small.images
    path = small.data / "shards" / "shard-000000.tar"
    path.write_bytes(b"\0" * path.stat().st_size)
    before = {process.pid for process in multiprocessing.active_children()}
    with pytest.raises(UserError, match=r"^.*shard-000000\.tar: 0000000.\.jpg is damaged.*$") as caught:
        list(batches(dataset, 4, workers=1))
    assert "\n" not in str(caught.value)
    assert {process.pid for process in multiprocessing.active_children()} <= before  # while the error is still known


def dying_at(key: str, dataset: TokenDataset, monkeypatch: pytest.MonkeyPatch, workers: int) -> Loader:
    """A loader of batches of two, in order, one of whose workers dies as it reads an image."""
    read_image = dataset._images.read_image

    def die(wanted: str) -> np.ndarray:
        if wanted == key:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        return read_image(wanted)

    monkeypatch.setattr(dataset._images, "read_image", die)
    return Loader(dataset, EpochSampler(7, 2, seed=3, shuffle=False), workers, CPU)


def test_a_worker_that_dies_names_its_image(
    build: Callable[..., TokenDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = dying_at("00000005", build(), monkeypatch, workers=2)
    with pytest.raises(UserError, match=r"a loader worker died at 00000005 of .*/shard-000001\.tar; if for want of"):
        list(loader)


def test_a_worker_that_dies_during_a_step_is_noticed_at_the_next_batch(
    build: Callable[..., TokenDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = dying_at("00000005", build(), monkeypatch, workers=1)
    # As in a new process: a DataLoader of another test may have left its handler.
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    batches = iter(loader)
    assert next(batches).keys == ["00000000", "00000001"]
    assert wait([process.sentinel for process in multiprocessing.active_children()], timeout=60)  # the step
    with pytest.raises(UserError, match="a loader worker died at 00000005"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_raw_shards_give_the_same_samples(
    workers: int, packed: Small, build: Callable[..., TokenDataset], tmp_path: Path
) -> None:
    for number, rows in enumerate((packed.rows[:4], packed.rows[4:])):
        pack_shard(rows, str(packed.root), "npy", 95, (0.0, 1.0), tmp_path / f"shard-00000{number}")
    raw = build(GRADIENT, "gradient", flip=0.5, rotate=0.5)
    raw._images = ShardReader(tmp_path)
    from_jpeg = samples(build(GRADIENT, "gradient", flip=0.5, rotate=0.5), 3, 0)
    found = samples(raw, 3, workers)
    assert found.keys() == from_jpeg.keys()
    assert all(np.array_equal(found[place][name], from_jpeg[place][name]) for place in found for name in FIELDS)


def test_some_images_lose_their_colours_in_training(build: Callable[..., TokenDataset]) -> None:
    """By their key and the epoch, and nothing else of a sample changes."""
    plain, grey = build(CharmTokenizer(max_seq_len=24), None), build(CharmTokenizer(max_seq_len=24), None, grey=0.5)
    places = [SampleRef(epoch, row, 1.0) for epoch in range(10) for row in range(len(plain))]
    lost = []
    for place in places:
        before, after = plain[place], grey[place]
        assert isinstance(before, dict)
        assert isinstance(after, dict)
        np.testing.assert_array_equal(before["patch_coord"], after["patch_coord"])
        luminance = before["patches"][before["patch_valid"]].astype(float) @ [0.299, 0.587, 0.114]
        found = after["patches"][after["patch_valid"]].astype(float)
        lost.append(bool(np.ptp(found, axis=-1).max() == 0))
        if lost[-1]:
            assert np.abs(found[..., 0] - luminance).max() < 2
        else:
            np.testing.assert_array_equal(before["patches"], after["patches"])
    assert 0.3 < np.mean(lost) < 0.7
    assert lost == [bool(np.ptp(grey[place]["patches"].astype(int), axis=-1).max() == 0) for place in places]


def test_batches_that_shared_memory_has_no_room_for_are_refused_before_the_first(
    build: Callable[..., TokenDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker would drop its batch with a line on stderr, and training would wait for it."""
    dataset = build()
    most = max(sum(getattr(batch, name).nbytes for name in FIELDS) for batch in batches(dataset, 3))
    sampler = EpochSampler(len(dataset), 6, seed=3, shuffle=True, micro_batch=3)
    needed = 7 * sampler.most_images * dataset.most_bytes  # two ahead for each of two workers, and those in use
    assert 7 * most <= needed < 8 * most
    free = {"there": needed}
    monkeypatch.setattr("pipeline.training.workers._SHARED", Path("/"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free["there"]))
    Loader(dataset, sampler, 2, CPU)
    free["there"] -= 1
    with pytest.raises(UserError, match=r"loader_workers: 2 .*docker run --shm-size=1g.* fewer loader_workers"):
        Loader(dataset, sampler, 2, CPU)
    Loader(dataset, sampler, 0, CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    free["there"] = 2 * needed - 1
    with pytest.raises(UserError, match="docker run --shm-size"):
        Loader(dataset, sampler, 2, CPU)


def test_a_batch_that_does_not_come_is_not_waited_for_for_ever(
    build: Callable[..., TokenDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a worker had dropped it; torch looks every five seconds."""
    monkeypatch.setattr("pipeline.training.workers._PATIENCE", 1)
    monkeypatch.setattr(TokenDataset, "_make_sample", lambda self, place: time.sleep(1))
    loader = iter(batches(build(), 7, workers=1))  # seven seconds for the only batch
    with pytest.raises(UserError, match=r"no batch came within 1 s: .* /dev/shm full\? hardware\.loader_workers: 0"):
        next(loader)
