"""Makes importance columns (pipeline.shards.columns says what they hold): one function per way of making a map.

A way is the map's name, or for saliency the detector's: `mbd` or `sam_hq`. Beside masks lies a table, masks.csv, of how
much of each image they cover.
"""

import csv
import io
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from charm.runtime.disk import write_csv
from charm.runtime.errors import UserError
from charm.saliency.mbd import detect
from charm.tokenization.geometry import fit_to_grid
from charm.tokenization.importance import IMPORTANCE
from pipeline.shards.read import ShardReader
from pipeline.shards.write import Sample, encode_array, write_shard
from pipeline.work.executor import counting

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the coverage of masks

Settings = dict[str, Any]


def _score(image: np.ndarray, way: str, settings: Settings) -> Sample:
    sample = {}
    for size in settings["coarse_patch_sizes"]:
        sample[f"p{size}.npy"] = encode_array(IMPORTANCE[way](fit_to_grid(image, size, settings["fit"]), size))
    return sample


def _segment_by_mbd(image: np.ndarray, way: str, settings: Settings) -> Sample:
    return encode_mask(detect(image))


def _segment_by_sam_hq(image: np.ndarray, way: str, settings: Settings) -> Sample:
    from charm.saliency import sam_hq

    found = sam_hq.detect(image, sam_hq.SamHqSettings(**settings))
    return encode_mask(found.saliency_mask, boxes=found.boxes.round(2).tolist(), scores=found.scores.round(4).tolist())


def encode_mask(saliency_mask: np.ndarray, **facts: Any) -> Sample:
    """Encodes a bool mask (H, W) without loss, with its coverage beside it, so that counting decodes no mask."""
    buffer = io.BytesIO()
    Image.fromarray(saliency_mask).save(buffer, format="PNG")
    facts["coverage"] = float(saliency_mask.mean())
    return {"mask.png": buffer.getvalue(), "mask.json": json.dumps(facts, sort_keys=True).encode()}


Make = Callable[[np.ndarray, str, Settings], Sample]
SCORES: dict[str, Make] = {"frequency": _score, "gradient": _score, "entropy": _score}
MASKS: dict[str, Make] = {"mbd": _segment_by_mbd, "sam_hq": _segment_by_sam_hq}
MAPS = SCORES | MASKS

# The code that decides what a map holds; a change in it remakes that map and no other.
_SCORING = ("charm.tokenization.geometry:fit_to_grid", "pipeline.importance.make:_score")
MAP_CODE = {
    "frequency": ("charm.tokenization.importance:frequency", *_SCORING),
    "gradient": ("charm.tokenization.importance:gradient", *_SCORING),
    "entropy": ("charm.tokenization.importance:entropy", *_SCORING),
    "mbd": ("charm.saliency.mbd", "pipeline.importance.make:_segment_by_mbd"),
    "sam_hq": ("charm.saliency.sam_hq", "pipeline.importance.make:_segment_by_sam_hq"),
}
SLOW = ("sam_hq",)  # ways that take seconds for an image, so that a shard is made in blocks


def try_tools(way: str, settings: Settings) -> None:
    """Loads what a way needs and drops it: a mistake is one UserError before any work, not one for each shard."""
    if way == "sam_hq":
        from charm.saliency import sam_hq

        sam_hq.load_detector(Path(settings["detector"]))
        sam_hq.load_sam(settings["sam"], Path(settings["sam_checkpoint"]), settings["sam_sha256"])


def make_column(folder: str, shard: str, way: str, settings: Settings, target: Path) -> None:
    """Makes the map of every image of one shard of a folder, and writes it to `target`, a path without an ending.

    `settings` are of the way, a key of MAPS: coarse_patch_sizes and fit of scores, the fields of SamHqSettings.
    """
    make_block(folder, shard, way, settings, (0, None), target)


def make_block(
    folder: str, shard: str, way: str, settings: Settings, span: tuple[int, int | None], target: Path
) -> None:
    """Makes the map of the images span[0] to span[1] - 1 of a shard; otherwise as `make_column`."""
    images = ShardReader(Path(folder), shard)
    keys = islice(images, *span)
    samples = ((key, MAPS[way](images.read_image(key), way, settings)) for key in counting(keys))
    write_shard(target, samples, source=images.images[shard])


def write_coverages(folder: Path) -> dict[str, Any]:
    """Writes masks.csv (key, coverage, salient) into a folder of masks; no mask is decoded.

    An image without a salient pixel has salient = 0; all of it counts as salient when patches are selected (Charm,
    appendix 8).

    Returns:
        images, empty: counts; empty_rate: their ratio; coverage: quantile -> share of the image, over those that
        are not empty.
    """
    masks = ShardReader(folder)
    rows = [(key, float(json.loads(masks.read(key, "mask.json"))["coverage"])) for key in masks]
    table = [(key, f"{coverage:.9f}", int(coverage > 0)) for key, coverage in rows]  # 1e-8 is one pixel
    write_csv(folder / "masks.csv", ("key", "coverage", "salient"), table)

    salient = [coverage for _, coverage in rows if coverage > 0]
    empty = len(rows) - len(salient)
    found = np.quantile(salient, QUANTILES).round(6).tolist() if salient else []
    return {
        "images": len(rows),
        "empty": empty,
        "empty_rate": empty / max(1, len(rows)),
        "coverage": dict(zip(map(str, QUANTILES), found, strict=False)),
    }


def read_coverages(folder: Path) -> dict[str, float]:
    """Returns coverage by key, 0 where nothing is salient; raises UserError if there is no such table."""
    path = folder / "masks.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["key"]: float(row["coverage"]) for row in csv.DictReader(file)}
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); run dvc repro") from error
