"""How far training is: all that changes from step to step, and so all that a checkpoint has to hold."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from charm.model.protocol import Model
from pipeline.training.checkpoints import load_checkpoint, save_checkpoint
from pipeline.training.optimizers import optimizer_tensors, restore_optimizer

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
