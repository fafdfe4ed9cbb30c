"""The standard input of a vision transformer: a resized image's crop (Charm, appendix 9 and section 18)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from charm.images.arrays import as_array
from charm.inputs.whole import check_positive, cut_whole, resize, square_side
from charm.tokenization.augment import IDENTITY, Symmetry
from charm.tokenization.draws import draw_uniform
from charm.tokenization.tokens import Tokens

_LONGEST = 8  # times the shorter side; of longer images only a part is resized


@dataclass(frozen=True)
class StandardTokenizer:
    """Resizes the shortest edge to 8 / 7 of `crop` pixels (256 for 224), and cuts a square crop into a ViT's patches.

    Where max_seq_len has no room for the patches of the crop, both sizes shrink in proportion, to the largest square
    grid that fits.

    Args:
        patch_size: p, pixels; the backbone's.
        max_seq_len: l, the most tokens; the sequence is as long as the grid, without padding.
        random_crop: a crop drawn from (seed, epoch, key), or the centre.
        crop: pixels, rounded down to whole patches; 224, or 384 (729 tokens with p = 14).
    """

    patch_size: int = 14
    max_seq_len: int = 512
    random_crop: bool = True
    crop: int = 224

    num_scales = 1
    reads = None

    def __post_init__(self) -> None:
        check_positive(patch_size=self.patch_size, max_seq_len=self.max_seq_len, crop=self.crop)

    @property
    def grid_side(self) -> int:
        """Tokens along a side of the crop."""
        return square_side(self.crop, self.patch_size, self.max_seq_len)

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns the grid of the crop, as in `Tokens.grids`; the same for every size."""
        return ((self.grid_side, self.grid_side),)

    def __call__(
        self, image: Any, *, seed: int = 0, epoch: int = 0, key: str = "", symmetry: Symmetry = IDENTITY
    ) -> Tokens:
        """Tokenizes one image; see CharmTokenizer."""
        at = draw_uniform(seed, epoch, key, "crop", 2) if self.random_crop else np.array([0.5, 0.5])
        shortened = _shorten(as_array(image), at)
        crop = self.grid_side * self.patch_size
        scale = crop * 8 / 7 / min(shortened.shape[:2])
        height, width = (max(crop, round(side * scale)) for side in shortened.shape[:2])
        resized = resize(shortened, (height, width))
        top, left = (int(u * (side - crop + 1)) for u, side in zip(at, (height, width), strict=True))
        return cut_whole(resized[top : top + crop, left : left + crop], self.patch_size, symmetry)


def _shorten(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Cuts the part around the crop out of a strip: 1 x 20000 pixels would be resized to 256 x 5,120,000, 4 GB.

    The crop is later placed at the same fraction `at` of the leftover length, so it shows the same place.
    """
    longest = _LONGEST * min(image.shape[:2])
    top, left = (int(u * max(side - longest, 0)) for u, side in zip(at, image.shape[:2], strict=True))
    return image[top : top + longest, left : left + longest]
