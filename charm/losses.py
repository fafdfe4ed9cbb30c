"""Losses: L1 for scores, Earth Mover's Distance for score distributions (Charm, section 3.3), MSE besides."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error; (B, 1) and (B, 1) -> ()."""
    return F.l1_loss(prediction, target)


def mse_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error; (B, 1) and (B, 1) -> ()."""
    return F.mse_loss(prediction, target)


def emd_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared-norm Earth Mover's Distance between distributions over ordered bins (Talebi and Milanfar, NIMA, r = 2).

    Args:
        prediction: logits, float (B, num_bins).
        target: probabilities, float (B, num_bins), each row sums to 1.

    Returns:
        (): mean over the batch of sqrt(mean over bins of the squared difference of the cumulative distributions). Its
        gradient is finite everywhere, a perfect match included.
    """
    gap = prediction.softmax(dim=-1).cumsum(dim=-1) - target.cumsum(dim=-1)
    # The square root has an infinite slope at 0; 1e-12 moves a loss by at most 1e-6.
    return (gap.square().mean(dim=-1) + 1e-12).sqrt().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1_loss, "mse": mse_loss, "emd": emd_loss}
