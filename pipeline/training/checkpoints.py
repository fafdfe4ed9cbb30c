"""Checkpoints: safetensors + JSON in a folder that is there whole or not at all. Nothing is pickled."""

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from charm.runtime.disk import file_sha256, fsync_dir
from charm.runtime.errors import UserError
from pipeline.work.store import read_record, write_record

_KEPT = 2  # finished checkpoints; an older one stands in if the newest is damaged


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes folder/checkpoint-<number>/, one number up, and removes all but the newest two; one process at a time.

    A number is never used twice, so that at no moment is the only whole checkpoint one that is being replaced.

    Raises:
        UserError: it cannot be written (a full disk); those before it are as they were.
    """
    for left in folder.glob(".checkpoint-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    finished = _finished(folder)
    number = 1 + max((int(path.name.split("-")[1]) for path in finished), default=0)
    target = folder / f"checkpoint-{number:09d}"
    aside = folder / f".{target.name}"
    try:
        aside.mkdir(parents=True)
        _save_tensors(tensors, aside / "tensors.safetensors")
        write_record(aside / "state.json", {"state": state, "sha256": file_sha256(aside / "tensors.safetensors")})
        os.replace(aside, target)
        fsync_dir(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(f"{folder}: a checkpoint cannot be written ({error}); the one before it is kept") from error
    for old in [*finished, target][:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Returns the newest checkpoint that is whole; None if there is none."""
    for path in reversed(_finished(folder)):
        try:
            written = read_record(path / "state.json")
            state: dict[str, Any] = written["state"]
            if file_sha256(path / "tensors.safetensors") == written["sha256"]:
                return load_file(path / "tensors.safetensors"), state
        except (OSError, ValueError, LookupError, SafetensorError):
            pass
        print(f"{path}: damaged, an older checkpoint is used", flush=True)
    return None


def _finished(folder: Path) -> list[Path]:
    """Lists finished checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint-*"))


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
