"""Fine-tune the backbone on patches that are chosen anew in each epoch.

Writes runs/train: model.safetensors and model.json (best epoch by validation), history.csv by epoch and losses.csv
by step. A run that was stopped goes on from its last checkpoint, which lies in the store under the sha256 of everything
that it reads; a run that was finished is kept there, and published again. Runs on several GPUs with
hardware.processes, or under torchrun:

    torchrun --nproc-per-node 2 -m stages.train
"""

import contextlib
import math
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from charm.model.losses import LOSSES
from charm.model.metrics import score_agreement
from charm.runtime.devices import choose_device
from charm.runtime.disk import atomic_write, file_sha256, fingerprint
from charm.runtime.errors import UserError
from charm.runtime.interrupts import Interrupts
from charm.tokenization.draws import draw_random_bits
from pipeline.settings.inputs import build_tokenizer
from pipeline.settings.models import describe_start, start_model
from pipeline.settings.params import Params
from pipeline.training.artifacts import Inputs
from pipeline.training.checkpoints import save_model
from pipeline.training.distributed import (
    ProcessGroup,
    all_reduce_sum,
    is_launched,
    join_process_group,
    launch_processes,
)
from pipeline.training.loader import Batch, Loader
from pipeline.training.optimizers import build_optimizer, scheduled_rate, set_rate
from pipeline.training.predictions import forward_batch, predict
from pipeline.training.sampler import EpochSampler
from pipeline.training.state import Record, TrainState, average_model
from pipeline.training.steps import TimedIterator, accumulate_gradients, clip_gradients, is_finite_step, optimizer_step
from pipeline.training.trained import describe_model
from pipeline.work.code import run_digest
from pipeline.work.store import keep_finished, locked, publish_finished, repository_path, store_folder
from stages import run_stage

OUT = Path("runs/train")
_COLUMNS = ("epoch", "learning_rate", "train_loss", "val_plcc", "val_srcc", "val_krcc", "val_acc", "val_mae")


def main(params: Params) -> None:
    if params.hardware.processes > 1 and not is_launched():
        launch_processes(params.hardware.processes, "stages.train")
        return
    with join_process_group() as ranks:
        inputs = Inputs(params)
        made_from = _fingerprint(params, inputs)
        work = store_folder("train") / made_from
        work.mkdir(exist_ok=True)
        with locked(work) if ranks.first else contextlib.nullcontext():
            is_published = ranks.first and publish_finished("trained", made_from, OUT)
            # The sum waits, too: no rank looks for checkpoints before the first one is alone.
            if all_reduce_sum(float(is_published))[0]:
                print("train: finished before, published again; to train anew: `python -m pipeline prune --runs`")
                return
            train_model(params, inputs, work, ranks)
            if ranks.first:
                keep_finished("trained", made_from, work / "finished")
                publish_finished("trained", made_from, OUT)
                shutil.rmtree(work)


def train_model(params: Params, inputs: Inputs, work: Path, ranks: ProcessGroup) -> None:
    """Trains from the last checkpoint in the folder `work`, if there is one, and writes the result to work/finished."""
    settings, hardware = params.train, params.hardware
    device = choose_device(hardware.device, ranks.local_rank if ranks.world_size > 1 else None)
    if device.type == "cuda":
        torch.cuda.set_device(device)

    # Model
    manifest, bins = inputs.manifest, inputs.manifest.bins
    torch.manual_seed(params.seed)
    model = start_model(params, len(bins)).to(device)
    model.vit.set_grad_checkpointing(hardware.grad_checkpointing)

    # Data
    train, val = manifest.of_split("train"), manifest.of_split("val")
    pos_embeds = inputs.pos_embeds.to(device)
    share = (hardware.micro_batch, ranks.rank, ranks.world_size)
    sampler = EpochSampler(len(train.table), settings.batch_size, params.seed, True, *share)
    tokenizer = build_tokenizer(params, model.patch_size)
    training_tokenizer = build_tokenizer(params, model.patch_size, training=True)
    augmented = inputs.training_data(train, training_tokenizer, settings.flip, settings.rotate)
    train_loader = Loader(augmented, sampler, hardware.loader_workers, device)
    val_sampler = EpochSampler(len(val.table), settings.batch_size, params.seed, False, *share)
    val_loader = Loader(inputs.evaluation_data(val, tokenizer), val_sampler, hardware.loader_workers, device)
    if len(bins) == 1:
        torch.nn.init.constant_(model.head.bias, float(np.median(train.targets)))  # L1's best constant
    where = f"{device}" if ranks.world_size == 1 else f"{ranks.world_size} processes ({device.type})"
    print(f"train: {len(train.table)} images, {len(val.table)} for validation, {settings.epochs} epochs on {where}")

    # Objective and optimizer
    loss_name = settings.loss if settings.loss != "auto" else "l1" if len(bins) == 1 else "emd"
    if (loss_name == "emd") != (len(bins) > 1):
        raise UserError(f"params.yaml: train.loss: {loss_name} does not fit labels with {len(bins)} bins; use auto")
    progress = TrainState(
        model,
        build_optimizer(model, settings),
        torch.amp.GradScaler(device.type, enabled=hardware.precision == "float16"),
        average_model(model, settings.ema),
    )
    if progress.load(work):
        print(f"train: goes on after step {progress.step}, epoch {progress.step / sampler.steps:.2f}")
    if hardware.compile:
        for block in model.vit.blocks:  # they are alike, so one is compiled for all; lengths of sequences vary
            block.compile(dynamic=True)
    parallel: torch.nn.Module = model
    if ranks.world_size > 1:
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)

    def batch_loss(batch: Batch) -> Tensor:
        """Its part of the mean over all images of the step."""
        output = forward_batch(parallel, batch, pos_embeds, hardware.precision)
        return (LOSSES[loss_name](output, batch.target.to(device)) * batch.weight.to(device)).sum()

    with Interrupts() as interrupts:
        try:
            saved = time.monotonic()
            for epoch in range(len(progress.history), settings.epochs):
                if settings.patience and progress.stale_epochs >= settings.patience:
                    print(f"train: no better validation score in {settings.patience} epochs")
                    break

                # Train
                started = time.monotonic()
                model.train()
                sampler.epoch, sampler.first_step = epoch, progress.step - epoch * sampler.steps
                batches = TimedIterator(iter(train_loader))
                for step in range(sampler.first_step, sampler.steps):
                    set_rate(progress.optimizer, scheduled_rate(settings, progress.step, sampler.steps))
                    # Of drop path, in backbones that have it; a function of the step, there is no state to keep.
                    torch.manual_seed(int(draw_random_bits(params.seed, progress.step, "", "torch", 1)[0]))
                    count = sampler.micro_batches(step)
                    loss = accumulate_gradients(progress, parallel, batches, count, batch_loss)
                    norm = clip_gradients(progress, settings.clip_norm)
                    loss, stops = all_reduce_sum(loss, interrupts.came)
                    if not is_finite_step(progress, loss, norm):
                        keys = ", ".join(train.keys[row] for row in sampler.step_rows(step))
                        problem = f"the loss is {loss}, the gradient's norm {norm} at step {progress.step}"
                        raise UserError(f"{problem}, images {keys}: look at their labels or lower the learning rate")
                    optimizer_step(progress, loss)
                    if stops:
                        raise KeyboardInterrupt
                    if ranks.first and time.monotonic() - saved >= 60 * hardware.checkpoint_minutes:
                        progress.save(work)
                        saved = time.monotonic()
                trained = time.monotonic() - started

                # Validate
                scored = progress.scored_model
                try:
                    found = predict(scored, val_loader, pos_embeds, bins, hardware.precision, interrupts.check)
                except RuntimeError:
                    interrupts.check()  # then another rank was stopped, too, and is gone already
                    raise
                agreement = score_agreement(found.predicted, found.target, manifest.facts["accuracy_threshold"])
                progress.add_epoch(
                    {
                        "epoch": epoch + 1,
                        "learning_rate": scheduled_rate(settings, progress.step - 1, sampler.steps),
                        "train_loss": float(np.mean(progress.losses[epoch * sampler.steps :])),
                        **{f"val_{name}": value for name, value in agreement.items()},
                    }
                )
                waited = batches.seconds / max(trained, 1e-9)
                _show_epoch(progress.history, settings.epochs, time.monotonic() - started, waited)
                if ranks.first:
                    progress.save(work)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if ranks.first:
                progress.save(work)
            raise

    # Publish
    if not ranks.first:
        return
    out = work / "finished"
    out.mkdir(exist_ok=True)
    facts = {"best_epoch": progress.best_epoch, "patch_size": model.patch_size} | describe_start(params, model)
    save_model(out, progress.best, describe_model(params, manifest) | facts)
    history = [[f"{record[name]:.6g}" for name in _COLUMNS] for record in progress.history]
    _write_csv(out / "history.csv", _COLUMNS, history)
    _write_csv(out / "losses.csv", ("step", "loss"), [[str(n), repr(x)] for n, x in enumerate(progress.losses)])


def _fingerprint(params: Params, inputs: Inputs) -> str:
    """Returns the sha256 of what the run reads, its params and its files, and of the code that it runs."""
    settings = asdict(params)
    chosen = ["selection", "tokenizer", "backbone", "pretrained", "max_seq_len", "seed", "tokens", "train"]
    weights = file_sha256(repository_path(params.checkpoint)) if params.checkpoint else ""
    described = describe_model(params, inputs.manifest), inputs.manifest.facts["accuracy_threshold"]
    read = {name: settings[name] for name in chosen} | {"precision": params.hardware.precision}
    return fingerprint(read, run_digest("stages.train"), weights, inputs.sha256s, described)


def _show_epoch(history: Sequence[Record], epochs: int, seconds: float, waited: float) -> None:
    """The last one. `waited`: share of the time that went by waiting for data."""
    record = history[-1]
    srcc, plcc = (
        "undefined" if math.isnan(value) else f"{value:.3f}" for value in (record["val_srcc"], record["val_plcc"])
    )
    shown = f"loss {record['train_loss']:.4f}  val SRCC {srcc}  PLCC {plcc}"
    shares = f"data {waited:.0%}, model {1 - waited:.0%}".replace("%", " %")
    print(f"train: epoch {record['epoch']:>3} of {epochs}  {shown}  {seconds:.1f} s ({shares})", flush=True)
    first = next((one for one in history if math.isnan(one["val_srcc"] + one["val_plcc"])), None)
    if record is first:  # said once
        print(
            "train: SRCC and PLCC are undefined, as all predictions or all labels are equal: chosen by MAE", flush=True
        )


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with atomic_write(path) as file:
        file.write("".join(",".join(row) + "\n" for row in [columns, *rows]).encode())


if __name__ == "__main__":
    run_stage(main)
