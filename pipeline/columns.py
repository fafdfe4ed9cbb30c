"""Importance columns: a shard beside each picture shard, with the same keys, that holds one map of each picture.

    frequency, gradient, entropy   <key>.p<coarse patch size>.npy   float32 (grid_h, grid_w), one score per coarse patch
    saliency                       <key>.mask.png                   1 bit (H, W), the picture's own size
    random                         no shards: it needs no map

Scores are exact for each listed coarse patch size; they cannot be pooled from a finer map. Masks can, and are, when
they are read.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import UserError
from pipeline.shards import ShardReader


class ColumnReader:
    """The map of each picture, joined to the pictures by key.

    Raises:
        UserError: the shards' names or keys are not those of the pictures.
    """

    def __init__(self, folder: Path, pictures: ShardReader) -> None:
        self._shards = ShardReader(folder)
        for key in pictures:
            if key not in self._shards:
                raise UserError(f"{folder}: no map for {key} of {pictures.folder / pictures.shard_of(key)}.tar")
            ours, theirs = self._shards.shard_of(key), pictures.shard_of(key)
            if ours != theirs:
                raise UserError(f"{folder / ours}.tar holds {key}, which is in {pictures.folder / theirs}.tar")

    def read_importance(self, key: str, coarse_patch_size: int) -> np.ndarray:
        """float32 (grid_h, grid_w)."""
        member = f"p{coarse_patch_size}.npy"
        if member not in self._shards.extensions(key):
            raise UserError(
                f"{self._shards.folder} has no scores for coarse patches of {coarse_patch_size} pixels: add "
                f"{coarse_patch_size} to coarse_patch_sizes of this map in params.yaml"
            )
        scores: np.ndarray = np.load(io.BytesIO(self._shards.read(key, member)), allow_pickle=False)
        return scores

    def read_mask(self, key: str) -> np.ndarray:
        """bool (H, W), True on the salient object."""
        if "mask.png" not in self._shards.extensions(key):
            raise UserError(f"{self._shards.folder} has no mask of {key}: it holds another map; run dvc repro")
        return np.array(Image.open(io.BytesIO(self._shards.read(key, "mask.png")), formats=["PNG"]), dtype=bool)
