"""The learnt part of MULLER's resizer: two numbers for each plane of band-passed detail (charm.inputs.muller)."""

import torch
from torch import Tensor, nn

from charm.tokenization.tokens import RESIDUAL_UNIT


class Resizer(nn.Module):
    """Adds detail to resized pixels, y = x + sum_k tanh(a_k r_k + b_k) of K planes; at the start nothing."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        # a and b
        self.scale, self.bias = nn.Parameter(torch.zeros(num_layers)), nn.Parameter(torch.zeros(num_layers))

    def forward(self, pixels: Tensor, residuals: Tensor) -> Tensor:
        """Returns pixels, float (..., 3), on 0..1, with detail, (..., 3 K), in RESIDUAL_UNITs; not clipped."""
        planes = residuals.to(pixels.dtype).unflatten(-1, (-1, 3)) * RESIDUAL_UNIT
        detail = torch.tanh(self.scale[:, None] * planes + self.bias[:, None])
        return pixels + detail.sum(-2)
