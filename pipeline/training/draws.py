"""Several draws of each image in one pass: it is read and decoded once, and tokenized once per draw."""

from collections.abc import Iterator

import numpy as np

from pipeline.shards.read import ShardReader
from pipeline.training.sampler import EpochSampler, SampleRef


class EveryDraw(EpochSampler):
    """Every sample `draws` times in a row, as in the epochs 0 to draws - 1; in order, in batches of batch_size."""

    def __init__(self, size: int, batch_size: int, draws: int) -> None:
        super().__init__(size * draws, batch_size, seed=0, shuffle=False)
        self._draws = draws

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for places in super().__iter__():
            yield [SampleRef(place.row % self._draws, place.row // self._draws, place.weight) for place in places]


class LastImage(ShardReader):
    """A reader that keeps the image that it read last, for those who ask for it several times in a row.

    Args:
        reader: whose index it takes over.
    """

    def __init__(self, reader: ShardReader) -> None:
        vars(self).update(vars(reader))
        self._last: tuple[str, np.ndarray] | None = None

    def read_image(self, key: str) -> np.ndarray:
        if self._last is None or self._last[0] != key:
            self._last = key, super().read_image(key)
        return self._last[1]
