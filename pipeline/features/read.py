"""Reads the column of features as one array."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from charm.model.frozen import list_heads
from charm.runtime.errors import UserError
from pipeline.shards.columns import ColumnReader, read_column_facts
from pipeline.shards.read import ShardReader


@dataclass(frozen=True)
class Features:
    """The features of some images.

    Attributes:
        layers: of the backbone, ascending.
        parts: that tokens were pooled to (charm.model.pooling.PARTS).
        values: floating (N, layers, parts, D), averaged over draws: a linear head scores their mean by its mean score.
    """

    layers: list[int]
    parts: list[str]
    values: np.ndarray

    @property
    def choices(self) -> list[tuple[int, str]]:
        """The layers and kinds of heads that there are."""
        return [(layer, head) for layer in self.layers for head in list_heads(self.parts)]

    def of(self, layer: int, head: str) -> np.ndarray:
        """Returns what a kind of head reads at a layer, float64 (N, F)."""
        parts = [self.parts.index(part) for part in head.split("_")]
        found: np.ndarray = self.values[:, self.layers.index(layer), parts].astype(np.float64)
        return found.reshape(len(found), -1)


def read_features(folder: Path, images: ShardReader, keys: list[str]) -> Features:
    """Reads the features of some images, by their keys.

    Raises:
        UserError: they were made from other images, are damaged, or were not made.
    """
    facts = read_column_facts(folder)
    if not facts.get("layers"):
        raise UserError(f"{folder} is empty: run dvc repro, which makes features with train.mode: head")
    column = ColumnReader(folder, images, "features")
    first = column.read_features(keys[0])
    values = np.empty((len(keys), *first.shape[1:]), np.float16)
    for row, key in enumerate(keys):
        values[row] = column.read_features(key).mean(0, dtype=np.float32)
    return Features(facts["layers"], facts["parts"], values)
