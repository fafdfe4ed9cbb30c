"""Position embeddings of a backbone for every grid that the pictures have: prepared once, mixed on the device.

axes.safetensors holds

    learnt       float32 (g, g, D), the backbone's grid
    axis.<n>     float32 (n, g), the interpolation weights of an axis of n tokens (charm.pos_embed.axis_weights)

for every height and width of a grid; of a rotary backbone (DINOv3), instead,

    axis.<n>     float32 (2, n, 2 * d), its share of the rows and of the columns (charm.model.CharmViT.rotary_axis)

and axes.json its sha256 and how it was made. Whole tables, one per grid, would hold the same in 208 MB instead of
0.25 MB (built-in data set, width 64). A picture is not sent its embeddings (1.6 MB at 1024 tokens of width 384) but two
row numbers per token.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from charm.pos_embed import axis_taps, axis_weights, mix_pos_embed
from charm.tokens import Tokens
from pipeline.errors import UserError, remake
from pipeline.store import file_sha256, read_record, write_record, write_whole
from pipeline.tokenizers import Tokenizer


def list_axes(tokenizer: Tokenizer, image_hws: Iterable[tuple[int, int]]) -> list[int]:
    """Every height and width, in tokens, of a grid of these pictures at some scale."""
    return sorted({side for image_hw in set(image_hws) for grid in tokenizer.grids(image_hw) for side in grid} - {0})


def write_axes(folder: Path, learnt: Tensor, axes: list[int], mode: str, antialias: bool) -> None:
    """Writes axes.safetensors, then axes.json; `learnt` is the backbone's grid, (g, g, D)."""
    tensors = {f"axis.{length}": axis_weights(length, len(learnt), mode, antialias) for length in axes}
    _write(folder, {"learnt": learnt.float(), **tensors}, {"mode": mode, "antialias": antialias})


def write_rotary_axes(folder: Path, axes: dict[int, tuple[Tensor, Tensor]]) -> None:
    """The same for a rotary backbone, from CharmViT.rotary_axis of each length."""
    tensors = {f"axis.{length}": torch.stack(rows_columns).float() for length, rows_columns in axes.items()}
    _write(folder, tensors, {"mode": "rotary"})


def _write(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with write_whole(folder / "axes.safetensors") as file:
        file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    write_record(folder / "axes.json", facts | {"sha256": file_sha256(folder / "axes.safetensors")})


class PosEmbeds:
    """The position embeddings of one backbone: rows for a picture's tokens, embeddings for rows.

    Args:
        folder: that `write_axes` or `write_rotary_axes` wrote.

    Raises:
        UserError: missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "axes.json"
        try:
            facts = read_record(path)
            path = folder / "axes.safetensors"
            if file_sha256(path) != facts["sha256"]:
                raise ValueError("it is not the file that axes.json describes")
            tensors = load_file(path)
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
            raise UserError(f"{path}: missing or damaged ({error}); {remake(path)}") from error
        learnt = tensors.pop("learnt", None)
        self._first: dict[int, int] = {}
        start = 0
        for name, axis in tensors.items():
            self._first[int(name.removeprefix("axis."))] = start
            start += axis.shape[-2]
        stacked = torch.cat(list(tensors.values()), dim=-2)
        self._rotary = learnt is None
        # What `gather` mixes, on the device: rows and columns if rotary, else the learnt grid, positions and weights.
        self._parts: tuple[Tensor, ...] = tuple(stacked) if learnt is None else (learnt, *axis_taps(stacked))

    def to(self, device: torch.device) -> "PosEmbeds":
        """Moves what `gather` reads; returns itself."""
        self._parts = tuple(part.to(device) for part in self._parts)
        return self

    @property
    def device(self) -> torch.device:
        return self._parts[0].device

    def rows(self, tokens: Tokens) -> np.ndarray:
        """int32 (L, 2): for each token, where the weights of its row and of its column are; 0 where padding."""
        first = np.zeros((len(tokens.grids), 2), np.int32)
        for scale, grid in enumerate(tokens.grids):
            if grid == (0, 0):
                continue
            missing = [side for side in grid if side not in self._first]
            if missing:
                raise UserError(f"{self.folder} has no axis of {missing[0]} tokens for the grid {grid}: run dvc repro")
            first[scale] = [self._first[side] for side in grid]
        return np.where(tokens.patch_valid[:, None], first[tokens.scale_id] + tokens.patch_coord, 0).astype(np.int32)

    def gather(self, rows: Tensor, trained: Tensor | None = None) -> Tensor:
        """Position embeddings on the device that `to` chose.

        Args:
            rows: integer (..., 2), of `rows`.
            trained: float (g, g, D), mixed instead of the learnt grid: what fine-tuning has made of it.

        Returns:
            float32 (..., D), differentiable with respect to `trained`; (..., 2 * d) for a rotary backbone.
        """
        y, x = rows.to(self.device, non_blocking=True).long().unbind(-1)
        if self._rotary:
            for_rows, for_columns = self._parts
            return for_rows[y] + for_columns[x]
        learnt, positions, weights = self._parts
        return mix_pos_embed(
            learnt if trained is None else trained, (positions[y], weights[y]), (positions[x], weights[x])
        )
