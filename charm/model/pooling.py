"""Pools the tokens of an image: the parts that kinds of heads are named after, as `cls_native_coarse`."""

from collections.abc import Sequence

import torch
from torch import Tensor

PARTS = ("cls", "mean", "native", "coarse")


def pool_tokens(parts: Sequence[str], x: Tensor, num_prefix: int, valid: Tensor, is_native: Tensor) -> list[Tensor]:
    """Pools each image of a batch.

    Args:
        parts: of PARTS: the CLS token, the mean of all tokens, of those of the finest scale, or of the others.
        x: float (B, num_prefix + L, D), prefix tokens (CLS first) and tokens.
        num_prefix: number of the prefix tokens.
        valid: bool (B, L), False where padding, which no mean counts.
        is_native: bool (B, L), True for tokens of the finest scale.

    Returns:
        float (B, D) of each part; 0 where an image has no such tokens.
    """
    among = {"mean": valid, "native": valid & is_native, "coarse": valid & ~is_native}
    return [x[:, 0] if part == "cls" else _mean_over(x[:, num_prefix:], among[part].unsqueeze(-1)) for part in parts]


def _mean_over(tokens: Tensor, chosen: Tensor) -> Tensor:
    """Averages the chosen tokens of each image, (B, L, D) by bool (B, L, 1), to (B, D)."""
    return torch.where(chosen, tokens, 0).sum(1) / chosen.sum(1).clamp(min=1)
