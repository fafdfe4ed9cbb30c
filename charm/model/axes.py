"""The position embeddings of a backbone on many grids at once, by the rows and columns of their tokens.

Interpolation is separable (charm.model.pos_embed.axis_weights), so a grid of any height and width is mixed from two
axes. A token then needs two row numbers instead of an embedding, and a batch of images of different sizes is one
lookup.
"""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor

from charm.model.pos_embed import mix_pos_embed
from charm.model.positions import axis_taps
from charm.tokenization.tokens import Tokens


class PosEmbedAxes:
    """Looks up the row numbers of an image's tokens, and position embeddings by row numbers.

    Args:
        axes: number of tokens n -> axis of that length: float32 (n, g), its interpolation weights; of a backbone
            without a learnt grid float32 (2, n, w), its share of the rows and of the columns
            (charm.model.protocol.Model.fixed_axis): rotary ones (DINOv3), or w = 0 where no positions are added.
        learnt: float32 (g, g, D), the backbone's grid; None if there is none.
    """

    def __init__(self, axes: Mapping[int, Tensor], learnt: Tensor | None) -> None:
        self._first: dict[int, int] = {}
        start = 0
        for length, axis in axes.items():
            self._first[length] = start
            start += axis.shape[-2]
        stacked = torch.cat(list(axes.values()), dim=-2)
        self._fixed = learnt is None
        # `gather` mixes these on the device: rows and columns if fixed, else the learnt grid, positions and weights.
        taps = () if learnt is None else map(torch.from_numpy, axis_taps(stacked.numpy()))
        self._parts: tuple[Tensor, ...] = tuple(stacked) if learnt is None else (learnt, *taps)

    def to(self, device: torch.device) -> Self:
        """Moves the tensors that `gather` reads to a device; returns the object itself."""
        self._parts = tuple(part.to(device) for part in self._parts)
        return self

    @property
    def device(self) -> torch.device:
        return self._parts[0].device

    def rows(self, tokens: Tokens) -> np.ndarray:
        """Returns int32 (L, 2): the number of the weights of each token's row and column; 0 where padding.

        Raises ValueError if a grid has an axis of a length that is not prepared.
        """
        grids = tokens.pos_grids or tokens.grids
        first = np.zeros((len(grids), 2), np.int32)
        for scale, grid in enumerate(grids):
            if grid == (0, 0):
                continue
            missing = [side for side in grid if side not in self._first]
            if missing:
                raise ValueError(f"no axis of {missing[0]} tokens for the grid {grid}")
            first[scale] = [self._first[side] for side in grid]
        at = first[tokens.scale_id] + tokens.pos_coord
        return np.where(tokens.patch_valid[:, None], at, 0).astype(np.int32)

    def gather(self, rows: Tensor, trained: Tensor | None = None) -> Tensor:
        """Returns the position embeddings of tokens, float32 (..., D), on the device that `to` chose; or (..., w).

        Their rows, integer (..., 2), are from the method `rows`. A fine-tuned grid, float (g, g, D), is mixed instead
        of the learnt one; the embeddings are differentiable with respect to it.
        """
        y, x = rows.to(self.device, non_blocking=True).long().unbind(-1)
        if self._fixed:
            for_rows, for_columns = self._parts
            return for_rows[y] + for_columns[x]
        learnt, positions, weights = self._parts
        return mix_pos_embed(
            learnt if trained is None else trained, (positions[y], weights[y]), (positions[x], weights[x])
        )
