"""Makes importance columns (pipeline.columns says what they hold): one function per map, one call per shard."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from charm.importance import score_patches
from pipeline.saliency.mbd import detect
from pipeline.shard_reader import ShardReader
from pipeline.shards import Sample, encode_array, write_shard

Settings = dict[str, Any]


def _score(picture: np.ndarray, name: str, settings: Settings) -> Sample:
    sample = {}
    for size in settings["coarse_patch_sizes"]:
        sample[f"p{size}.npy"] = encode_array(score_patches(picture, name, size, settings["fit"]))
    return sample


def _segment(picture: np.ndarray, name: str, settings: Settings) -> Sample:
    buffer = io.BytesIO()
    Image.fromarray(detect(picture)).save(buffer, format="PNG")
    return {"mask.png": buffer.getvalue()}


MAPS: dict[str, Callable[[np.ndarray, str, Settings], Sample]] = {
    "frequency": _score,
    "gradient": _score,
    "entropy": _score,
    "saliency": _segment,
}

# Modules whose code decides what a map holds; a change in one remakes that map.
MAP_CODE = {
    "frequency": ("charm.importance", "charm.geometry"),
    "gradient": ("charm.importance", "charm.geometry"),
    "entropy": ("charm.importance", "charm.geometry"),
    "saliency": ("pipeline.saliency.mbd",),
}


def make_column(folder: str, shard: str, name: str, settings: Settings, target: Path) -> None:
    """The map `name` of every picture of one shard.

    Args:
        folder: of the picture shards.
        shard: name of the shard.
        settings: of the map; score maps need coarse_patch_sizes and fit.
        target: where to write, without an ending.
    """
    pictures = ShardReader(Path(folder), shard)
    samples = ((key, MAPS[name](pictures.read_picture(key), name, settings)) for key in pictures)
    write_shard(target, samples, source=pictures.shards[shard])
