"""Shares the GPUs of a machine out among its workers, who know nothing of each other."""

import getpass
import os
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import IO

import torch

from charm.runtime.devices import open_device
from charm.runtime.disk import lock_file

_held: list[IO[str]] = []  # locks of this process


def choose_worker_device(name: str) -> torch.device:
    """Where this process runs its models.

    Raises:
        UserError: there is no such device.
    """
    return open_device(name_worker_device(name))


def name_worker_device(name: str) -> str:
    """`auto` takes a GPU where there is one; of several, `auto` and `cuda` take one that no other worker has."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda" or torch.cuda.device_count() < 2:
        return name
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    return f"cuda:{claim_gpu(gpus, Path(tempfile.gettempdir()) / f'charm-gpus-{getpass.getuser()}')}"


def claim_gpu(gpus: Sequence[str], folder: Path) -> int:
    """The first GPU that the fewest workers of this machine have, as an index; this process has it until it ends.

    Args:
        gpus: their names, in the order that torch counts them.
        folder: for one lock per GPU and worker, which the kernel frees however a process ends.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for turn in count():
        for index, gpu in enumerate(gpus):
            lock = open(folder / f"{gpu}.{turn}", "w")  # noqa: SIM115  (kept open, and so locked, until the process ends)
            if lock_file(lock, wait=False):
                _held.append(lock)
                return index
            lock.close()
    raise AssertionError("count() does not end")
