"""Rows and columns of position embeddings stand for whole grids."""

import numpy as np
import pytest
import torch

from charm.model.axes import PosEmbedAxes
from charm.model.pos_embed import axis_weights, gather_pos_embed, resample_pos_embed
from charm.tokenization.tokenizer import CharmTokenizer

SIDE = 6


@pytest.fixture
def learnt() -> torch.Tensor:
    return torch.randn(SIDE, SIDE, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])  # some of bicubic's weights are negative
def test_a_batch_of_two_sizes_is_one_lookup(learnt: torch.Tensor, mode: str, antialias: bool) -> None:
    tokenizer = CharmTokenizer(max_seq_len=60)
    tokens = [tokenizer(np.zeros((*size, 3), np.uint8)) for size in ((140, 210), (98, 98))]
    sides = {side for one in tokens for grid in one.grids for side in grid} - {0}
    axes = PosEmbedAxes({side: axis_weights(side, SIDE, mode, antialias) for side in sides}, learnt)
    found = axes.gather(torch.from_numpy(np.stack([axes.rows(one) for one in tokens])))
    pos_embed = learnt.reshape(1, SIDE * SIDE, 8)
    for one, embedded in zip(tokens, found, strict=True):
        tables = [
            resample_pos_embed(pos_embed, grid, mode, antialias) if grid != (0, 0) else torch.zeros(0, 0, 8)
            for grid in one.grids
        ]
        valid = torch.from_numpy(one.patch_valid)
        coord, scale = torch.from_numpy(one.patch_coord), torch.from_numpy(one.scale_id)
        expected = gather_pos_embed(tables, coord[valid], scale[valid])
        torch.testing.assert_close(embedded[valid], expected, atol=1e-6, rtol=0)


def test_a_grid_of_another_size_is_refused(learnt: torch.Tensor) -> None:
    axes = PosEmbedAxes({4: axis_weights(4, SIDE)}, learnt)
    tokens = CharmTokenizer(max_seq_len=60)(np.zeros((56, 70, 3), np.uint8))
    with pytest.raises(ValueError, match=r"no axis of 5 tokens for the grid \(4, 5\)"):
        axes.rows(tokens)


def test_rotary_shares_are_added() -> None:
    shares = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 4)
    found = PosEmbedAxes({3: shares}, None).gather(torch.tensor([[2, 1]]))
    torch.testing.assert_close(found, (shares[0, 2] + shares[1, 1])[None])


def test_a_trained_grid_takes_the_place_of_the_learnt_one(learnt: torch.Tensor) -> None:
    axes = PosEmbedAxes({SIDE: axis_weights(SIDE, SIDE)}, torch.zeros_like(learnt))
    torch.testing.assert_close(axes.gather(torch.tensor([[1, 2]]), learnt)[0], learnt[1, 2])
