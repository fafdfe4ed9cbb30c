"""Position embeddings of tokens in numpy, from a small table: for scoring without PyTorch (charm.onnx_scorer).

A grid's embeddings are those of its rows and of its columns, mixed: `axis_weights` says by which weights an axis of any
length is interpolated from the learnt grid, for charm.model.pos_embed, too.
"""

import itertools
from collections.abc import Callable, Mapping

import numpy as np

from charm.model.config import PosEmbedConfig
from charm.tokenization.tokens import Tokens

LEARNT, FREQUENCIES = "learnt", "frequencies"  # names of the tables


class PositionTable:
    """Looks up the position embedding of each token.

    Args:
        tables: `learnt`, float32 (g, g, D), the grid of a backbone, to be interpolated; or `frequencies`, float32
            (2, d), of rotary embeddings: radians per unit for the rows' and the columns' place, from -1 to 1.
        made: how learnt ones are resampled.

    Attributes:
        width: of an embedding; 2 * d for rotary ones, sines before cosines.

    Raises:
        ValueError: the tables are not as described.
    """

    def __init__(self, tables: Mapping[str, np.ndarray], made: PosEmbedConfig) -> None:
        name, num_axes = (FREQUENCIES, 2) if made.mode == "rotary" else (LEARNT, 3)
        found = tables.get(name)
        if found is None or found.dtype != np.float32 or found.ndim != num_axes:
            raise ValueError(f"a table of {list(tables)}: expected {name}, float32 of {num_axes} axes")
        self._table, self._made = found, made
        self.width = found.shape[-1] * (2 if made.mode == "rotary" else 1)
        self._taps: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def embed(self, tokens: Tokens, length: int) -> np.ndarray:
        """Returns the embeddings of the first `length` tokens, float32 (length, width); zeros where padding."""
        embedded = np.zeros((length, self.width), np.float32)
        mix = self._mix_rotary if self._made.mode == "rotary" else self._mix_learnt
        for scale, grid_hw in enumerate(tokens.pos_grids or tokens.grids):
            at = np.flatnonzero(tokens.patch_valid[:length] & (tokens.scale_id[:length] == scale))
            if len(at):
                y, x = tokens.pos_coord[at].T
                embedded[at] = mix(grid_hw, y, x)
        return embedded

    def _mix_learnt(self, grid_hw: tuple[int, int], y: np.ndarray, x: np.ndarray) -> np.ndarray:
        (rows, row_weights), (columns, column_weights) = (self._axis(length) for length in grid_hw)
        mixed = np.zeros((len(y), self.width), np.float32)
        for i, j in itertools.product(range(rows.shape[1]), range(columns.shape[1])):
            weights = row_weights[y, i] * column_weights[x, j]
            mixed += weights[:, None] * self._table[rows[y, i], columns[x, j]]
        return mixed

    def _axis(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        if length not in self._taps:
            weights = axis_weights(length, len(self._table), self._made.mode, self._made.antialias)
            self._taps[length] = axis_taps(weights)
        return self._taps[length]

    def _mix_rotary(self, grid_hw: tuple[int, int], y: np.ndarray, x: np.ndarray) -> np.ndarray:
        places = [(2 * at + 1) / length - 1 for length, at in zip(grid_hw, (y, x), strict=True)]
        angles = np.stack(places, axis=1) @ self._table
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def axis_weights(length: int, side: int, mode: str = "bilinear", antialias: bool = False) -> np.ndarray:
    """Returns the weights by which the rows (or columns) of a learnt grid are mixed; those of torch's `interpolate`.

    Args:
        length: tokens along the axis of the new grid.
        side: g, tokens along the axis of the learnt grid.
        mode: "bilinear", "bicubic", "nearest" or "bicubic_offset" (as if the new axis were 0.1 tokens longer); corner
            regions are aligned, not corner points.
        antialias: whether a shorter axis is averaged instead of sampled.

    Returns:
        float32 (length, g); each row sums to 1.
    """
    long, short = (10 * length + 1, 10 * side) if mode == "bicubic_offset" else (length, side)
    if long == short or mode == "nearest":
        return np.eye(side, dtype=np.float32)[np.arange(length) * side // length]
    # Distances in whole numbers: where a weight is zero it is exactly zero, and not a tap of its own.
    edge = 2  # places beyond the learnt axis whose weights its ends take over
    at = np.arange(-edge, side + edge)
    distances = (2 * at + 1) * long - (2 * np.arange(length)[:, None] + 1) * short
    reach = max(long, short) if antialias else long
    weights = _KERNELS[mode](np.abs(distances) / (2 * reach), antialias)
    if antialias:  # as torch does, which cuts the kernel off instead
        inside = weights[:, edge:-edge]
        inside = inside / inside.sum(axis=1, keepdims=True)
    else:
        inside = weights[:, edge:-edge].copy()
        inside[:, 0] += weights[:, :edge].sum(axis=1)
        inside[:, -1] += weights[:, -edge:].sum(axis=1)
    found: np.ndarray = inside.astype(np.float32)
    return found


def axis_taps(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the entries of axis weights, float (T, g), that are not zero.

    Returns:
        int64 and float (T, K): places along the learnt axis and their weights, K as few as hold every row (2 for
        bilinear, 4 for bicubic, without antialiasing).
    """
    count = int((weights != 0).sum(axis=1).max())
    places = np.sort(np.argsort(-np.abs(weights), axis=1, kind="stable")[:, :count], axis=1)
    return places, np.take_along_axis(weights, places, axis=1)


def _cubic(distance: np.ndarray, antialias: bool) -> np.ndarray:
    """Computes Keys' cubic kernel (1981); with antialiasing torch has another constant, that of Pillow."""
    a, x = (-0.5 if antialias else -0.75), distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


_KERNELS: dict[str, Callable[[np.ndarray, bool], np.ndarray]] = {
    "bilinear": lambda distance, antialias: np.maximum(0, 1 - distance),
    "bicubic": _cubic,
    "bicubic_offset": _cubic,
}
