"""Position embeddings of a backbone on every grid that the pictures have: made once, looked up on the device.

tables.safetensors holds one float32 (h, w, D) per grid, named "<h>x<w>"; tables.json its sha256 and how it was made. A
picture is not sent its embeddings (1.6 MB at 1024 tokens of width 384) but row numbers into the tables, which stay on
the device.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from charm.pos_embed import resample_pos_embed
from charm.tokenizer import Tokens
from pipeline.errors import UserError
from pipeline.store import file_sha256, write_json, write_whole
from pipeline.tokenizers import Tokenizer

Grid = tuple[int, int]


def list_grids(tokenizer: Tokenizer, image_hws: Iterable[tuple[int, int]]) -> list[Grid]:
    """Every grid of these pictures at every scale, upright and turned by 90 degrees."""
    grids = {grid for image_hw in set(image_hws) for grid in tokenizer.grids(image_hw) if grid != (0, 0)}
    return sorted(grids | {(w, h) for h, w in grids})


def write_tables(
    folder: Path, pos_embed: Tensor, num_prefix_tokens: int, grids: list[Grid], mode: str, antialias: bool
) -> None:
    """Writes tables.safetensors, `pos_embed`, (1, prefix + g * g, D), on each grid, then tables.json."""
    tables = {
        f"{h}x{w}": resample_pos_embed(pos_embed.float(), (h, w), mode, antialias, num_prefix_tokens) for h, w in grids
    }
    folder.mkdir(parents=True, exist_ok=True)
    with write_whole(folder / "tables.safetensors") as file:
        file.write(save(tables))
    digest = file_sha256(folder / "tables.safetensors")
    write_json(folder / "tables.json", {"mode": mode, "antialias": antialias, "sha256": digest})


class PosEmbedTables:
    """The tables of one backbone.

    Attributes:
        flat: float32 (sum of h * w over the grids, D); a token's embedding is one row.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._first: dict[Grid, int] = {}
        parts: list[Tensor] = []
        try:
            if (
                file_sha256(folder / "tables.safetensors")
                != json.loads((folder / "tables.json").read_bytes())["sha256"]
            ):
                raise ValueError("tables.safetensors is not the file that tables.json describes")
            with safe_open(folder / "tables.safetensors", framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (not a dict)
                    table = file.get_tensor(name)
                    self._first[(table.shape[0], table.shape[1])] = sum(len(part) for part in parts)
                    parts.append(table.reshape(-1, table.shape[-1]))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{folder}: position embeddings are missing or damaged ({error}); run dvc repro") from error
        self.flat = torch.cat(parts)

    def rows(self, tokens: Tokens) -> np.ndarray:
        """int32 (L,): the row of each token; 0 where padding."""
        first = np.zeros(len(tokens.grids), np.int32)
        widths = np.zeros(len(tokens.grids), np.int32)
        for scale, grid in enumerate(tokens.grids):
            if grid == (0, 0):
                continue
            if grid not in self._first:
                raise UserError(f"{self.folder} has no table for a grid of {grid}: run dvc repro")
            first[scale], widths[scale] = self._first[grid], grid[1]
        y, x = tokens.patch_coord.T.astype(np.int32)
        rows = first[tokens.scale_id] + y * widths[tokens.scale_id] + x
        return np.where(tokens.patch_valid, rows, 0).astype(np.int32)
