"""Position embeddings for any grid, from the square grid that a backbone learnt (Charm, section 3.2.3)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from charm.model import positions

MODES = ("bilinear", "bicubic", "nearest", "bicubic_offset")


def resample_pos_embed(
    pos_embed: Tensor,
    grid_hw: tuple[int, int],
    mode: str = "bilinear",
    antialias: bool = False,
    num_prefix_tokens: int | None = None,
) -> Tensor:
    """Interpolates learnt position embeddings to another grid, corner regions aligned (not corner points).

    Args:
        pos_embed: float (1, prefix + g * g, D), as timm's ViTs hold them; prefix tokens (CLS, registers) come first.
            The grid has to be square: 4 x 9 tokens cannot be told from 6 x 6.
        grid_hw: tokens, (height, width), of the new grid.
        mode: "bilinear" (the paper), "bicubic" (timm's choice), "nearest" (MUSIQ's hashing) or "bicubic_offset" (the
            published code's: bicubic for a grid that is 0.1 tokens longer, 2 to 5 % off).
        antialias: whether a smaller grid is averaged instead of sampled.
        num_prefix_tokens: how many tokens to leave out; None takes what is left over from the largest square.

    Returns:
        (h, w, D), dtype and device of `pos_embed`, without the prefix. A copy of the learnt grid where the size is its
        own.

    Raises:
        ValueError: not a square grid, or an unknown mode.

    >>> learnt = torch.zeros(1, 1 + 16 * 16, 384)  # a CLS token and a grid of 16 x 16
    >>> resample_pos_embed(learnt, grid_hw=(40, 30)).shape
    torch.Size([40, 30, 384])
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
    learnt = learnt_grid(pos_embed, num_prefix_tokens)
    side = len(learnt)
    if tuple(grid_hw) == (side, side) and mode != "bicubic_offset":
        return learnt.clone()
    rows, columns = (axis_weights(length, side, mode, antialias).to(learnt.device) for length in grid_hw)
    with torch.autocast(learnt.device.type, enabled=False):  # autocast would mix in half precision
        resampled = torch.einsum("hi,ijd,wj->hwd", rows, learnt.float(), columns)
    return resampled.to(pos_embed.dtype)


def learnt_grid(pos_embed: Tensor, num_prefix_tokens: int | None = None) -> Tensor:
    """Returns the square grid of position embeddings, (1, prefix + g * g, D) -> (g, g, D); see `resample_pos_embed`."""
    if pos_embed.ndim != 3 or pos_embed.shape[0] != 1:
        raise ValueError(f"pos_embed is {tuple(pos_embed.shape)}: expected (1, prefix + g * g, D)")
    total = pos_embed.shape[1]
    side = math.isqrt(total if num_prefix_tokens is None else total - num_prefix_tokens)
    prefix = total - side * side if num_prefix_tokens is None else num_prefix_tokens
    if prefix + side * side != total:
        raise ValueError(f"pos_embed has {total} tokens: without {prefix} prefix tokens they are not a square grid")
    return pos_embed[0, prefix:].reshape(side, side, -1)


def fit_additive(grid: Tensor) -> Tensor:
    """Returns the sum of a vector per row and a vector per column that is nearest to a grid, float (g, g, D).

    Factorized position embeddings (NaViT, Dehghani et al., 2023) from learnt ones, by least squares.

    >>> rows, columns = torch.randn(4, 1, 8), torch.randn(1, 4, 8)
    >>> bool(torch.allclose(fit_additive(rows + columns), rows + columns, atol=1e-5))
    True
    """
    return grid.mean(1, keepdim=True) + grid.mean(0, keepdim=True) - grid.mean((0, 1))


def gather_pos_embed(tables: Sequence[Tensor], patch_coord: Tensor, scale_id: Tensor) -> Tensor:
    """Looks up the position embedding of each token of one image.

    Args:
        tables: (h, w, D) per scale, coarsest first, resampled to the image's grids; any table for a scale that the
            image does not use.
        patch_coord: integer (L, 2), (y, x) on the grid of the token's scale.
        scale_id: integer (L,).

    Returns:
        (L, D); the first embedding of the first table where the token is padding.
    """
    embed_dim = tables[0].shape[-1]
    rows = torch.cat([table.reshape(-1, embed_dim) for table in tables])
    widths = torch.tensor([table.shape[1] for table in tables], device=rows.device)
    sizes = torch.tensor([table.shape[0] * table.shape[1] for table in tables], device=rows.device)
    first = sizes.cumsum(0) - sizes
    scale = scale_id.long()
    y, x = patch_coord.long().unbind(-1)
    # Not rows[index]: its backward adds in any order where there are two threads or more.
    return F.embedding(first[scale] + y * widths[scale] + x, rows)


def axis_weights(length: int, side: int, mode: str = "bilinear", antialias: bool = False) -> Tensor:
    """Returns charm.model.positions.axis_weights as a tensor, float32 (length, g).

    Interpolation is separable: a token's embedding is the learnt grid, summed with the weights of its row and of its
    column. A few numbers per row thus stand for whole tables, which would grow with the square of the grid.
    """
    return torch.from_numpy(positions.axis_weights(length, side, mode, antialias))


def mix_pos_embed(learnt: Tensor, y: tuple[Tensor, Tensor], x: tuple[Tensor, Tensor]) -> Tensor:
    """Mixes position embeddings, (..., D), of a learnt grid, float (g, g, D); differentiable with respect to that.

    The taps of each token's row and column (charm.model.positions.axis_taps) are positions, int64 (..., K), and
    weights, float (..., K). Equal to `resample_pos_embed` at that place, to rounding.
    """
    side, _, embed_dim = learnt.shape
    rows = learnt.reshape(side * side, embed_dim)
    mixed = torch.zeros((), dtype=learnt.dtype, device=learnt.device)
    for i in range(y[0].shape[-1]):
        for j in range(x[0].shape[-1]):
            weight = (y[1][..., i] * x[1][..., j]).unsqueeze(-1)
            mixed = mixed + weight * F.embedding(y[0][..., i] * side + x[0][..., j], rows)
    return mixed
