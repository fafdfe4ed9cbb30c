"""Labels: a reader's input, `Source`, and its output, `Listing`, checked, and averaged by image."""

import math
import os
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from charm.runtime.errors import UserError, did_you_mean
from pipeline.settings.params import ManifestParams
from pipeline.work.store import repository_path

SPLITS = ("train", "val", "test")
_OTHER_NAMES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


def read_split(cell: Any) -> str:
    """Returns the split that a cell names, large or small; a name that is not known comes back for `check_listing`."""
    name = "" if cell is None else str(cell).strip().lower()
    return _OTHER_NAMES.get(name, name)


@dataclass(frozen=True)
class Source:
    """The places of the labels and images of a data set."""

    labels: Path  # a file, or a folder that holds label files; the dep of the stage `manifest`
    settings: ManifestParams  # the section `manifest` of params.yaml
    seed: int  # of random draws
    rendered: Path  # folder for the images of a reader that makes its own

    @property
    def root(self) -> Path:
        """The folder that the images' paths start from: manifest.root, or the folder of the labels."""
        if self.settings.root:
            return repository_path(self.settings.root)
        # In the repository: a queued experiment runs in a copy that has the labels, if git tracks them, but no images.
        place = repository_path(str(self.labels))
        return place if self.labels.is_dir() else place.parent


@dataclass(frozen=True)
class Listed:
    """One image as the labels have it; several for one path are several ratings of it."""

    name: str  # as in the labels
    path: str  # of the file, from the listing's root
    # the score, on the listing's scale, or one count or share per bin; empty where nobody has rated it
    target: tuple[float, ...]
    # train, val or test; None where the labels give no splits. Splits that no image has are drawn from train.
    split: str | None
    where: str  # file and line of the label, for messages
    # of images that have to be in one split, as a burst of one scene; None for a group of its own
    group: str | None = None
    ratings: int = 1  # how many the target is the mean of
    spread: float | None = None  # standard deviation of these scores; None with fewer than two, and for distributions


@dataclass(frozen=True)
class Listing:
    """A data set's labels."""

    root: Path  # folder that the paths start from
    images: list[Listed]  # in the order of the labels; new ones go to the end, so that old shards stay as they are
    # lowest and highest possible score; of the first and the last bin for distributions
    score_range: tuple[float, float]
    accuracy_threshold: float  # a score above this counts as good, on the scale of score_range
    meaning: str  # what a high score says of an image

    @property
    def num_bins(self) -> int:
        """The number of bins of the distributions; 1 for scores."""
        return max(len(image.target) for image in self.images)

    @property
    def given_splits(self) -> set[str]:
        """The splits that the labels give to any image with a rating."""
        return {image.split for image in self.images if image.split and image.target}


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
