"""The loss of a whole step where images of the step are related to each other (charm.model.long_tail)."""

from collections.abc import Callable

from torch import Tensor

from charm.model.long_tail import draw_pair, mix, similarity_loss
from charm.model.protocol import Model
from charm.tokenization.draws import draw_uniform
from pipeline.settings.params import LongTailParams


def long_tail_loss(
    model: Model,
    features: Tensor,
    target: Tensor,
    unit_bins: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    settings: LongTailParams,
    seed: int,
    step: int,
) -> Tensor:
    """Computes the loss of a step with its long tail.

    Args:
        model: whose head reads the features.
        features: float (B, F), of all images of the step.
        target: float (B, num_bins).
        unit_bins: float (num_bins,), the scores of the bins on 0..1.
        loss: one value per sample.
        settings: which terms there are.
        seed, step: the pair is drawn from these alone.

    Returns:
        A scalar: the mean loss of the images and of the mixed one, plus the weighted similarity loss of all of these.
    """
    if settings.pairs:
        first, second = draw_uniform(seed, step, "", "long_tail", 2).tolist()
        mixture = draw_pair(target @ unit_bins, (first, second), settings.tau_1, settings.tau_2)
        if mixture is not None:
            features, target = mix(features, mixture), mix(target, mixture)
    total = loss(model.score_features(features), target).mean()
    if settings.similarity:
        total = total + settings.similarity * similarity_loss(features, target @ unit_bins)
    return total
