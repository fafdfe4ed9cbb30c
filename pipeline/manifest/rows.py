"""From labels to manifest rows: checks the labels, opens each file once, draws splits that the labels do not give."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from charm.images.limits import Limits
from charm.images.quarantine import inspect_in_child
from charm.runtime.errors import UserError, did_you_mean
from charm.tokenization.draws import draw_random_bits
from charm.tokenization.geometry import limit_edge
from pipeline.manifest.labels import SPLITS, Listed, Listing
from pipeline.manifest.table import SCHEMA
from pipeline.settings.params import ManifestParams
from pipeline.work.store import read_mark, write_record


def inspect_images(root: str, paths: list[str], max_pixels: int, max_edge: int | None, target: Path) -> None:
    """Opens and decodes some files once, in a child process; writes target.json, {"images": one dict per path}."""
    found = inspect_in_child(Path(root), paths, Limits(max_pixels=max_pixels))
    for facts in found:
        if not facts["reason"]:
            facts["height"], facts["width"] = limit_edge((facts["raw_height"], facts["raw_width"]), max_edge)
    write_record(target.with_suffix(".json"), {"images": found})


def check_listing(listing: Listing) -> None:
    """Raises UserError with file and line at the first label that cannot be right."""
    if not listing.images:
        raise UserError("the labels list no images")
    low, high = listing.score_range
    seen: dict[str, str] = {}
    for image in listing.images:
        if not image.path:
            raise UserError(f"{image.where}: the path is empty")
        path = os.path.normpath(image.path)
        if path in seen:
            raise UserError(f"{image.where}: {image.path} was listed before, at {seen[path]}")
        seen[path] = image.where
        if not all(math.isfinite(value) for value in image.target):
            raise UserError(f"{image.where}: a score of {image.path} is not a number")
        if len(image.target) > 1 and (min(image.target) < 0 or sum(image.target) <= 0):
            raise UserError(f"{image.where}: the distribution of {image.path} needs shares >= 0 with a sum > 0")
        if len(image.target) == 1 and not low <= image.target[0] <= high:
            raise UserError(
                f"{image.where}: the score {image.target[0]:g} of {image.path} is outside of score_range, "
                f"[{low:g}, {high:g}]"
            )
        if image.split is not None and image.split not in SPLITS:
            meant = did_you_mean(image.split, list(SPLITS))
            raise UserError(f"{image.where}: split {image.split!r} is not known{meant}")


def build_rows(
    listing: Listing, found: list[dict[str, Any]], params: ManifestParams, seed: int
) -> list[dict[str, Any]]:
    """Builds manifest rows from labels and the facts found about the files, in the order of the labels."""
    low, high = listing.score_range
    rows = []
    for index, (image, facts) in enumerate(zip(listing.images, found, strict=True)):
        values = np.array(image.target)
        target = (values - low) / (high - low) if len(values) == 1 else values / values.sum()
        row = dict.fromkeys(SCHEMA.names) | {"key": f"{index:08d}", "name": image.name, "path": image.path}
        if not _is_text(image.name + image.path):
            facts = {"reason": "name"}
        rows.append(row | {"split": image.split, "target": target.tolist()} | facts)
    free = [row for row in rows if not row["reason"] and row["split"] is None]
    # Labels that name the test images alone leave validation to be drawn from the others.
    test_share = 0.0 if any(image.split for image in listing.images) else params.test_share
    _draw_splits(free, test_share, params.val_share, seed)
    for row in rows:
        if row["reason"]:
            row["split"] = None
    return rows


def _is_text(name: str) -> bool:
    """Tells whether UTF-8 can hold a name; bytes of a file's name that are no text are lone surrogates in Python."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _draw_splits(rows: list[dict[str, Any]], test_share: float, val_share: float, seed: int) -> None:
    """Draws the splits of rows; equal files go to the same split, whatever their names."""
    files = {row["sha256"] for row in rows}
    # Each file has its own draw, so that new files move few others to another split.
    ranked = sorted(files, key=lambda file: int(draw_random_bits(seed, 0, file, "split", 1)[0]))
    num_test = round(test_share * len(files))
    num_val = round(val_share * (len(files) - num_test))
    splits = {}
    for rank, file in enumerate(ranked):
        splits[file] = "test" if rank < num_test else "val" if rank < num_test + num_val else "train"
    for row in rows:
        row["split"] = splits[row["sha256"]]


def stat_image(root: Path, image: Listed) -> list[Any]:
    """Returns facts that change when an image file changes, without reading the file.

    A copy that keeps size and time (`cp -p`, `rsync -t`) has another inode or time of its last status change.

    Returns:
        path, bytes, time of change (ns), inode, time of status change (ns), and the file's mark.
    """
    try:
        stat = (root / image.path).stat()
    except (OSError, ValueError):
        return [image.path, None]
    return [image.path, stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns, read_mark(root, image.path)]
