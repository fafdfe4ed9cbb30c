"""The contact sheet of the report: the saliency masks of a data set that are most likely to be wrong."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from charm.drawing import encode_jpeg, shrink
from pipeline.importance.coverage import read_coverages
from pipeline.shards.columns import ColumnReader, read_column_facts
from pipeline.shards.read import ShardReader

SHOWN = 6  # masks of a kind
SHOWN_EDGE = 240  # pixels
DIMMED = 0.3  # of the light that what is not salient keeps


@dataclass(frozen=True)
class ShownMask:
    """name: of the image; coverage: 0..1, 0 = empty; image: data URI of the image, dimmed off the object."""

    name: str
    coverage: float
    image: str


@dataclass(frozen=True)
class ContactSheet:
    """facts: column.json; groups: what they have in common -> masks, those that exist of each."""

    facts: dict[str, Any]
    groups: dict[str, list[ShownMask]]


def make_contact_sheet(folder: Path, images: ShardReader, names: Mapping[str, str]) -> ContactSheet:
    """Draws the masks in `folder` of largest and of smallest coverage, and images without a salient object."""
    facts = read_column_facts(folder)
    coverages = read_coverages(folder)
    ranked = sorted((key for key in coverages if coverages[key] > 0), key=lambda key: (coverages[key], key))
    chosen = {
        "Largest": ranked[::-1][:SHOWN],
        "Smallest": ranked[: max(0, len(ranked) - SHOWN)][:SHOWN],  # none twice
        "Empty": sorted(key for key in coverages if coverages[key] == 0)[:SHOWN],
    }
    column = ColumnReader(folder, images)

    def show(key: str) -> ShownMask:
        image = dim(images.read_image(key), column.read_mask(key))
        return ShownMask(names.get(key, key), coverages[key], encode_jpeg(image))

    return ContactSheet(facts, {title: [show(key) for key in keys] for title, keys in chosen.items() if keys})


def dim(image: np.ndarray, saliency_mask: np.ndarray) -> np.ndarray:
    """Returns a small copy of an image, uint8 (H, W, 3), that is dark where a mask, bool (H, W), is False.

    An empty mask dims nothing: then the whole image counts as salient.
    """
    small = shrink(image, SHOWN_EDGE)
    if not saliency_mask.any():
        return small
    share = shrink(saliency_mask.astype(np.uint8) * 255, SHOWN_EDGE) / 255
    return np.asarray(np.rint(small * (DIMMED + (1 - DIMMED) * share)[..., None]), np.uint8)
