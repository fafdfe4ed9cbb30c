"""From labels to manifest rows: checks the labels, opens each file once, draws splits that the labels do not give."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from charm.draws import draw_words
from charm.geometry import limit_edge
from pipeline.errors import UserError
from pipeline.images import Limits
from pipeline.listing import SPLITS, Listed, Listing
from pipeline.manifest import SCHEMA
from pipeline.params import ManifestParams, did_you_mean
from pipeline.quarantine import look_apart
from pipeline.store import write_record


def inspect_pictures(root: str, paths: list[str], max_pixels: int, max_edge: int | None, target: Path) -> None:
    """First contact with some files: decodes each once. Writes target.json, {"pictures": one dict per path}."""
    found = look_apart(Path(root), paths, Limits(max_pixels=max_pixels))
    for facts in found:
        if not facts["reason"]:
            facts["height"], facts["width"] = limit_edge((facts["raw_height"], facts["raw_width"]), max_edge)
    write_record(target.with_suffix(".json"), {"pictures": found})


def check_listing(listing: Listing) -> None:
    """Raises UserError with file and line at the first label that cannot be right."""
    if not listing.pictures:
        raise UserError("the labels list no pictures")
    low, high = listing.score_range
    seen: dict[str, str] = {}
    for picture in listing.pictures:
        if not picture.path:
            raise UserError(f"{picture.where}: the path is empty")
        path = os.path.normpath(picture.path)
        if path in seen:
            raise UserError(f"{picture.where}: {picture.path} was listed before, at {seen[path]}")
        seen[path] = picture.where
        if not all(math.isfinite(value) for value in picture.target):
            raise UserError(f"{picture.where}: a score of {picture.path} is not a number")
        if len(picture.target) > 1 and (min(picture.target) < 0 or sum(picture.target) <= 0):
            raise UserError(f"{picture.where}: the distribution of {picture.path} needs shares >= 0 with a sum > 0")
        if len(picture.target) == 1 and not low <= picture.target[0] <= high:
            raise UserError(
                f"{picture.where}: the score {picture.target[0]:g} of {picture.path} is outside of score_range, "
                f"[{low:g}, {high:g}]"
            )
        if picture.split is not None and picture.split not in SPLITS:
            meant = did_you_mean(picture.split, list(SPLITS))
            raise UserError(f"{picture.where}: split {picture.split!r} is not known{meant}")


def build_rows(
    listing: Listing, found: list[dict[str, Any]], params: ManifestParams, seed: int
) -> list[dict[str, Any]]:
    """Manifest rows from labels and what the files hold, in the order of the labels."""
    low, high = listing.score_range
    rows = []
    for index, (picture, facts) in enumerate(zip(listing.pictures, found, strict=True)):
        values = np.array(picture.target)
        target = (values - low) / (high - low) if len(values) == 1 else values / values.sum()
        row = dict.fromkeys(SCHEMA.names) | {"key": f"{index:08d}", "name": picture.name, "path": picture.path}
        if not _is_text(picture.name + picture.path):
            facts = {"reason": "name"}
        rows.append(row | {"split": picture.split, "target": target.tolist()} | facts)
    free = [row for row in rows if not row["reason"] and row["split"] is None]
    # Labels that name the test pictures alone leave validation to be drawn from the others.
    test_share = 0.0 if any(picture.split for picture in listing.pictures) else params.test_share
    _draw_splits(free, test_share, params.val_share, seed)
    for row in rows:
        if row["reason"]:
            row["split"] = None
    return rows


def _is_text(name: str) -> bool:
    """Whether UTF-8 can hold it; bytes of a file's name that are no text are lone surrogates in Python."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _draw_splits(rows: list[dict[str, Any]], test_share: float, val_share: float, seed: int) -> None:
    """Equal files go to the same split, under whatever names they are listed."""
    files = {row["sha256"] for row in rows}
    ranked = sorted(files, key=lambda file: int(draw_words(seed, 0, file, "split", 1)[0]))  # new files move few others
    num_test = round(test_share * len(files))
    num_val = round(val_share * (len(files) - num_test))
    splits = {}
    for rank, file in enumerate(ranked):
        splits[file] = "test" if rank < num_test else "val" if rank < num_test + num_val else "train"
    for row in rows:
        row["split"] = splits[row["sha256"]]


def stat_picture(root: Path, picture: Listed) -> list[Any]:
    """What tells a changed file from an unchanged one without reading it: path, bytes, time of change (ns)."""
    try:
        stat = (root / picture.path).stat()
    except (OSError, ValueError):
        return [picture.path, None, None]
    return [picture.path, stat.st_size, stat.st_mtime_ns]
