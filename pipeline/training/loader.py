"""Batches of tokens from shards: any order, any number of workers, the same samples.

A worker is handed references (pipeline.training.sampler) and reads the image by its place in the shard. What it makes
of it is a function of (seed, epoch, step, key), in evaluation of (seed, draw, pixels): no worker, batch or earlier
sample has a say.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import RawArray
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from charm.inputs.protocol import Input
from charm.runtime.errors import UserError
from charm.tokenization.augment import IDENTITY, draw_symmetry, to_grey
from charm.tokenization.draws import draw_uniform, pixel_key
from charm.tokenization.geometry import downscale, limit_edge
from pipeline.manifest.table import Manifest
from pipeline.pos_embeds.axes import PosEmbeds
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader
from pipeline.training.sampler import EpochSampler, SampleRef
from pipeline.training.workers import EndingLoader, check_shared_memory, end_workers, list_dead, prepare_worker

_MOST_WORKERS = 1024  # as pipeline.settings.params allows
_PLACE_BYTES = 18  # of a token: patch_coord, scale_id, patch_valid, pos_row


@dataclass(frozen=True)
class Batch:
    """A batch, trimmed to its longest sequence; shapes as charm.Tokens, batch first."""

    patches: Tensor  # uint8 (B, L, P, P, 3), of one size in all micro-batches of a step
    patch_coord: Tensor  # int32 (B, L, 2)
    scale_id: Tensor  # uint8 (B, L)
    patch_valid: Tensor  # bool (B, L)
    pos_row: Tensor  # int32 (B, L, 2), for PosEmbeds.gather
    target: Tensor  # float32 (B, num_bins)
    weight: Tensor  # float32 (B,), of pipeline.training.sampler.SampleRef
    # bool (B,), whether the mask is of an object that covers no coarse patch enough; only in evaluation
    is_small: Tensor
    keys: list[str]  # of the samples
    residuals: Tensor | None = None  # int16 (B, L, P, P, 3 K), of inputs that have them

    def pin_memory(self) -> "Batch":
        """Pins the memory of all tensors; called by the DataLoader."""
        tensors: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.pin_memory() for name, tensor in tensors.items()})


class TokenDataset(Dataset[dict[str, Any] | UserError]):
    """Images as tokens, by place: (epoch, row of the manifest, weight, step).

    Args:
        column: importance maps of the images; None where the tokenizer needs none.
        flip, rotate, grey: probabilities of augmentation.
        by_pixels: whether an image's draws follow from its pixels (evaluation), and not from its key (training).
        max_edge: pixels; larger images are downscaled first, and their maps made anew. None for no limit.
    """

    def __init__(
        self,
        manifest: Manifest,
        images: ShardReader,
        column: ColumnReader | None,
        tokenizer: Input,
        pos_embeds: PosEmbeds,
        seed: int,
        flip: float = 0.0,
        rotate: float = 0.0,
        grey: float = 0.0,
        by_pixels: bool = False,
        max_edge: int | None = None,
    ) -> None:
        self._keys = manifest.keys
        self._targets = manifest.targets.astype(np.float32)
        self._images = images
        self._column = column
        self._tokenizer = tokenizer
        self._pos_embeds = pos_embeds
        self._seed = seed
        self._flip, self._rotate, self._grey = flip, rotate, grey
        self._by_pixels, self._max_edge = by_pixels, max_edge
        self._last: tuple[str, np.ndarray] | None = None  # key and image: several draws of it come in a row
        self._at_work = RawArray("q", [-1] * _MOST_WORKERS)  # row that each worker has in hand

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def most_bytes(self) -> int:
        """Most bytes that an image takes in a batch."""
        tokenizer = self._tokenizer
        per_pixel = tokenizer.pixel_bytes + 2 * tokenizer.num_residuals  # of two bytes each
        per_token = 3 * tokenizer.patch_size**2 * per_pixel
        return tokenizer.max_seq_len * (per_token + _PLACE_BYTES) + self._targets[:1].nbytes

    def __getitem__(self, place: SampleRef) -> dict[str, Any] | UserError:
        """Returns a sample. A worker returns an error as a value, as a DataLoader would wrap it in a traceback."""
        place = SampleRef(*place)
        worker = get_worker_info()
        if worker is None:
            return self._make_sample(place)
        self._at_work[worker.id] = place.row
        try:
            return self._make_sample(place)
        except UserError as error:
            return error

    def _make_sample(self, place: SampleRef) -> dict[str, Any]:
        epoch, row, _, step = place
        key = self._keys[row]
        symmetry = IDENTITY
        if self._flip or self._rotate:
            symmetry = draw_symmetry(self._seed, epoch, key, self._flip, self._rotate)
        if self._last is None or self._last[0] != key:
            self._last = key, self._images.read_image(key)
        whole = self._last[1]
        image = downscale(whole, limit_edge((whole.shape[0], whole.shape[1]), self._max_edge))
        drawn_by = pixel_key(image) if self._by_pixels else key
        if self._grey and draw_uniform(self._seed, epoch, key, "grey", 1)[0] < self._grey:
            image = to_grey(image)
        draws: dict[str, Any] = {"seed": self._seed, "epoch": epoch, "key": drawn_by, "symmetry": symmetry}
        column = self._read_column(key, (image.shape[0], image.shape[1]), image.shape == whole.shape)
        tokens = self._tokenizer.of_step(self._seed, epoch, step)(image, **draws, **column)
        return {
            "patches": tokens.patches,
            "patch_coord": tokens.patch_coord,
            "scale_id": tokens.scale_id,
            "patch_valid": tokens.patch_valid,
            "pos_row": self._pos_embeds.rows(tokens),
            "target": self._targets[row],
            "weight": np.float32(place.weight),
            "is_small": np.bool_(self._by_pixels and self._is_small(column)),
            "keys": key,
        } | ({} if tokens.residuals is None else {"residuals": tokens.residuals})

    def _is_small(self, column: dict[str, Any]) -> bool:
        """Tells whether an image's mask is of an object that covers no coarse patch by `saliency_coverage`."""
        mask = column.get("saliency_mask")
        if mask is None:
            return False
        cutter = self._tokenizer.cutter((mask.shape[0], mask.shape[1]))
        fitted = self._tokenizer.frame(mask.view(np.uint8)).view(bool)
        return cutter is not None and cutter.judge_mask(fitted) == "small"

    def describe_place(self, worker: int) -> str:
        """Names the image that a worker of the DataLoader was reading."""
        row = int(self._at_work[worker])
        if row < 0:
            return "its first image"
        key = self._keys[row]
        return f"{key} of {self._images.folder}/{self._images.shard_of(key)}.tar"

    def _read_column(self, key: str, image_hw: tuple[int, int], is_whole: bool) -> dict[str, Any]:
        """Returns the tokenizer's arguments that hold the image's map; of a downscaled image it makes scores itself."""
        if self._column is None:
            return {}
        if self._tokenizer.reads == "saliency":
            mask = self._column.read_mask(key)
            return {"saliency_mask": downscale(mask.view(np.uint8), image_hw).view(bool)}
        cutter = self._tokenizer.cutter(image_hw)
        if cutter is None or not is_whole:
            return {}
        return {"importance": self._column.read_importance(key, cutter.coarse_patch_size)}


class Loader:
    """Batches of an epoch, which the sampler chooses.

    Worker processes live as long as the loader; 0 of them read in this process. For a GPU, memory is pinned.
    """

    def __init__(self, dataset: TokenDataset, sampler: EpochSampler, workers: int, device: torch.device) -> None:
        cv2.setNumThreads(1)  # before workers are forked: one that inherits OpenCV's threads hangs at their resizing
        self._dataset, self.sampler = dataset, sampler
        check_shared_memory(workers, sampler.most_images * dataset.most_bytes)
        self._loader = EndingLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=prepare_worker,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Raises UserError where a sample cannot be read, or a worker dies."""
        # torch lets SIGCHLD raise wherever the program is when a worker dies, in the middle of a step too; without its
        # handler it notices at the next batch, here.
        handler = signal.getsignal(signal.SIGCHLD)
        try:
            batches = iter(self._loader)
        finally:
            signal.signal(signal.SIGCHLD, handler)
        try:
            yield from self._check(batches)
        except UserError:
            end_workers(batches)
            raise

    def _check(self, batches: Iterator[Batch | UserError]) -> Iterator[Batch]:
        """Yields the batches up to an error: one that a worker handed over, or the death of a worker."""
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:  # not RuntimeError: a batch of a dying one
                dead = list_dead(getattr(batches, "_workers", []))
                if not dead:
                    raise
                places = ", ".join(self._dataset.describe_place(worker) for worker in dead)
                raise UserError(
                    f"a loader worker died at {places}; if for want of memory, lower hardware.loader_workers"
                ) from error
            if isinstance(batch, UserError):
                raise batch
            yield batch


def collate(samples: list[dict[str, Any] | UserError]) -> Batch | UserError:
    """Stacks samples of a TokenDataset, trimmed to the longest sequence; returns the first error among them, if any."""
    whole = [sample for sample in samples if not isinstance(sample, UserError)]
    if len(whole) < len(samples):
        return next(sample for sample in samples if isinstance(sample, UserError))
    length = max(1, max(int(sample["patch_valid"].sum()) for sample in whole))
    stacked: dict[str, Any] = {
        name: torch.from_numpy(np.stack([sample[name][:length] for sample in whole]))
        for name in ("patches", "patch_coord", "scale_id", "patch_valid", "pos_row", "residuals")
        if name in whole[0]
    }
    for name in ("target", "weight", "is_small"):
        stacked[name] = torch.from_numpy(np.stack([sample[name] for sample in whole]))
    return Batch(keys=[sample["keys"] for sample in whole], **stacked)
