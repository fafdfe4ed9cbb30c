"""The parts of an optimizer step: gradients over micro-batches and ranks, their clipping, the change of the model."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.training.loader import Batch
from pipeline.training.state import TrainState


class TimedIterator(Iterator[Batch]):
    """Batches, and for how long they were waited for.

    Attributes:
        seconds: so far.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __next__(self) -> Batch:
        asked = time.monotonic()
        batch = next(self._batches)
        self.seconds += time.monotonic() - asked
        return batch


def accumulate_gradients(
    progress: TrainState,
    parallel: torch.nn.Module,
    batches: Iterator[Batch],
    count: int,
    batch_loss: Callable[[Batch], Tensor],
) -> float:
    """Adds up the gradients of so many micro-batches.

    Args:
        progress: gets the gradients.
        parallel: the model, or what sends its gradients to the other ranks; once per step, with the last micro-batch.
        batches: the step's are next.
        count: of this rank's micro-batches.
        batch_loss: a micro-batch's part of the mean over the whole step.

    Returns:
        this rank's part of the step's loss.
    """
    losses = []
    for number in range(1, count + 1):
        batch = next(batches)
        with contextlib.ExitStack() as stack:
            factor = 1
            if isinstance(parallel, DistributedDataParallel):
                factor = torch.distributed.get_world_size()  # it takes the mean over ranks of what is to be summed
                if number < count:
                    stack.enter_context(parallel.no_sync())
            loss = batch_loss(batch)
            progress.scaler.scale(loss * factor).backward()
        losses.append(loss.detach())
    return float(torch.stack(losses).sum())


def clip_gradients(progress: TrainState, clip_norm: float) -> float:
    """Scales the whole gradient to this norm if it is longer (0: leaves it); returns its norm before."""
    progress.scaler.unscale_(progress.optimizer)
    parameters = [parameter for group in progress.optimizer.param_groups for parameter in group["params"]]
    return float(torch.nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf))


def is_finite_step(progress: TrainState, loss: float, norm: float) -> bool:
    """Tells whether loss and gradient are finite, or float16 overflowed and the scaler skips the step."""
    overflowed = progress.scaler.is_enabled() and progress.scaler.get_scale() > 1
    return math.isfinite(loss) and (math.isfinite(norm) or overflowed)


def optimizer_step(progress: TrainState, loss: float) -> None:
    """Takes the optimizer's step along the gradients and clears them."""
    progress.scaler.step(progress.optimizer)
    progress.scaler.update()
    progress.optimizer.zero_grad(set_to_none=True)
    if progress.averaged is not None:
        progress.averaged.update_parameters(progress.model)
    progress.step += 1
    progress.losses.append(loss)
