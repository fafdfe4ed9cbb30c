"""Importance columns: a shard beside each image shard, with the same keys, that holds one map of each image.

    frequency, gradient, entropy   <key>.p<coarse patch size>.npy   float32 (grid_h, grid_w), one score per coarse patch
    saliency                       <key>.mask.png                   1 bit (H, W), the image's own size
                                   <key>.mask.json                  its coverage, and the boxes that it came from
    features                       <key>.features.npy               float16 (draws, layers, parts, D), by charm.model
    random                         no shards: it needs no map

Scores are exact for each listed coarse patch size; they cannot be pooled from a finer map. Masks can, and are, when
they are read.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from charm.runtime.errors import UserError
from pipeline.shards.folders import open_folder
from pipeline.shards.read import ShardReader, decode_array
from pipeline.work.store import parse_record


class ColumnReader:
    """Reads the map of each image, joined to the images by key; of this name, or None for any.

    Raises:
        UserError: names or keys of the shards differ from the images', or the maps were made from other images.
    """

    def __init__(self, folder: Path | str, images: ShardReader, name: str | None = None) -> None:
        if name is not None and (found := read_column_facts(folder)["map"]) != name:
            raise UserError(f"{folder} holds the map {found!r} and not {name!r}; run dvc repro")
        self._shards = ShardReader(folder)
        self.shards = self._shards.shards  # name -> sha256 of its tar, in order
        if not self._shards.is_parallel_to(images):
            raise UserError(_find_difference(self._shards, images))
        for name, sha256 in images.images.items():
            if self._shards.sources[name] != sha256:
                ours, theirs = f"{self._shards.folder}/{name}.tar", f"{images.folder}/{name}.tar"
                raise UserError(f"{ours} was not made from {theirs} but from an earlier one; run dvc repro")

    def read_importance(self, key: str, coarse_patch_size: int) -> np.ndarray:
        """Reads the scores of an image, float32 (grid_h, grid_w)."""
        member = f"p{coarse_patch_size}.npy"
        if member not in self._shards.extensions(key):
            raise UserError(
                f"{self._shards.folder} has no scores for coarse patches of {coarse_patch_size} pixels: add "
                f"{coarse_patch_size} to coarse_patch_sizes of this map in params.yaml"
            )
        return self._read_array(key, member)

    def read_features(self, key: str) -> np.ndarray:
        """Reads the features of an image, float16 (draws, layers, parts, D)."""
        return self._read_array(key, "features.npy")

    def _read_array(self, key: str, member: str) -> np.ndarray:
        try:
            return decode_array(self._shards.read(key, member))
        except ValueError as error:
            raise UserError(f"{self._where(key)}: {key}.{member}: {error}") from error

    def read_mask(self, key: str) -> np.ndarray:
        """Reads the mask of an image, bool (H, W), True on the salient object."""
        if "mask.png" not in self._shards.extensions(key):
            raise UserError(f"{self._shards.folder} has no mask of {key}: it holds another map; run dvc repro")
        try:
            image = Image.open(io.BytesIO(self._shards.read(key, "mask.png")), formats=["PNG"])
            return np.array(image.convert("L"), dtype=bool)  # Pillow's own bools are bytes of 255
        except (OSError, ValueError, SyntaxError) as error:  # Pillow's words for a damaged PNG
            raise UserError(f"{self._where(key)}: {key}.mask.png: {error}") from error

    def _where(self, key: str) -> str:
        return f"{self._shards.folder}/{self._shards.shard_of(key)}.tar"


def read_column_facts(folder: Path | str) -> dict[str, Any]:
    """Reads column.json: the map, how it was made, of saliency its counts; raises UserError if it is damaged."""
    opened = open_folder(folder)
    try:
        facts = parse_record(*opened.read_files(["column.json"]))
        if "map" not in facts:
            raise ValueError("it does not say which map it is")
        return facts
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}/column.json: missing or damaged ({error}); {opened.remedy('column.json')}"
        ) from error


def _find_difference(column: ShardReader, images: ShardReader) -> str:
    """Describes the first key that is not in the same place of a column and of its images."""
    for key in images:
        theirs = f"{images.folder}/{images.shard_of(key)}.tar"
        if key not in column:
            return f"{column.folder}: no map for {key} of {theirs}; run dvc repro"
        if column.shard_of(key) != images.shard_of(key):
            return f"{column.folder}/{column.shard_of(key)}.tar holds {key}, which is in {theirs}; run dvc repro"
    extra = next((key for key in column if key not in images), None)
    if extra is not None:
        return f"{column.folder}/{column.shard_of(extra)}.tar holds {extra}, which is not in {images.folder}"
    return f"{column.folder}: its shards are not those of {images.folder}; run dvc repro"
