"""Shares the GPUs of a machine out among its workers, which do not know of each other."""

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
    """Opens the device that this process runs its models on; raises UserError if there is no such device."""
    return open_device(name_worker_device(name))


def name_worker_device(name: str) -> str:
    """Names the device of this process; "auto" and "cuda" take the GPU, of several the one with the fewest workers."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda" or torch.cuda.device_count() < 2:
        return name
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    return f"cuda:{claim_gpu(gpus, Path(tempfile.gettempdir()) / f'charm-gpus-{getpass.getuser()}')}"


def claim_gpu(gpus: Sequence[str], folder: Path) -> int:
    """Claims the first GPU with the fewest workers of this machine until this process ends; returns its index.

    The folder holds one lock per GPU and worker, which the kernel frees however a process ends.
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
