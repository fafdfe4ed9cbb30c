"""Several draws in one pass: the same as one pass per draw, with each image decoded once."""

from typing import Any

import numpy as np
import pytest

from pipeline.shards import read as shard_reader
from pipeline.training.draws import EveryDraw, LastImage
from tests.conftest import Small


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_sample_comes_once_per_draw_its_draws_in_a_row(batch_size: int) -> None:
    sampler = EveryDraw(5, batch_size, draws=3)
    batches = list(sampler)
    assert len(sampler) == len(batches) == -(-15 // batch_size)
    places = [(place.epoch, place.row) for batch in batches for place in batch]
    assert places == [(draw, index) for index in range(5) for draw in range(3)]


def test_the_last_image_is_not_decoded_again(packed: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode_image = shard_reader.decode_image

    def count(data: bytes, *arguments: Any, **settings: Any) -> Any:
        decoded.append(len(data))
        return decode_image(data, *arguments, **settings)

    monkeypatch.setattr(shard_reader, "decode_image", count)
    reader = LastImage(packed.images)
    keys = packed.manifest.keys
    for key in (keys[0], keys[0], keys[0], keys[1], keys[1], keys[0]):
        np.testing.assert_array_equal(reader.read_image(key), packed.images.read_image(key))
    assert len(decoded) == 3 + 6
