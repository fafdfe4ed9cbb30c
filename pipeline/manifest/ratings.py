"""The labels before any file is opened: each rating is checked, then those of one image are averaged."""

import math
import os
import statistics
from dataclasses import replace

from charm.runtime.errors import UserError, did_you_mean
from pipeline.manifest.labels import SPLITS, Listed, Listing


def check_listing(listing: Listing) -> None:
    """Raises UserError with file and line at the first label that cannot be right."""
    if not listing.images:
        raise UserError("the labels list no images")
    low, high = listing.score_range
    for image in listing.images:
        if not image.path:
            raise UserError(f"{image.where}: the path is empty")
        if not image.target:
            continue
        if not all(math.isfinite(value) for value in image.target):
            raise UserError(f"{image.where}: a score of {image.path} is not a number")
        if len(image.target) > 1 and (min(image.target) < 0 or sum(image.target) <= 0):
            raise UserError(f"{image.where}: the distribution of {image.path} needs shares >= 0 with a sum > 0")
        if len(image.target) == 1 and not low <= image.target[0] <= high:
            raise UserError(
                f"{image.where}: the score {image.target[0]:g} of {image.path} is outside of score_range, "
                f"[{low:g}, {high:g}]"
            )
        if image.split == "":
            raise UserError(
                f"{image.where}: {image.path} is in no split: write train, val or test, or leave manifest.split_column "
                "empty to have all splits drawn"
            )
        if image.split is not None and image.split not in SPLITS:
            meant = did_you_mean(image.split, list(SPLITS))
            raise UserError(f"{image.where}: split {image.split!r} is not known{meant}")


def average_ratings(listing: Listing) -> Listing:
    """Returns the listing with one entry per path: the mean of its ratings, and their spread.

    Raises:
        UserError: two rows put one image into two splits, or two groups; says file and lines.
    """
    rows_of: dict[str, list[Listed]] = {}
    for image in listing.images:
        rows_of.setdefault(os.path.normpath(image.path), []).append(image)
    return replace(listing, images=[_average(rows) for rows in rows_of.values()])


def _average(rows: list[Listed]) -> Listed:
    """Returns one row for all of an image; rows without a rating only count if no other row has one."""
    rated = [row for row in rows if row.target] or rows[:1]
    first = rated[0]
    for row in rated:
        if (row.split, row.group) != (first.split, first.group):
            word = "split" if row.split != first.split else "group"
            raise UserError(
                f"{row.where}: {row.path} is in the {word} {getattr(row, word)!r}, but was in "
                f"{getattr(first, word)!r} at {first.where}; expected one {word}"
            )
    if len(rated) == 1:
        return first
    target = tuple(map(statistics.fmean, zip(*(row.target for row in rated), strict=True)))
    spread = statistics.stdev(row.target[0] for row in rated) if len(target) == 1 else None
    return replace(first, target=target, ratings=len(rated), spread=spread)
