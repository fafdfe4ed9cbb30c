"""Scores from a model, in evaluation mode, every sample exactly once."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from charm.model import CharmViT
from pipeline.loader import Batch
from pipeline.pos_embeds import PosEmbeds


@dataclass(frozen=True)
class Predictions:
    """keys: of N samples; predicted, target: float64 (N,), scores on the scale of 0..1."""

    keys: list[str]
    predicted: np.ndarray
    target: np.ndarray


def forward_batch(model: CharmViT, batch: Batch, pos_embeds: PosEmbeds) -> Tensor:
    """The model's raw outputs, float (B, num_outputs), on the device of `pos_embeds`."""
    device = pos_embeds.device
    output: Tensor = model(
        batch.patches.to(device, non_blocking=True),
        batch.patch_coord.to(device, non_blocking=True),
        batch.scale_id.to(device, non_blocking=True),
        batch.patch_valid.to(device, non_blocking=True),
        pos_embeds.gather(batch.pos_row),
    )
    return output


@torch.inference_mode()
def predict(model: CharmViT, loader: Iterable[Batch], pos_embeds: PosEmbeds, bins: np.ndarray) -> Predictions:
    """The score of every sample; that of a distribution is its mean over `bins`, float64 (num_bins,)."""
    model.eval()
    keys: list[str] = []
    outputs, targets = [], []
    for batch in loader:
        outputs.append(forward_batch(model, batch, pos_embeds).float().cpu())
        targets.append(batch.target)
        keys += batch.keys
    output = torch.cat(outputs)
    if output.shape[1] > 1:
        output = output.softmax(dim=1)
    return Predictions(keys, output.double().numpy() @ bins, torch.cat(targets).double().numpy() @ bins)
