"""How far training is: all that changes from step to step, and so all that a checkpoint has to hold.

A checkpoint is safetensors + JSON in a folder that is there whole or not at all. Nothing is pickled.
"""

import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from charm.model.protocol import Model
from charm.runtime.disk import file_sha256, fsync_dir
from charm.runtime.errors import UserError
from pipeline.training.optimizers import optimizer_tensors, restore_optimizer
from pipeline.work.store import read_record, write_record

_KEPT = 2  # finished checkpoints; an older one stands in if the newest is damaged

Record = dict[str, float]  # a row of history.csv


def average_model(model: Model, decay: float) -> AveragedModel | None:
    """Builds an exponential moving average of the parameters with this decay; returns None for 0."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None


@dataclass
class TrainState:
    """What training has made so far."""

    # model, optimizer: as they are
    model: Model
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # of the gradients in float16; disabled otherwise
    averaged: AveragedModel | None = None  # the model's moving average, if one is kept
    step: int = 0  # optimizer steps done, over all epochs
    losses: list[float] = field(default_factory=list)  # of each step, over all ranks
    history: list[Record] = field(default_factory=list)  # a record per validated epoch
    best: dict[str, Tensor] = field(default_factory=dict)  # the scored model's tensors at the best epoch

    @property
    def scored_model(self) -> Model:
        """What is validated and published: the average, if one is kept."""
        return self.model if self.averaged is None else cast(Model, self.averaged.module)

    @property
    def best_epoch(self) -> int:
        """Counted from 1; the latest of equals."""
        return max(range(1, len(self.history) + 1), key=lambda epoch: (quality(self.history[epoch - 1]), epoch))

    @property
    def stale_epochs(self) -> int:
        """How many came after the first one that is as good as the best: a model that stands still gets no better."""
        qualities = [quality(record) for record in self.history]
        return len(qualities) - 1 - qualities.index(max(qualities)) if qualities else 0

    def add_epoch(self, record: Record) -> None:
        """Notes a validated epoch, and the model if none was better."""
        self.history.append(record)
        if self.best_epoch == len(self.history):
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.scored_model.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Writes a checkpoint into the folder."""
        parts = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer), "best": self.best}
        if self.averaged is not None:
            parts["averaged"] = self.averaged.state_dict()
        tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        state = {"step": self.step, "losses": self.losses, "history": self.history, "scaler": self.scaler.state_dict()}
        save_checkpoint(folder, tensors, state)

    def load(self, folder: Path) -> bool:
        """Takes over the newest whole checkpoint; False if there is none."""
        loaded = load_checkpoint(folder)
        if loaded is None:
            return False
        tensors, state = loaded
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "best": {}, "averaged": {}}
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        restore_optimizer(self.optimizer, parts["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(parts["averaged"])
        if self.scaler.is_enabled() and state["scaler"]:  # empty if it was disabled until now
            self.scaler.load_state_dict(state["scaler"])
        self.best = parts["best"]
        self.step, self.losses, self.history = state["step"], state["losses"], state["history"]
        return True


def quality(record: Record) -> tuple[float, float]:
    """Validation SRCC + PLCC, lowest where undefined; among equals, and where all are undefined, the lower MAE."""
    total, error = record["val_srcc"] + record["val_plcc"], record["val_mae"]
    return -math.inf if math.isnan(total) else total, -math.inf if math.isnan(error) else -error


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
        path = aside / "tensors.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        write_record(aside / "state.json", {"state": state, "sha256": file_sha256(path)})
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
