"""Mixout: in training, weights are mixed with those that fine-tuning started from (Lee, Cho, Kang, ICLR 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MixedLinear(nn.Linear):
    """A linear layer that is made of another one by `mix_out`; its parameters and their names stay."""

    start: Tensor  # the weights that fine-tuning started from, as `weight`; in no state dict
    share: float  # p, of the columns that are taken from them

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer; in training with mixed weights, whose expectation is `weight`.

        The same columns of every row are mixed, so that an input is mixed as a whole.
        """
        if not self.training:
            return super().forward(input)
        kept = torch.rand(self.in_features, device=self.weight.device) >= self.share
        mixed = torch.where(kept, self.weight, self.start) - self.share * self.start
        return F.linear(input, mixed / (1 - self.share), self.bias)


def mix_out(model: nn.Module, share: float) -> None:
    """Turns all layers of a model that are nn.Linear itself into MixedLinear ones, with p in (0, 1); in place."""
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = MixedLinear
            layer.register_buffer("start", layer.weight.detach().clone(), persistent=False)
            vars(layer)["share"] = share  # nn.Module takes what is assigned for a module or a tensor
