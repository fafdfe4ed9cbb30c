"""From labels to manifest rows: opens each file once, draws the splits that the labels do not give."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from charm.images.limits import Limits
from charm.images.quarantine import inspect_in_child
from charm.runtime.columns import split_cell
from charm.tokenization.geometry import limit_edge
from pipeline.manifest.labels import Listed, Listing
from pipeline.manifest.splits import draw_splits, find_clashes
from pipeline.manifest.table import SCHEMA
from pipeline.settings.params import ManifestParams
from pipeline.work.store import read_mark, write_record

_NO_TEXT = re.compile("[\ud800-\udfff]")  # bytes of a file's name that are no UTF-8 are lone surrogates in Python


def inspect_images(root: str, paths: list[str], max_pixels: int, max_edge: int | None, target: Path) -> None:
    """Opens and decodes some files once, in a child process; writes target.json, {"images": one dict per path}."""
    found = inspect_in_child(Path(root), paths, Limits(max_pixels=max_pixels))
    for facts in found:
        if not facts["reason"]:
            facts["height"], facts["width"] = limit_edge((facts["raw_height"], facts["raw_width"]), max_edge)
    write_record(target.with_suffix(".json"), {"images": found})


def build_rows(
    listing: Listing, found: list[dict[str, Any]], params: ManifestParams, seed: int
) -> list[dict[str, Any]]:
    """Builds manifest rows from labels and the facts found about the files, in the order of the labels."""
    low, high = listing.score_range
    rows = []
    for index, (image, facts) in enumerate(zip(listing.images, found, strict=True)):
        values = np.array(image.target)
        target = values / values.sum() if len(values) > 1 else (values - low) / (high - low)
        row = dict.fromkeys(SCHEMA.names) | {"key": f"{index:08d}", "name": image.name, "path": image.path}
        row |= {"split": image.split or "train", "group": image.group, "ratings": image.ratings, "spread": image.spread}
        if _NO_TEXT.search(image.name + image.path):
            facts = {"reason": "name"}
        elif not image.target:
            facts = {"reason": "unrated"}
        rows.append(row | {"target": target.tolist()} | facts)
        if params.colour == "as_is" and not facts["reason"]:
            rows[-1]["notes"] = ["as_is" if note == "icc" else note for note in facts["notes"]]
    shares = {"test": params.test_share, "val": params.val_share}
    for split in listing.given_splits & shares.keys():
        del shares[split]
    draw_splits([row for row in rows if not row["reason"] and row["split"] == "train"], shares, seed)
    for place in {place for clash in find_clashes(rows, "sha256", "target") for place in clash}:
        rows[place]["notes"] = [*rows[place]["notes"], "label_conflict"]
    for row in rows:
        if row["reason"]:
            row["split"] = None
    return rows


def stat_image(root: Path, image: Listed) -> list[Any]:
    """Returns facts that change when an image file changes, without reading the file.

    A copy that keeps size and time (`cp -p`, `rsync -t`) has another inode or time of its last status change.

    Returns:
        path, bytes, time of change (ns), inode, time of status change (ns), and the file's mark.
    """
    try:
        stat = (root / split_cell(image.path)[0]).stat()
    except (OSError, ValueError):
        return [image.path, None]
    return [image.path, stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns, read_mark(root, image.path)]
