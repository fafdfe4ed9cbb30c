"""The input of a reader of labels, `Source`, and its output, `Listing`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
