"""Several draws in one pass: the same as one pass per draw, with each image decoded once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.pos_embeds.axes import PosEmbeds, list_axes, write_axes
from pipeline.shards import read as shard_reader
from pipeline.training.loader import TokenDataset
from pipeline.training.sampler import EveryDraw, SampleRef
from tests.conftest import Small


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_sample_comes_once_per_draw_its_draws_in_a_row(batch_size: int) -> None:
    sampler = EveryDraw(5, batch_size, draws=3)
    batches = list(sampler)
    assert len(sampler) == len(batches) == -(-15 // batch_size)
    places = [(place.epoch, place.row) for batch in batches for place in batch]
    assert places == [(draw, index) for index in range(5) for draw in range(3)]


def test_the_last_image_is_not_decoded_again(packed: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode_image = shard_reader.decode_image

    def count(data: bytes, *arguments: Any, **settings: Any) -> Any:
        decoded.append(len(data))
        return decode_image(data, *arguments, **settings)

    monkeypatch.setattr(shard_reader, "decode_image", count)
    tokenizer = CharmTokenizer(max_seq_len=32, budget="share")
    axes = list_axes(tokenizer, packed.manifest.image_hws)
    write_axes(tmp_path, "charm_demo", torch.randn(4, 4, 3), axes, "bilinear", False)
    given = packed.manifest, packed.images, None, tokenizer, PosEmbeds(tmp_path, "charm_demo"), 0
    dataset, rows = TokenDataset(*given, by_pixels=True), (0, 0, 0, 1, 1, 0)
    found = [dataset[SampleRef(draw, row)] for draw, row in enumerate(rows)]
    assert len(decoded) == 3
    for draw, (row, sample) in enumerate(zip(rows, found, strict=True)):
        alone = TokenDataset(*given, by_pixels=True)[SampleRef(draw, row)]
        assert isinstance(sample, dict)
        assert isinstance(alone, dict)
        np.testing.assert_array_equal(sample["patches"], alone["patches"])
