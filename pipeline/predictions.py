"""Scores from a model, in evaluation mode, every sample exactly once."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from charm.model import CharmViT
from pipeline.loader import Batch


@dataclass(frozen=True)
class Predictions:
    """keys: of N samples; predicted, target: float64 (N,), scores on the scale of 0..1."""

    keys: list[str]
    predicted: np.ndarray
    target: np.ndarray


def forward_batch(model: CharmViT, batch: Batch, pos_embeds: Tensor) -> Tensor:
    """The model's raw outputs, float (B, num_outputs), on the device of `pos_embeds`, (rows, D)."""
    device = pos_embeds.device
    rows = batch.pos_row.to(device, non_blocking=True).long()
    output: Tensor = model(
        batch.patches.to(device, non_blocking=True),
        batch.patch_coord.to(device, non_blocking=True),
        batch.scale_id.to(device, non_blocking=True),
        batch.patch_valid.to(device, non_blocking=True),
        pos_embeds[rows],
    )
    return output


@torch.inference_mode()
def predict(model: CharmViT, loader: DataLoader[Batch], pos_embeds: Tensor, bins: np.ndarray) -> Predictions:
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
