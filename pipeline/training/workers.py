"""Processes that read batches for a training: the room that they need, the wait for them, their death and their end."""

import math
import os
import shutil
import signal
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cv2
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from charm.runtime.errors import UserError

_PATIENCE = 600  # seconds for a batch
_SHARED = Path("/dev/shm")  # through which workers hand batches over; containers of Docker have 64 MB of it
_GRACE = 25  # seconds; Slurm kills what is left 30 s after SIGTERM


def check_shared_memory(workers: int, batch_bytes: int) -> None:
    """Raises UserError unless shared memory has room for all batches that are under way at once.

    A worker that finds no room drops its batch with a line on stderr, and training would wait for the batch.
    """
    if not workers or not _SHARED.is_dir():
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    needed = processes * (2 * workers + 3) * batch_bytes  # two ahead for each worker, and those in use
    free = shutil.disk_usage(_SHARED).free
    if needed > free:
        raise UserError(
            f"{_SHARED} has {free // 10**6} MB free, and hardware.loader_workers: {workers} hands over up to "
            f"{math.ceil(needed / 1e6)} MB of batches in it at once: give the container more (docker run --shm-size="
            f"{math.ceil(needed / 1e9)}g), or set fewer loader_workers (0 needs none) or a smaller hardware.micro_batch"
        )


class EndingLoader(DataLoader[Any]):
    """A DataLoader whose wait for a batch ends."""

    def _get_iterator(self) -> Any:
        return _EndingIterator(self) if self.num_workers else super()._get_iterator()


class _EndingIterator(_MultiProcessingDataLoaderIter):
    """Looks for a batch every few seconds, as torch does, but not for ever.

    With torch's own `timeout` a dead worker would be noticed only at its end.
    """

    def _reset(self, *arguments: Any, **named: Any) -> None:
        self._asked = time.monotonic()
        super()._reset(*arguments, **named)

    def _next_data(self) -> Any:
        self._asked = time.monotonic()
        return super()._next_data()  # type: ignore[no-untyped-call]

    def _try_get_data(self, *arguments: Any) -> Any:
        found = super()._try_get_data(*arguments)  # type: ignore[no-untyped-call]
        if not found[0] and time.monotonic() - self._asked > _PATIENCE:
            raise UserError(
                f"no batch came within {_PATIENCE} s: is the disk of the shards or hardware.remote slow, or {_SHARED} "
                "full? hardware.loader_workers: 0 reads without workers and says what is wrong"
            )
        return found


def list_dead(workers: list[BaseProcess]) -> list[int]:
    """Lists the numbers of workers that are dead or dying: a connection ends before its process does."""
    ended = wait([worker.sentinel for worker in workers], timeout=1) if workers else []
    return [number for number, worker in enumerate(workers) if worker.sentinel in ended]


def end_workers(batches: Any) -> None:
    """Ends the workers of a loader's iterator after an error, if it has workers.

    The error's traceback refers to the iterator, which would end as garbage: its queues are closed first then, so that
    it cannot tell the workers, waits 10 seconds for them, and this process waits `_GRACE` more at its end.
    """
    if isinstance(batches, _EndingIterator):
        batches._shutdown_workers()


def prepare_worker(_: int) -> None:
    cv2.setNumThreads(1)
    # Both are sent to every process of a job, but the trainer ends its step first, for which it needs this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))  # an alarm ends the process
