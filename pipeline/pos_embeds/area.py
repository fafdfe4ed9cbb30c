"""How much of the images a model gets to see, known from their sizes: area_seen.json.

It holds `median` and `lowest`, each native, downscaled and dropped as fractions of an image's area; null for inputs
that resize every image first, of which nothing is native.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from charm.inputs.protocol import Input
from charm.tokenization.budget import AreaSeen
from pipeline.work.store import damaged, read_record, write_record

_FILE = "area_seen.json"


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
    write_record(folder / _FILE, {name: found and getattr(found, name)._asdict() for name in names})


def read_area(folder: Path) -> AreaSummary | None:
    """Undoes `write_area`; raises UserError if the file is missing or damaged."""
    path = folder / _FILE
    try:
        facts = read_record(path)
        if facts["median"] is None:
            return None
        return AreaSummary(AreaSeen(**facts["median"]), AreaSeen(**facts["lowest"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise damaged(path, error) from error
