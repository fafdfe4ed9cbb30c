"""Scores from a model, in evaluation mode, every sample exactly once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from charm.model.protocol import Model
from charm.runtime.devices import autocast
from pipeline.pos_embeds.axes import PosEmbeds
from pipeline.training.distributed import all_gather_rows
from pipeline.training.loader import Batch


@dataclass(frozen=True)
class Predictions:
    """keys: of N samples; predicted, target: float64 (N,), scores on the scale of 0..1; is_small: bool (N,)."""

    keys: list[str]
    predicted: np.ndarray
    target: np.ndarray
    is_small: np.ndarray


def forward_batch(model: torch.nn.Module, batch: Batch, pos_embeds: PosEmbeds, precision: str = "float32") -> Tensor:
    """Returns the raw outputs of a model, float32 (B, num_outputs), on the device of `pos_embeds`."""
    bare: Any = model.module if isinstance(model, DistributedDataParallel) else model
    with autocast(pos_embeds.device, precision):
        output: Tensor = model(*gather_arguments(batch, pos_embeds, bare.trained_grid))
    return output


def forward_features(model: Model, batch: Batch, pos_embeds: PosEmbeds, precision: str = "float32") -> Tensor:
    """Returns what the head of a model reads, float (B, F), on the device of `pos_embeds`."""
    with autocast(pos_embeds.device, precision):
        return model.features(*gather_arguments(batch, pos_embeds, model.trained_grid))


def gather_arguments(
    batch: Batch, pos_embeds: PosEmbeds, trained_grid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Returns the arguments of a model on the device of `pos_embeds`."""
    device = pos_embeds.device
    return (
        batch.patches.to(device, non_blocking=True),
        batch.patch_coord.to(device, non_blocking=True),
        batch.scale_id.to(device, non_blocking=True),
        batch.patch_valid,
        pos_embeds.gather(batch.pos_row, trained_grid),
        None if batch.residuals is None else batch.residuals.to(device, non_blocking=True),
    )


@torch.inference_mode()
def predict(
    model: Model,
    loader: Iterable[Batch],
    pos_embeds: PosEmbeds,
    bins: np.ndarray,
    precision: str = "float32",
    between: Callable[[], None] = lambda: None,
) -> Predictions:
    """Predicts the score of every sample; of a distribution, its mean over `bins`, float64 (num_bins,).

    Several ranks get all scores each, in the order of their keys. `between` is called before each batch.
    """
    model.eval()
    keys: list[str] = []
    rows = []
    for batch in loader:
        between()
        outputs = forward_batch(model, batch, pos_embeds, precision).cpu()
        real = batch.weight > 0  # and not there to keep this rank in step
        rows.append(torch.cat([outputs, batch.target, batch.is_small[:, None]], dim=1)[real])
        keys += [key for key, is_real in zip(batch.keys, real.tolist(), strict=True) if is_real]
    keys, gathered = all_gather_rows(keys, torch.cat(rows))
    output, target, is_small = gathered.split([len(bins), len(bins), 1], dim=1)
    if len(bins) > 1:
        output = output.softmax(dim=1)
    return Predictions(
        keys, output.double().numpy() @ bins, target.double().numpy() @ bins, is_small[:, 0].bool().numpy()
    )
