"""AdamW over the parts of a model, its learning rate at each step, and its state as named tensors."""

import math

import torch
from torch import Tensor

from charm.model.protocol import Model
from pipeline.settings.params import TrainParams


def build_optimizer(model: Model, settings: TrainParams) -> torch.optim.AdamW:
    """Builds AdamW over the trained parameters, in groups of one decay and one share of the learning rate.

    Weight decay pulls at the weights of linear layers only, as in the fine-tuning recipes of ViTs (BEiT, MAE, DINOv2):
    biases, norms, tokens and embeddings are left alone. With layer_decay below 1 a layer learns at that power of its
    distance from the last one (`Model.layer_of`). The few numbers of a learnt resizer have a rate of their own.

    Returns:
        its groups have, besides AdamW's keys, "share": of the scheduled rate.
    """
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = name.endswith(".weight") and parameter.ndim > 1
            share = settings.layer_decay ** (model.num_layers - 1 - model.layer_of(name))
            if name.startswith("resizer."):
                share = settings.resizer_rate
            groups.setdefault((decays, share), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "share": share, "weight_decay": settings.weight_decay if decays else 0.0}
            for (decays, share), parameters in groups.items()
        ],
        lr=settings.learning_rate,
        fused=True,
    )


def scheduled_rate(settings: TrainParams, step: int, steps_per_epoch: int) -> float:
    """Returns the rate of a step: linear warm-up, then a cosine from learning_rate to min_learning_rate.

    Steps are counted from 0 over all epochs; without a warm-up the first one has the full rate.
    """
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, settings.epochs * steps_per_epoch - 1 - warmup)
    span = settings.learning_rate - settings.min_learning_rate
    return settings.min_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives each group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimizer's state under flat names, `<parameter index>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undoes `optimizer_tensors`; the parameter groups stay as they were built."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, field = name.split(".", 1)
        state.setdefault(int(index), {})[field] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
