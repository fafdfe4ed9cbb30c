"""Training, flat: model, data, objective; then for each epoch its steps and its validation; then the result."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from charm.hub import write_model_folder
from charm.model.config import TrainingConfig, list_doubts
from charm.model.long_tail import draw_pair, mix, similarity_loss
from charm.model.losses import LOSSES
from charm.model.metrics import score_agreement
from charm.model.mixout import mix_out
from charm.runtime.devices import choose_device
from charm.runtime.disk import write_csv
from charm.runtime.errors import UserError, escape_controls, format_count
from charm.runtime.interrupts import Interrupts
from charm.runtime.progress import Progress, format_time
from charm.tokenization.draws import draw_random_bits, draw_uniform
from pipeline.settings.inputs import build_tokenizer
from pipeline.settings.models import describe_changes, describe_start, start_model
from pipeline.settings.params import Params
from pipeline.training.artifacts import Inputs
from pipeline.training.distributed import ProcessGroup, all_reduce_sum
from pipeline.training.loader import Batch, Loader
from pipeline.training.optimizers import build_optimizer, scheduled_rate, set_rate
from pipeline.training.predictions import forward_batch, forward_features, predict
from pipeline.training.publish import describe_model
from pipeline.training.sampler import EpochSampler
from pipeline.training.state import TrainState, average_model
from pipeline.training.steps import (
    Pace,
    accumulate_gradients,
    clip_gradients,
    explaining_memory,
    is_finite_step,
    optimizer_step,
)
from pipeline.training.tracker import RUN, RUN_LENGTH, Tracker, open_tracker

_TIMED_STEPS = 10  # after which a run says how long it will take
HISTORY = ("epoch", "learning_rate", "train_loss", "val_plcc", "val_srcc", "val_krcc", "val_acc", "val_mae")


class Trainer:
    """A training run of this process, one of `ranks`, that goes on from the newest checkpoint in the folder `work`.

    Raises:
        UserError: the loss does not fit the labels, a checkpoint cannot be read, or there is no such device.
    """

    def __init__(self, params: Params, inputs: Inputs, ranks: ProcessGroup, work: Path) -> None:
        self.params, self.inputs, self.ranks, self.work = params, inputs, ranks, work
        settings, hardware, manifest = params.train, params.hardware, inputs.manifest
        self.device = choose_device(hardware.device, ranks.local_rank if ranks.world_size > 1 else None)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

        # Model
        self.unit_bins = manifest.unit_bins
        torch.manual_seed(params.seed)
        self.train, self.val = manifest.of_split("train"), manifest.of_split("val")
        score = float(np.median(self.train.targets))  # L1's best constant; only scores have one
        self.model = start_model(params, len(self.unit_bins), score).to(self.device)
        try:
            self.model.set_grad_checkpointing(hardware.grad_checkpointing)
        except ValueError as error:
            raise UserError(f"params.yaml: hardware.{error}") from error
        if settings.mixout:
            mix_out(self.model.body, settings.mixout)  # before a checkpoint is loaded

        # Data
        self.pos_embeds = inputs.pos_embeds.to(self.device)
        share = (hardware.micro_batch, ranks.rank, ranks.world_size)
        self.sampler = EpochSampler(len(self.train.table), settings.batch_size, params.seed, True, *share)
        tokenizer, training_tokenizer = (
            build_tokenizer(params, self.model.patch_size, training=training) for training in (False, True)
        )
        augmentation = settings.flip, settings.rotate, settings.grey
        augmented = inputs.training_data(self.train, training_tokenizer, *augmentation)
        self.train_loader = Loader(augmented, self.sampler, hardware.loader_workers, self.device)
        val_sampler = EpochSampler(len(self.val.table), settings.batch_size, params.seed, False, *share)
        val_data = inputs.evaluation_data(self.val, tokenizer)
        self.val_loader = Loader(val_data, val_sampler, hardware.loader_workers, self.device)

        # Objective
        name = settings.loss if settings.loss != "auto" else "l1" if len(self.unit_bins) == 1 else "emd"
        if (name == "emd") != (len(self.unit_bins) > 1):
            problem = f"{name} does not fit labels with {len(self.unit_bins)} bins; use auto"
            raise UserError(f"params.yaml: train.loss: {problem}")
        self.loss = LOSSES[name]
        if settings.long_tail.is_on and ranks.world_size > 1:
            raise UserError("params.yaml: train.long_tail: it relates all images of a step: expected one process")
        self.state = TrainState(
            self.model,
            build_optimizer(self.model, settings),
            torch.amp.GradScaler(self.device.type, enabled=hardware.precision == "float16"),
            average_model(self.model, settings.ema),
        )
        self.is_resumed = self.state.load(work)
        self._saved = time.monotonic()
        self._validation_seconds = 0.0  # of the last epoch
        self.tracker = open_tracker(work.name[:RUN_LENGTH], "train", params) if ranks.first else Tracker()
        if hardware.compile:
            self.model.compile_backbone()
        self.parallel: torch.nn.Module = self.model
        if ranks.world_size > 1:
            self.parallel = DistributedDataParallel(self.model, gradient_as_bucket_view=True)

    def run(self) -> None:
        """Trains from where the state is to the last epoch.

        Raises:
            KeyboardInterrupt: a signal came; what is trained is saved.
            UserError: a loss is not finite, or a sample cannot be read.
        """
        self._announce()
        if self.ranks.first:
            self._write_history(self.work)  # which a killed process may not have come to after its last checkpoint
        with Interrupts() as interrupts, closing(self.tracker):
            try:
                self.tracker.add_history(self.state.history)
                for epoch in range(len(self.state.history), self.params.train.epochs):
                    patience = self.params.train.patience
                    if patience and self.state.stale_epochs >= patience:
                        print(f"train: no better validation score in {format_count(patience, 'epoch')}")
                        break
                    started = time.monotonic()
                    pace = self._train_epoch(epoch, interrupts)
                    shares, validated = pace.describe(), time.monotonic()
                    self._validate(epoch, interrupts)
                    self._validation_seconds = time.monotonic() - validated
                    self._save()
                    self.tracker.add_history(self.state.history)
                    self._show_epoch(time.monotonic() - started, shares)
            except KeyboardInterrupt:
                self._save()
                raise

    def publish(self, out: Path) -> None:
        """Writes the folder of the best model, with history.csv by epoch and losses.csv by step."""
        started_from, licence = describe_start(self.params, self.model)
        training = TrainingConfig(self.state.best_epoch, self.inputs.manifest.train_edge, started_from, licence)
        config = describe_model(self.params, self.inputs, self.model.patch_size, training)
        write_model_folder(out, self.state.best, config)
        self._write_history(out)
        (out / RUN).write_text(self.work.name[:RUN_LENGTH])
        write_csv(out / "losses.csv", ("step", "loss"), [(n, repr(loss)) for n, loss in enumerate(self.state.losses)])

    def _write_history(self, folder: Path) -> None:
        rows = [[f"{record[name]:.6g}" for name in HISTORY] for record in self.state.history]
        write_csv(folder / "history.csv", HISTORY, rows)

    def _train_epoch(self, epoch: int, interrupts: Interrupts) -> Pace:
        """Takes the steps of an epoch that are left; returns how fast they went."""
        with explaining_memory(self.sampler):
            while (pace := self._take_steps(epoch, interrupts)) is None:
                pass
        return pace

    def _accumulate(self, batches: Iterator[Batch], count: int) -> float | None:
        """Adds up a step's gradients; returns its loss, or None if that takes too much memory and batches are halved.

        Memory that lacks in the optimizer's own step stops the run: some of the parameters may have changed.
        """
        sampler = self.sampler
        images, is_fixed = sampler.most_images, bool(self.params.hardware.micro_batch) or self.ranks.world_size > 1
        try:
            return accumulate_gradients(self.state, self.parallel, batches, count, self._batch_loss)
        except torch.OutOfMemoryError:
            if is_fixed or images == 1:
                raise
        # After the handler: the error holds the frames, and so the tensors, of the step that failed.
        sampler.micro_batch = self.val_loader.sampler.micro_batch = images // 2
        self.state.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        print(f"train: the GPU has no memory left at {images} images at a time: goes on with {images // 2}")
        return None

    def _take_steps(self, epoch: int, interrupts: Interrupts) -> Pace | None:
        """Does `_train_epoch` up to a step that is to be taken again with other batches; returns None then."""
        params, state, sampler = self.params, self.state, self.sampler
        self.model.train()
        sampler.epoch, sampler.first_step = epoch, state.step - epoch * sampler.steps
        pace = Pace(iter(self.train_loader))
        label, silent = f"train: epoch {epoch + 1} of {params.train.epochs}", not self.ranks.first
        with closing(Progress(label, sampler.steps, "step", sampler.first_step, silent)) as progress:
            for step in range(sampler.first_step, sampler.steps):
                set_rate(state.optimizer, scheduled_rate(params.train, state.step, sampler.steps))
                # Of drop path, in backbones that have it; a function of the step, so there is no state to keep.
                torch.manual_seed(int(draw_random_bits(params.seed, state.step, "", "torch", 1)[0]))
                count = sampler.micro_batches(step)
                loss = self._accumulate(pace, count)
                if loss is None:
                    return None
                norm = clip_gradients(state, params.train.clip_norm)
                loss, stops = all_reduce_sum(loss, interrupts.came)
                if not is_finite_step(state, loss, norm):
                    keys = ", ".join(self.train.keys[row] for row in sampler.step_rows(step))
                    problem = f"the loss is {loss}, the gradient's norm {norm} at step {state.step}"
                    raise UserError(f"{problem}, images {keys}: look at their labels or lower the learning rate")
                optimizer_step(state, loss)
                if stops:
                    raise KeyboardInterrupt
                if time.monotonic() - self._saved >= 60 * params.hardware.checkpoint_minutes:
                    self._save()
                pace.end_step()
                progress.move(note=self._describe_step(pace, loss))
        return pace

    def _describe_step(self, pace: Pace, loss: float) -> str:
        """Says how the step went and how long the run will take; prints the latter once, early in the run."""
        if pace.steps < 1:
            return ""
        steps_left = self.sampler.steps * self.params.train.epochs - self.state.step
        epochs_left = self.params.train.epochs - len(self.state.history)
        left = format_time(pace.step_seconds * steps_left + self._validation_seconds * epochs_left)
        if self.ranks.first and pace.steps == _TIMED_STEPS and self._validation_seconds == 0:
            print(
                f"train: about {format_time(pace.step_seconds * self.sampler.steps)} an epoch and {left} to the end, "
                "without validation",
                flush=True,
            )
        return f"loss {loss:.4f}, {pace.describe()}, {left} left of the run"

    def _batch_loss(self, batch: Batch) -> Tensor:
        """Returns the batch's part of the mean over all images of the step."""
        params, target = self.params, batch.target.to(self.device)
        if params.train.long_tail.is_on:
            return self._long_tail_loss(batch, target)
        output = forward_batch(self.parallel, batch, self.pos_embeds, params.hardware.precision)
        return (self.loss(output, target) * batch.weight.to(self.device)).sum()

    def _long_tail_loss(self, batch: Batch, target: Tensor) -> Tensor:
        """Returns the mean loss of all images of a step and of a mixed one, plus the weighted loss of similarity."""
        settings = self.params.train.long_tail
        features = forward_features(self.model, batch, self.pos_embeds, self.params.hardware.precision)
        unit_bins = torch.as_tensor(self.unit_bins, dtype=target.dtype, device=self.device)
        if settings.pairs:
            first, second = draw_uniform(self.params.seed, self.state.step, "", "long_tail", 2).tolist()
            mixture = draw_pair(target @ unit_bins, (first, second), settings.tau_1, settings.tau_2)
            if mixture is not None:
                features, target = mix(features, mixture), mix(target, mixture)
        total = self.loss(self.model.score_features(features), target).mean()
        if settings.similarity:
            total = total + settings.similarity * similarity_loss(features, target @ unit_bins)
        return total

    def _validate(self, epoch: int, interrupts: Interrupts) -> None:
        """Adds the epoch to the history, MAE on the scale of the labels; keeps the model if none was better."""
        manifest, sampler = self.inputs.manifest, self.sampler
        try:
            with explaining_memory(self.val_loader.sampler):
                found = predict(
                    self.state.scored_model,
                    self.val_loader,
                    self.pos_embeds,
                    self.unit_bins,
                    self.params.hardware.precision,
                    interrupts.check,
                )
        except RuntimeError:
            interrupts.check()  # then another rank was stopped, too, and is gone already
            raise
        low, high = manifest.facts.score_range
        agreement = score_agreement(found.predicted, found.target, manifest.unit_threshold)
        agreement["mae"] *= high - low
        self.state.add_epoch(
            {
                "epoch": epoch + 1,
                "learning_rate": scheduled_rate(self.params.train, self.state.step - 1, sampler.steps),
                "train_loss": float(np.mean(self.state.losses[epoch * sampler.steps :])),
                **{f"val_{name}": value for name, value in agreement.items()},
            }
        )

    def _save(self) -> None:
        """Writes a checkpoint, if this process is the one that writes."""
        if self.ranks.first:
            self.state.save(self.work)
            self._write_history(self.work)
            self._saved = time.monotonic()

    def _announce(self) -> None:
        ranks, settings = self.ranks, self.params.train
        where = f"{self.device}" if ranks.world_size == 1 else f"{ranks.world_size} processes ({self.device.type})"
        counts = f"{format_count(len(self.train.table), 'image')}, {len(self.val.table)} for validation"
        print(f"train: {counts}, {format_count(settings.epochs, 'epoch')} on {where}")
        print(f"train: history so far, a row per epoch: {os.path.relpath(self.work / 'history.csv')}")
        started_from, _ = describe_start(self.params, self.model)
        if changes := describe_changes(self.params, len(self.unit_bins)):
            print(escape_controls(f"train: goes on from {self.params.checkpoint} with {', '.join(changes)}"))
        for doubt in list_doubts(self.inputs.manifest.facts.dataset, started_from, None):
            print(f"train: warning: {doubt}")
        if self.is_resumed:
            print(f"train: goes on after step {self.state.step}, epoch {self.state.step / self.sampler.steps:.2f}")

    def _show_epoch(self, seconds: float, pace: str) -> None:
        """Prints the last epoch."""
        history = self.state.history
        record = history[-1]
        srcc, plcc = (
            "undefined" if math.isnan(value) else f"{value:.3f}" for value in (record["val_srcc"], record["val_plcc"])
        )
        shown = f"loss {record['train_loss']:.4f}  val SRCC {srcc}  PLCC {plcc}"
        epochs = self.params.train.epochs
        print(f"train: epoch {record['epoch']:>3} of {epochs}  {shown}  {seconds:.1f} s ({pace})", flush=True)
        undefined = next((one for one in history if math.isnan(one["val_srcc"] + one["val_plcc"])), None)
        if record is undefined:  # said once
            reason = "as all predictions or all labels are equal: chosen by MAE"
            print(f"train: SRCC and PLCC are undefined, {reason}", flush=True)
