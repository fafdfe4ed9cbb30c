"""The learning rate of each optimizer step."""

import math

from pipeline.params import TrainParams


def scheduled_rate(settings: TrainParams, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then a cosine from learning_rate to min_learning_rate at the last step of the last epoch.

    Args:
        settings: learning_rate, min_learning_rate, warmup_epochs, epochs.
        step: counted from 0 over all epochs; without a warm-up the first one has the full rate.
        steps_per_epoch: optimizer steps.
    """
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, settings.epochs * steps_per_epoch - 1 - warmup)
    span = settings.learning_rate - settings.min_learning_rate
    return settings.min_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))
