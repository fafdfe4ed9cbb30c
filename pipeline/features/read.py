"""Reads the column of features as one array."""

from pathlib import Path

import numpy as np

from charm.model.solving import Features
from charm.runtime.errors import UserError
from pipeline.shards.columns import ColumnReader, read_column_facts
from pipeline.shards.read import ShardReader


def read_features(folder: Path, images: ShardReader, keys: list[str], weights: str) -> Features:
    """Reads the features of some images, by their keys.

    Args:
        weights: of the model that they have to be of (charm.model.frozen.hash_weights).

    Raises:
        UserError: they were made from other images or weights, are damaged, or were not made.
    """
    facts = read_column_facts(folder)
    if not facts.get("layers"):
        raise UserError(f"{folder} is empty: run dvc repro, which makes features with train.mode: head")
    if facts["weights"] != weights:
        raise UserError(f"{folder} was made with other weights than those of the backbone; run dvc repro")
    column = ColumnReader(folder, images, "features")
    first = column.read_features(keys[0])
    values = np.empty((len(keys), *first.shape[1:]), np.float16)
    for row, key in enumerate(keys):
        values[row] = column.read_features(key).mean(0, dtype=np.float32)
    return Features(facts["layers"], facts["parts"], values)
