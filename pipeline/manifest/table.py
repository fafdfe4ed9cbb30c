"""The manifest: one row per listed image, kept or rejected with a reason.

    manifest.parquet   key, name, path, extension, bytes, sha256, raw_height, raw_width, height, width, split, group,
                       target, ratings (how many it is the mean of), spread (their standard deviation, on the labels'
                       scale), reason ("" = kept), notes. Sizes in pixels; raw_* before max_edge.
    dataset.json       what the scores mean, the counts of listed, packed and rejected images, of notes and of leaks,
                       split_sha256 (which files are in which split), and the table's sha256
    rejected.csv       the rejected ones, with reasons

A target is one score scaled to 0..1, or the shares of ascending bins, which sum to 1.
"""

import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from charm.images.limits import Colour
from charm.images.reasons import REASONS
from charm.runtime.disk import atomic_write, file_sha256, write_csv
from charm.runtime.schema import Range, build
from pipeline.manifest.labels import Listing
from pipeline.manifest.splits import find_leaks
from pipeline.work.store import damaged, read_record, write_record

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "name", "path", "extension")),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        *((name, pa.int32()) for name in ("raw_height", "raw_width", "height", "width")),
        *((name, pa.string()) for name in ("split", "group")),
        ("target", pa.list_(pa.float64())),
        ("ratings", pa.int32()),
        ("spread", pa.float64()),
        ("reason", pa.string()),
        ("notes", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class DatasetFacts:
    """The content of dataset.json."""

    dataset: str  # as in params.yaml
    meaning: str  # what a high score says of an image
    # num_bins, score_range, accuracy_threshold: of the labels, on their scale (pipeline.manifest.labels.Listing)
    num_bins: Annotated[int, Range(1)]
    score_range: tuple[float, float]
    accuracy_threshold: float
    max_edge: int | None  # pixels; larger images are downscaled when they are packed. None for no limit.
    colour: Colour  # what becomes of wide colours
    root: str  # folder that the paths start from
    # listed, packed, leaks: counts of images
    listed: int
    packed: int
    leaks: int
    rated_again: int  # images with several ratings, which were averaged
    # of the standard deviations of these ratings, on the labels' scale; None where there are none
    mean_spread: float | None
    # rejected, notes, splits: counts by reason, by note and by split
    rejected: dict[str, int]
    notes: dict[str, int]
    splits: dict[str, int]
    groups: dict[str, int]  # by split, how many the images are of; an image without a group is one of its own
    split_sha256: str  # tells which files are in which split
    sha256: str  # of manifest.parquet


@dataclass(frozen=True)
class Manifest:
    """The kept images of a manifest, in order."""

    table: pa.Table  # pyarrow table with the columns above
    facts: DatasetFacts  # of all images, those of other splits included

    @property
    def keys(self) -> list[str]:
        keys: list[str] = self.table["key"].to_pylist()
        return keys

    @property
    def targets(self) -> np.ndarray:
        """The targets, float64 (N, num_bins): a score on 0..1 or the shares of bins."""
        return np.array(self.table["target"].to_pylist(), np.float64).reshape(len(self.table), -1)

    @property
    def image_hws(self) -> list[tuple[int, int]]:
        """The sizes of the images as packed, (height, width) in pixels."""
        return list(zip(self.table["height"].to_pylist(), self.table["width"].to_pylist(), strict=True))

    @property
    def unit_bins(self) -> np.ndarray:
        """The score of each bin on 0..1; a single 1 for scores, so that target @ unit_bins is the score."""
        count = self.facts.num_bins
        return np.linspace(0, 1, count) if count > 1 else np.ones(1)

    @property
    def unit_threshold(self) -> float:
        """The threshold on 0..1; a score above it counts as good."""
        low, high = self.facts.score_range
        return (self.facts.accuracy_threshold - low) / (high - low)

    @property
    def train_edge(self) -> int:
        """The edge, pixels, that 99 of 100 training images do not exceed; a model was trained on few larger ones."""
        edges = [max(image_hw) for image_hw in self.of_split("train").image_hws]
        return math.ceil(np.percentile(edges, 99)) if edges else 1

    def as_scores(self) -> "Manifest":
        """Returns the manifest with distributions reduced to their means."""
        means = pa.array((self.targets @ self.unit_bins)[:, None].tolist(), SCHEMA.field("target").type)
        place = self.table.schema.get_field_index("target")
        return Manifest(self.table.set_column(place, "target", means), replace(self.facts, num_bins=1))

    def of_split(self, split: str) -> "Manifest":
        return Manifest(self.table.filter(pa.compute.equal(self.table["split"], split)), self.facts)


def read_manifest(folder: Path) -> Manifest:
    """Reads the folder that the stage `manifest` writes."""
    path = folder / "dataset.json"
    try:
        facts = build(DatasetFacts, read_record(path))
        path = folder / "manifest.parquet"
        # Checksums of pages leave the footer open: flipped bits there changed rows in silence.
        if file_sha256(path) != facts.sha256:
            raise ValueError("it is not the file that dataset.json describes")
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
        raise damaged(path, error) from error
    return Manifest(table.filter(pa.compute.equal(table["reason"], "")), facts)


def write_manifest(
    folder: Path,
    rows: list[dict[str, Any]],
    listing: Listing,
    dataset: str,
    max_edge: int | None = None,
    colour: Colour = "srgb",
    meanings: Mapping[str, str] | None = None,
) -> DatasetFacts:
    """Writes the three files; returns the content of dataset.json.

    Args:
        meanings: path of a rejected image -> its reason in words, if there is more to say than REASONS does.
    """
    # Only rejected images can have names that are no text: the table can be read, and these files are not read.
    rows = [row | {"name": _as_text(row["name"]), "path": _as_text(row["path"])} for row in rows]
    kept = [row for row in rows if not row["reason"]]
    rejected = [row for row in rows if row["reason"]]
    with atomic_write(folder / "manifest.parquet") as file:
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    spreads = [row["spread"] for row in kept if row["spread"] is not None]
    facts = DatasetFacts(
        dataset=dataset,
        meaning=listing.meaning,
        num_bins=listing.num_bins,
        score_range=listing.score_range,
        accuracy_threshold=listing.accuracy_threshold,
        max_edge=max_edge,
        colour=colour,
        root=str(listing.root),
        listed=len(rows),
        packed=len(kept),
        leaks=len({index for group in find_leaks(rows) for index in group}),
        rated_again=sum(row["ratings"] > 1 for row in kept),
        mean_spread=statistics.fmean(spreads) if spreads else None,
        rejected=_count(row["reason"] for row in rejected),
        notes=_count(note for row in kept for note in row["notes"]),
        splits=_count(row["split"] for row in kept),
        groups=_count(split for split, _ in {(row["split"], row["group"] or row["path"]) for row in kept}),
        split_sha256=_hash_splits(kept),
        sha256=file_sha256(folder / "manifest.parquet"),
    )
    words = [(meanings or {}).get(row["path"], REASONS[row["reason"]]) for row in rejected]
    listed = [(row["name"], row["path"], row["reason"], word) for row, word in zip(rejected, words, strict=True)]
    write_csv(folder / "rejected.csv", ("name", "path", "reason", "meaning"), listed)
    write_record(folder / "dataset.json", asdict(facts))
    return facts


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _hash_splits(rows: list[dict[str, Any]]) -> str:
    """Returns the sha256 of which files are in which split, whatever their names, order and labels."""
    return hashlib.sha256("\n".join(sorted(f"{row['sha256']} {row['split']}" for row in rows)).encode()).hexdigest()


def _as_text(name: str) -> str:
    """Escapes in a name what UTF-8 cannot hold: bytes that are no text."""
    return name.encode("utf-8", "backslashreplace").decode()
