"""Position embeddings of a backbone for every grid that the images have: prepared once, mixed on the device.

axes.safetensors holds

    learnt       float32 (g, g, D), the backbone's grid
    axis.<n>     float32 (n, g), the interpolation weights of an axis of n tokens (charm.model.pos_embed.axis_weights)

for every height and width of a grid; of a backbone without a learnt grid, instead,

    axis.<n>     float32 (2, n, w), its share of the rows and of the columns (charm.model.protocol.Model.fixed_axis);
                 w = 0, and so no number at all, where no positions are added (Swin)

and axes.json its sha256 and how it was made. Whole tables, one per grid, would hold the same in 208 MB instead of
0.25 MB (built-in data set, width 64). The device is sent two row numbers per token of an image, and not its embeddings
(1.6 MB at 1024 tokens of width 384).

area_seen.json beside them says how much of the images a model gets to see, known from their sizes: `median` and
`lowest`, each native, downscaled and dropped as fractions of an image's area; null for inputs that resize every image
first, of which nothing is native.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from charm.inputs.protocol import Input
from charm.model.axes import PosEmbedAxes
from charm.model.pos_embed import axis_weights
from charm.runtime.disk import atomic_write, file_sha256
from charm.runtime.errors import UserError
from charm.tokenization.budget import AreaSeen
from charm.tokenization.tokens import Tokens
from pipeline.work.store import damaged, read_record, write_record

_AREA = "area_seen.json"


def list_axes(tokenizer: Input, image_hws: Iterable[tuple[int, int]]) -> list[int]:
    """Lists every height and width, in tokens, of the grids of these images at all scales."""
    return sorted({side for image_hw in set(image_hws) for grid in tokenizer.grids(image_hw) for side in grid} - {0})


def write_axes(folder: Path, backbone: str, learnt: Tensor, axes: list[int], mode: str, antialias: bool) -> None:
    """Writes axes.safetensors, then axes.json; `learnt` is the grid of the backbone of this name, (g, g, D)."""
    tensors = {f"axis.{length}": axis_weights(length, len(learnt), mode, antialias) for length in axes}
    _write(folder, {"learnt": learnt.float(), **tensors}, {"backbone": backbone, "mode": mode, "antialias": antialias})


def write_fixed_axes(folder: Path, backbone: str, axes: dict[int, Tensor], mode: str) -> None:
    """Writes axes.safetensors, then axes.json for a backbone without a learnt grid, from its `fixed_axis` by length."""
    tensors = {f"axis.{length}": axis.float() for length, axis in axes.items()}
    _write(folder, tensors, {"backbone": backbone, "mode": mode})


def _write(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "axes.safetensors") as file:
        file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    write_record(folder / "axes.json", facts | {"sha256": file_sha256(folder / "axes.safetensors")})


class PosEmbeds(PosEmbedAxes):
    """The position embeddings of a backbone, from their folder; UserError if it is damaged, or of another one."""

    def __init__(self, folder: Path, backbone: str) -> None:
        self.folder = folder
        path = folder / "axes.json"
        try:
            self.facts = read_record(path)
            path = folder / "axes.safetensors"
            if file_sha256(path) != self.facts["sha256"]:
                raise ValueError("it is not the file that axes.json describes")
            tensors = load_file(path)
            found = self.facts["backbone"]
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
            raise damaged(path, error) from error
        if found != backbone:
            raise UserError(f"{folder} is of the backbone {found} and not of {backbone}; run dvc repro")
        learnt = tensors.pop("learnt", None)
        super().__init__({int(name.removeprefix("axis.")): axis for name, axis in tensors.items()}, learnt)

    def rows(self, tokens: Tokens) -> np.ndarray:
        try:
            return super().rows(tokens)
        except ValueError as error:
            raise UserError(f"{self.folder}: {error}; run dvc repro") from error


@dataclass(frozen=True)
class AreaSummary:
    """The area seen of many images, as packed."""

    # median, lowest: of the image in the middle and at the end when they are ordered by how much of them is seen, and
    # among equals by how much is native
    median: AreaSeen
    lowest: AreaSeen


def summarize_area(tokenizer: Input, image_hws: Iterable[tuple[int, int]]) -> AreaSummary | None:
    """Summarizes how much is seen of images of these sizes; None for inputs that resize them, or without images."""
    counts = Counter(image_hws)
    areas = [(area, count) for image_hw, count in counts.items() if (area := tokenizer.area_seen(image_hw)) is not None]
    if not areas:
        return None
    ordered = sorted(areas, key=lambda found: (-found[0].dropped, found[0].native))
    up_to, half = accumulate(count for _, count in ordered), counts.total() / 2
    median = next(area for (area, _), count in zip(ordered, up_to, strict=True) if count >= half)
    return AreaSummary(median, ordered[0][0])


def write_area(folder: Path, found: AreaSummary | None) -> None:
    """Writes area_seen.json."""
    names = ("median", "lowest")
    write_record(folder / _AREA, {name: found and getattr(found, name)._asdict() for name in names})


def read_area(folder: Path) -> AreaSummary | None:
    """Undoes `write_area`; raises UserError if the file is missing or damaged."""
    path = folder / _AREA
    try:
        facts = read_record(path)
        if facts["median"] is None:
            return None
        return AreaSummary(AreaSeen(**facts["median"]), AreaSeen(**facts["lowest"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise damaged(path, error) from error
