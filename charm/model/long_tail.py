"""An objective for labels with a long tail: terms that relate the images of a step (ELTA: Liu et al., ICML 2024).

Most images of aesthetic data sets have middling scores. The rare ones are mixed with a neighbour in score, and features
of images are drawn as near to each other as their scores are. Scores are taken on a scale of 1..10, that of AVA, for
which the constants were chosen: labels from 0..1 are stretched to it, whatever their own scale is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """One pair of a step: places of the two samples, and the share of the first in their mixture."""

    first: int
    second: int
    share: float


def draw_pair(unit_scores: Tensor, uniform: tuple[float, float], tau_1: float, tau_2: float) -> Mixture | None:
    """Draws a rare sample and a neighbour of it in score.

    The first is drawn with probability softmax(|s_i - mean| / tau_1), the second, another one, with softmax(tau_2 /
    (|s_i - s_j| + 0.01)); the first's share is P(i) / (P(i) + P(j)), both of the first distribution.

    Scores are float (B,), on 0..1; the two numbers from [0, 1) in `uniform` decide alone. Returns None if there are
    fewer than two samples, or all scores are equal.
    """
    scores = 1 + 9 * unit_scores.detach().double().cpu()
    if len(scores) < 2 or scores.max() == scores.min():
        return None
    rarity = ((scores - scores.mean()).abs() / tau_1).softmax(0)
    first = _draw(rarity, uniform[0])
    nearness = tau_2 / ((scores - scores[first]).abs() + 0.01)
    nearness[first] = -torch.inf
    second = _draw(nearness.softmax(0), uniform[1])
    # The log of the ratio is finite where both probabilities are too small for a float.
    gap = ((scores[second] - scores.mean()).abs() - (scores[first] - scores.mean()).abs()) / tau_1
    return Mixture(first, second, float(torch.sigmoid(-gap)))


def mix(values: Tensor, mixture: Mixture) -> Tensor:
    """Appends the mixture of two rows: (B, ...) -> (B + 1, ...)."""
    row = mixture.share * values[mixture.first] + (1 - mixture.share) * values[mixture.second]
    return torch.cat([values, row[None]])


def similarity_loss(features: Tensor, unit_scores: Tensor) -> Tensor:
    """Computes how far similarities of features, float (B, F), are from those of scores, float (B,).

    It is the mean over all pairs of (cosine - (1 - |s_a - s_b| / (max - min)))^2; 0 if all scores are equal.
    """
    span = unit_scores.max() - unit_scores.min()
    if span == 0:
        return features.sum() * 0
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    expected = 1 - (unit_scores[:, None] - unit_scores[None]).abs() / span
    return (unit @ unit.T - expected).square().mean()


def _draw(probabilities: Tensor, uniform: float) -> int:
    """Returns the place that a number from [0, 1) falls on when the places divide that interval."""
    ends = probabilities.cumsum(0)
    return min(int((ends <= uniform * ends[-1]).sum()), len(ends) - 1)
