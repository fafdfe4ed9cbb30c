"""Which samples make up each optimizer step of an epoch, and which of them a process takes at a time.

A step's batch is chosen over all processes together: rank r takes each world_size-th of its samples, from r on, in
micro-batches. The samples of a step, and with their weights its loss, are therefore the same for any number of
processes and any micro-batch.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from charm.tokenization.draws import draw_order


class SampleRef(NamedTuple):
    """A sample of an epoch."""

    epoch: int  # of the draws
    row: int  # of the manifest
    # its share of the step's mean, 1 / samples of the step over all ranks. 0 for a sample that another rank has: it
    # keeps a rank in step for which a small batch has none.
    weight: float = 1.0
    step: int = 0  # of the epoch, for what all samples of a step are drawn alike


class EpochSampler(Sampler[list[SampleRef]]):
    """Micro-batches of places for one epoch at a time; every sample once, the last step may have fewer.

    Args:
        size: samples.
        batch_size: of a step, over all ranks.
        micro_batch: how many samples are taken at a time; None takes all of the step's. May be set before a pass.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        micro_batch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._size, self._batch_size, self._seed, self._shuffle = size, batch_size, seed, shuffle
        self.micro_batch = micro_batch or batch_size
        self._rank, self._world_size = rank, world_size
        self.epoch = self.first_step = 0  # set before each pass; steps before the first one are left out
        self.steps = -(-size // batch_size)

    @property
    def most_images(self) -> int:
        """Most samples that a micro-batch of this process has."""
        return min(self.micro_batch, -(-self._batch_size // self._world_size))

    def __len__(self) -> int:
        return sum(self.micro_batches(step) for step in range(self.first_step, self.steps))

    def micro_batches(self, step: int) -> int:
        """Returns how many micro-batches a step of the epoch has on this rank."""
        count = min(self._batch_size, self._size - step * self._batch_size)
        own = max(1, -(-(count - self._rank) // self._world_size))
        return -(-own // self.micro_batch)

    def step_rows(self, step: int) -> list[int]:
        """Returns the samples of a step of the epoch, over all ranks."""
        return self._of_step(self._order(), step)

    def __iter__(self) -> Iterator[list[SampleRef]]:
        order = self._order()
        for step in range(self.first_step, self.steps):
            chosen = self._of_step(order, step)
            weight = 1 / len(chosen)
            places = [SampleRef(self.epoch, row, weight, step) for row in chosen[self._rank :: self._world_size]]
            places = places or [SampleRef(self.epoch, chosen[0], 0.0, step)]
            for start in range(0, len(places), self.micro_batch):
                yield places[start : start + self.micro_batch]

    def _order(self) -> np.ndarray:
        return draw_order(self._seed, self.epoch, "", "shuffle", self._size) if self._shuffle else np.arange(self._size)

    def _of_step(self, order: np.ndarray, step: int) -> list[int]:
        return [int(row) for row in order[step * self._batch_size : (step + 1) * self._batch_size]]


class EveryDraw(EpochSampler):
    """Every sample `draws` times in a row, as in the epochs 0 to draws - 1; in order, in batches of batch_size."""

    def __init__(self, size: int, batch_size: int, draws: int) -> None:
        super().__init__(size * draws, batch_size, seed=0, shuffle=False)
        self._draws = draws

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for places in super().__iter__():
            yield [SampleRef(place.row % self._draws, place.row // self._draws, place.weight) for place in places]
