"""Fine-tune the backbone on patches that are chosen anew in each epoch.

Writes runs/train: model.safetensors and model.json (best epoch by validation), charm_tokenizer.json, history.csv. A run
that was stopped goes on from its last checkpoint, which lies in the store under the sha256 of everything that it reads.
"""

import math
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from charm.losses import LOSSES
from charm.metrics import score_agreement
from charm.tokenizer import CharmTokenizer
from pipeline.checkpoints import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint, save_model
from pipeline.errors import UserError
from pipeline.inputs import DATA, Inputs
from pipeline.loader import Loader
from pipeline.models import build_model, choose_device, model_config
from pipeline.params import Params, TrainParams
from pipeline.predictions import forward_batch, predict
from pipeline.sampler import EpochSampler
from pipeline.store import code_digest, file_sha256, fingerprint, make_alone, store_folder, write_whole
from pipeline.tokenizers import build_tokenizer
from stages import run_stage

OUT = Path("runs/train")
_COLUMNS = ("epoch", "learning_rate", "train_loss", "val_plcc", "val_srcc", "val_krcc", "val_acc", "val_mae")


def main(params: Params) -> None:
    work = store_folder("train") / _fingerprint_inputs(params)
    work.mkdir(exist_ok=True)
    with make_alone(work):
        train_model(params, work)
        shutil.rmtree(work)  # a forced run starts anew


def train_model(params: Params, work: Path) -> None:
    """From the last checkpoint in the folder `work`, if there is one, to runs/train."""
    settings = params.train
    device = choose_device(params.hardware.device)

    # Model
    inputs = Inputs(params)
    manifest, bins = inputs.manifest, inputs.manifest.bins
    description = model_config(params, num_bins=len(bins))
    torch.manual_seed(params.seed)
    model = build_model(description, params.pretrained).to(device)
    tokenizer = build_tokenizer(params, model.patch_size)

    # Data
    train, val = manifest.of_split("train"), manifest.of_split("val")
    pos_embeds = inputs.pos_embeds.to(device)
    sampler = EpochSampler(len(train.table), settings.batch_size, params.seed, shuffle=True)
    training_tokenizer = build_tokenizer(params, model.patch_size, training=True)
    augmented = inputs.dataset(train, training_tokenizer, settings.flip, settings.rotate)
    train_loader = Loader(augmented, sampler, params.hardware.loader_workers, device)
    val_sampler = EpochSampler(len(val.table), settings.batch_size, params.seed, shuffle=False)
    plain = inputs.dataset(val, tokenizer)
    val_loader = Loader(plain, val_sampler, params.hardware.loader_workers, device)
    steps_per_epoch = len(sampler)
    if len(bins) == 1:
        torch.nn.init.constant_(model.head.bias, float(np.median(train.targets)))  # L1's best constant
    print(f"train: {len(train.table)} pictures, {len(val.table)} for validation, {settings.epochs} epochs on {device}")

    # Objective and optimizer
    loss_name = settings.loss if settings.loss != "auto" else "l1" if len(bins) == 1 else "emd"
    if (loss_name == "emd") != (len(bins) > 1):
        raise UserError(f"params.yaml: train.loss: {loss_name} does not fit labels with {len(bins)} bins; use auto")
    loss_function = LOSSES[loss_name]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    # Go on where an earlier run of the very same inputs stopped
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    step = 0
    if resumed := load_checkpoint(work):
        tensors, state = resumed
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        restore_optimizer(optimizer, tensors)
        history, step = state["history"], state["step"]
        print(f"train: goes on after epoch {len(history)}")

    for epoch in range(len(history), settings.epochs):
        # Train
        started = time.monotonic()
        model.train()
        sampler.epoch = epoch
        losses = []
        for batch in train_loader:
            for group in optimizer.param_groups:
                group["lr"] = scheduled_rate(settings, step, steps_per_epoch)
            loss = loss_function(forward_batch(model, batch, pos_embeds), batch.target.to(device))
            if not torch.isfinite(loss):
                raise UserError(f"the loss is {loss.item()} at step {step}, pictures {', '.join(batch.keys)}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
            optimizer.step()
            losses.append(loss.detach())
            step += 1

        # Validate
        found = predict(model, val_loader, pos_embeds, bins)
        agreement = score_agreement(found.predicted, found.target, manifest.facts["accuracy_threshold"])
        history.append(
            {
                "epoch": epoch + 1,
                "learning_rate": optimizer.param_groups[0]["lr"],
                "train_loss": float(torch.stack(losses).mean()),
                **{f"val_{name}": value for name, value in agreement.items()},
            }
        )
        _show_epoch(history[-1], settings.epochs, time.monotonic() - started)
        if _quality(history[-1]) >= max(map(_quality, history)):
            best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"best.{k}": v for k, v in best.items()}
        save_checkpoint(work, step, tensors | optimizer_tensors(optimizer), {"history": history, "step": step})
        if settings.patience and epoch + 1 - _best_epoch(history) >= settings.patience:
            print(f"train: no better validation score in {settings.patience} epochs")
            break

    # Publish
    model.load_state_dict(best)
    OUT.mkdir(parents=True, exist_ok=True)
    save_model(OUT, model, description | {"best_epoch": _best_epoch(history), "patch_size": model.patch_size})
    if isinstance(tokenizer, CharmTokenizer):
        tokenizer.save_pretrained(str(OUT))
    _write_history(OUT / "history.csv", history)


def scheduled_rate(settings: TrainParams, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a cosine from learning_rate to min_learning_rate at the last step of the last epoch."""
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, settings.epochs * steps_per_epoch - 1 - warmup)
    span = settings.learning_rate - settings.min_learning_rate
    return settings.min_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))


def _fingerprint_inputs(params: Params) -> str:
    """sha256 of what the run reads, its params and the files under data/, and of the code that it runs."""
    code = code_digest(
        "stages.train", *sorted(name for name in sys.modules if name.startswith(("charm.", "pipeline.")))
    )
    settings = asdict(params)
    chosen = ["selection", "tokenizer", "backbone", "pretrained", "max_seq_len", "seed", "tokens", "train"]
    files = [
        DATA / "manifest" / "manifest.parquet",
        DATA / "pos_embeds" / params.backbone / "axes.safetensors",
        *sorted((DATA / "shards").glob("*.json")),
        *sorted((DATA / "importance" / params.selection).glob("*.json")),
    ]
    return fingerprint(
        {name: settings[name] for name in chosen}, code, [file_sha256(file) for file in files if file.is_file()]
    )


def _quality(record: dict[str, float]) -> float:
    """Validation SRCC + PLCC; lowest where undefined."""
    total = record["val_srcc"] + record["val_plcc"]
    return -math.inf if math.isnan(total) else total


def _best_epoch(history: list[dict[str, float]]) -> int:
    """Counted from 1; the latest of equals."""
    return max(range(1, len(history) + 1), key=lambda epoch: (_quality(history[epoch - 1]), epoch))


def _show_epoch(record: dict[str, Any], epochs: int, seconds: float) -> None:
    shown = f"loss {record['train_loss']:.4f}  val SRCC {record['val_srcc']:.3f}  PLCC {record['val_plcc']:.3f}"
    print(f"train: epoch {record['epoch']:>3} of {epochs}  {shown}  {seconds:.1f} s", flush=True)


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    with write_whole(path) as file:
        lines = [",".join(_COLUMNS)] + [",".join(f"{row[name]:.6g}" for name in _COLUMNS) for row in history]
        file.write(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    run_stage(main)
