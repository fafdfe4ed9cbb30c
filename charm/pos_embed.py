"""Position embeddings for any grid, from the square grid that a backbone learnt (Charm, section 3.2.3)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MODES = ("bilinear", "bicubic")


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
        grid_hw: tokens, (height, width), of the new grid.
        mode: "bilinear" (the paper) or "bicubic" (timm's choice).
        antialias: whether a smaller grid is averaged instead of sampled.
        num_prefix_tokens: how many tokens to leave out; None takes what is left over from the largest square.

    Returns:
        (h, w, D), dtype and device of `pos_embed`, without the prefix. A copy of the learnt grid where the size is its
        own.

    Raises:
        ValueError: not a square grid, or an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}")
    if pos_embed.ndim != 3 or pos_embed.shape[0] != 1:
        raise ValueError(f"pos_embed is {tuple(pos_embed.shape)}: expected (1, prefix + g * g, D)")
    total = pos_embed.shape[1]
    side = math.isqrt(total if num_prefix_tokens is None else total - num_prefix_tokens)
    prefix = total - side * side if num_prefix_tokens is None else num_prefix_tokens
    if prefix + side * side != total:
        raise ValueError(f"pos_embed has {total} tokens: without {prefix} prefix tokens they are not a square grid")
    learnt = pos_embed[0, prefix:].reshape(side, side, -1)
    if tuple(grid_hw) == (side, side):
        return learnt.clone()
    channels_first = learnt.permute(2, 0, 1)[None].float()
    resampled = F.interpolate(channels_first, size=tuple(grid_hw), mode=mode, antialias=antialias)
    return resampled[0].permute(1, 2, 0).to(pos_embed.dtype).contiguous()


def gather_pos_embed(tables: Sequence[Tensor], patch_coord: Tensor, scale_id: Tensor) -> Tensor:
    """The position embedding of each token of one picture.

    Args:
        tables: one (h, w, D) per scale, coarsest first, resampled to the picture's grids; any for a scale that the
            picture does not use.
        patch_coord: integer (L, 2), (y, x) on the grid of the token's scale.
        scale_id: integer (L,).

    Returns:
        (L, D); that of (0, 0) at the coarsest scale where the token is padding.
    """
    embed_dim = tables[0].shape[-1]
    rows = torch.cat([table.reshape(-1, embed_dim) for table in tables])
    widths = torch.tensor([table.shape[1] for table in tables], device=rows.device)
    sizes = torch.tensor([table.shape[0] * table.shape[1] for table in tables], device=rows.device)
    first = sizes.cumsum(0) - sizes
    scale = scale_id.long()
    y, x = patch_coord.long().unbind(-1)
    # A single-scale picture has an empty coarsest table; its padding points past the end and takes the last row.
    return rows[(first[scale] + y * widths[scale] + x).clamp(max=len(rows) - 1)]
