"""Losses: L1 for scores, Earth Mover's Distance for score distributions (Charm, section 3.3), MSE besides.

Each gives one value per sample: the caller takes the mean, over the batch of its choice. Prediction and target of
different shapes raise ValueError.
"""

from collections.abc import Callable

from torch import Tensor


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Computes the absolute error, mean over the outputs; (B, 1) and (B, 1) -> (B,)."""
    _check_shapes(prediction, target)
    return (prediction - target).abs().mean(dim=-1)


def mse_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Computes the squared error, mean over the outputs; (B, 1) and (B, 1) -> (B,)."""
    _check_shapes(prediction, target)
    return (prediction - target).square().mean(dim=-1)


def emd_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Computes the Earth Mover's Distance of distributions over ordered bins (Talebi and Milanfar, NIMA, r = 2).

    Args:
        prediction: logits, float (B, num_bins).
        target: probabilities, float (B, num_bins), each row sums to 1.

    Returns:
        (B,): sqrt(mean over bins of the squared difference of the cumulative distributions). Its gradient is finite
        everywhere, a perfect match included.
    """
    _check_shapes(prediction, target)
    gap = prediction.softmax(dim=-1).cumsum(dim=-1) - target.cumsum(dim=-1)
    # The square root has an infinite slope at 0; 1e-12 moves a loss by at most 1e-6.
    return (gap.square().mean(dim=-1) + 1e-12).sqrt()


def _check_shapes(prediction: Tensor, target: Tensor) -> None:
    """Raises ValueError if shapes differ: (B, 1) less (B,) would be (B, B), every prediction with every target."""
    if prediction.shape != target.shape:
        came = f"prediction is {tuple(prediction.shape)}, target {tuple(target.shape)}"
        raise ValueError(f"{came}: expected the same shape")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1_loss, "mse": mse_loss, "emd": emd_loss}
