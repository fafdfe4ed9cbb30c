"""Which samples make up each batch of an epoch."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from charm.draws import draw_order

Place = tuple[int, int]  # (epoch, index in the manifest)


class EpochSampler(Sampler[list[Place]]):
    """Batches of places for one epoch at a time; every sample once, the last batch may be smaller.

    Attributes:
        epoch: set it before each pass.
    """

    def __init__(self, size: int, batch_size: int, seed: int, shuffle: bool) -> None:
        self._size, self._batch_size, self._seed, self._shuffle = size, batch_size, seed, shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self._size // self._batch_size)

    def __iter__(self) -> Iterator[list[Place]]:
        order = np.arange(self._size)
        if self._shuffle:
            order = draw_order(self._seed, self.epoch, "", "shuffle", self._size)
        for start in range(0, self._size, self._batch_size):
            yield [(self.epoch, int(index)) for index in order[start : start + self._batch_size]]
