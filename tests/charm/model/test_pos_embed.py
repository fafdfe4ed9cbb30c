"""Position embeddings: the same numbers as timm's and torch's, on any grid, with any prefix."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed

from charm.model.pos_embed import gather_pos_embed, resample_pos_embed

GRIDS = [(4, 4), (3, 5), (9, 2), (1, 1), (1, 7), (20, 13)]


def learnt(tokens: int, embed_dim: int = 8) -> torch.Tensor:
    return torch.randn(1, tokens, embed_dim, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grid_hw", GRIDS, ids=str)
def test_bicubic_with_antialias_is_timms(grid_hw: tuple[int, int], prefix: int) -> None:
    table = learnt(prefix + 49)
    found = resample_pos_embed(table, grid_hw, "bicubic", antialias=True, num_prefix_tokens=prefix)
    expected = resample_abs_pos_embed(table, list(grid_hw), num_prefix_tokens=prefix)[0, prefix:]
    assert found.shape == (*grid_hw, 8)
    torch.testing.assert_close(found.reshape(-1, 8), expected, rtol=0, atol=4e-6)  # theirs are weights in float32


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid_hw", GRIDS, ids=str)
def test_bilinear_is_torchs(grid_hw: tuple[int, int], antialias: bool) -> None:
    table = learnt(1 + 49)
    planes = table[0, 1:].T.reshape(1, 8, 7, 7)
    expected = F.interpolate(planes, grid_hw, mode="bilinear", align_corners=False, antialias=antialias)[0]
    found = resample_pos_embed(table, grid_hw, antialias=antialias)
    torch.testing.assert_close(found.permute(2, 0, 1), expected)


def test_height_comes_first() -> None:
    ramp = torch.arange(4.0).repeat_interleave(4)[None, :, None]  # 0 in the top row, 3 in the bottom one
    taller = resample_pos_embed(ramp, (8, 2), num_prefix_tokens=0)
    assert taller[:, 0, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    torch.testing.assert_close(taller[:, 0], taller[:, 1])


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_own_grid_is_a_copy(mode: str) -> None:
    table = learnt(1 + 49)
    found = resample_pos_embed(table, (7, 7), mode)
    assert torch.equal(found.reshape(49, 8), table[0, 1:])
    found.zero_()
    assert table[0, 1:].abs().min() > 0


@pytest.mark.parametrize(
    ("tokens", "side", "prefix"),
    [
        pytest.param(1 + 196, 14, 1, id="CLS, 224 pixels in patches of 16"),
        pytest.param(5 + 1369, 37, 5, id="CLS and 4 registers, DINOv2"),
        pytest.param(1369, 37, 0, id="registers without positions"),
        pytest.param(1 + 1369, 37, 1, id="DINOv2"),
    ],
)
def test_prefix_is_what_a_square_leaves_over(tokens: int, side: int, prefix: int) -> None:
    table = learnt(tokens)
    assert torch.equal(resample_pos_embed(table, (side, side)).reshape(-1, 8), table[0, prefix:])
    other = resample_pos_embed(table, (side + 1, side))
    assert torch.equal(other, resample_pos_embed(table, (side + 1, side), num_prefix_tokens=prefix))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    assert resample_pos_embed(learnt(1 + 49).to(dtype), (3, 5)).dtype == dtype


@pytest.mark.parametrize(
    ("shape", "mode", "prefix", "message"),
    [
        pytest.param((1, 50, 8), "area", None, "mode='area': expected one of bilinear, bicubic", id="mode"),
        pytest.param((50, 8), "bilinear", None, r"\(50, 8\): expected \(1, prefix", id="two axes"),
        pytest.param((2, 50, 8), "bilinear", None, r"\(2, 50, 8\): expected \(1, prefix", id="a batch"),
        pytest.param((1, 50, 8), "bilinear", 2, "50 tokens: without 2 prefix tokens they are not", id="wrong prefix"),
    ],
)
def test_bad_input(shape: tuple[int, ...], mode: str, prefix: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resample_pos_embed(torch.zeros(shape), (3, 5), mode, num_prefix_tokens=prefix)


def table(h: int, w: int, first: int) -> torch.Tensor:
    """Rows that tell where they come from: `first`, `first` + 1, ... in raster order, in each of 3 channels."""
    return torch.arange(first, first + h * w).reshape(h, w, 1).expand(h, w, 3).float()


@pytest.mark.parametrize(
    "tables",
    [
        pytest.param([table(2, 3, 100), table(4, 6, 200)], id="two scales"),
        pytest.param([table(4, 6, 100), table(6, 9, 200), table(8, 12, 300)], id="three scales"),
        pytest.param([table(0, 0, 0), table(5, 2, 200)], id="single-scale of two"),
        pytest.param([table(0, 0, 0), table(0, 0, 0), table(5, 2, 200)], id="single-scale of three"),
        pytest.param([table(1, 1, 100), table(1, 7, 200)], id="one row"),
    ],
)
@pytest.mark.parametrize("dtypes", [(torch.int32, torch.uint8), (torch.int64, torch.int64)], ids=str)
def test_gather_takes_each_token_from_its_own_table(
    tables: list[torch.Tensor], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    rows = [(s, y, x) for s, t in enumerate(tables) for y in range(t.shape[0]) for x in range(t.shape[1])]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    scale_id = torch.tensor([rows[i][0] for i in order], dtype=dtypes[1])
    coord = torch.tensor([rows[i][1:] for i in order], dtype=dtypes[0])
    expected = torch.stack([tables[s][y, x] for s, y, x in (rows[i] for i in order)])
    assert torch.equal(gather_pos_embed(tables, coord, scale_id), expected)


def test_padding_of_a_single_scale_image_finds_some_row() -> None:
    tables = [table(0, 0, 0), table(2, 2, 200)]
    coord, scale_id = torch.tensor([[1, 1], [0, 0]]), torch.tensor([1, 0])  # the second is padding
    found = gather_pos_embed(tables, coord, scale_id)
    assert found[0].tolist() == [203, 203, 203]
    assert torch.isfinite(found).all()
