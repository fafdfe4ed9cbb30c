"""The parts of an optimizer step: gradients over micro-batches and ranks, their clipping, the change of the model."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from charm.runtime.errors import UserError
from pipeline.training.loader import Batch
from pipeline.training.sampler import EpochSampler
from pipeline.training.state import TrainState


class Pace(Iterator[Batch]):
    """Passes batches on, and measures how fast the steps go that are made of them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._images = 0
        self._began = self._first_ended = time.monotonic()
        self.waited = 0.0  # seconds, for batches
        self.steps = -1  # since the first one, which is left out: it warms caches and compiles

    def __next__(self) -> Batch:
        asked = time.monotonic()
        batch = next(self._batches)
        self.waited += time.monotonic() - asked
        self._images += len(batch.keys)
        return batch

    def end_step(self) -> None:
        self.steps += 1
        if not self.steps:
            self._first_ended, self._images = time.monotonic(), 0

    @property
    def step_seconds(self) -> float:
        """Seconds of a step, on average; 0 before the second one."""
        return (time.monotonic() - self._first_ended) / self.steps if self.steps > 0 else 0.0

    def describe(self) -> str:
        """Says how many images this process takes per second, and what its time goes into."""
        now = time.monotonic()
        data = round(100 * self.waited / max(now - self._began, 1e-9))
        images = self._images / max(now - self._first_ended, 1e-9)
        rate = [f"{images:.3g} images/s"] if self.steps > 0 else []
        return ", ".join([*rate, f"data {data} %, model {100 - data} %"])


@contextlib.contextmanager
def explaining_memory(sampler: EpochSampler) -> Iterator[None]:
    """Says in one UserError what to do where a GPU has no memory left for the batches of a sampler."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        images = sampler.most_images
        smaller = f"hardware.micro_batch: {images // 2}" if images > 1 else "a smaller max_seq_len"
        raise UserError(
            f"the GPU has no memory left at {images} images at a time: try {smaller}, hardware.precision: bfloat16, or "
            "hardware.grad_checkpointing: true"
        ) from error


def accumulate_gradients(
    progress: TrainState,
    parallel: torch.nn.Module,
    batches: Iterator[Batch],
    count: int,
    batch_loss: Callable[[Batch], Tensor],
) -> float:
    """Adds up the gradients of so many of this rank's micro-batches; returns its part of the step's loss.

    Args:
        parallel: the model, or what sends its gradients to the other ranks; once per step, with the last micro-batch.
        batch_loss: a micro-batch's part of the mean over the whole step.
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
