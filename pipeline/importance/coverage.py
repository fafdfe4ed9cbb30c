"""How much of each image its saliency mask covers: a table beside the masks, and what it comes to."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from charm.runtime.disk import write_csv
from charm.runtime.errors import UserError
from pipeline.shards.read import ShardReader

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


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
