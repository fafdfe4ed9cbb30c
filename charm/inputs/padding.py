"""The whole image in proportion, padded to a square (Charm, appendix 16)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from charm.images.arrays import as_array
from charm.inputs.whole import check_positive, cut_whole, resize, square_side
from charm.tokenization.augment import IDENTITY, Symmetry
from charm.tokenization.tokens import Tokens


@dataclass(frozen=True)
class PaddingTokenizer:
    """Resizes the longest edge to `edge` pixels and pads the shorter one with black on both sides to a square.

    The padding is part of the image and attended to, as in the paper. Where max_seq_len has no room for the patches,
    the edge shrinks to the largest square grid that fits (the paper's 1296 tokens need l >= 1296).

    Args:
        patch_size: p, pixels; the backbone's.
        max_seq_len: l, the most tokens.
        edge: pixels, rounded down to whole patches.
    """

    patch_size: int = 14
    max_seq_len: int = 1296
    edge: int = 512

    num_scales = 1
    reads = None

    def __post_init__(self) -> None:
        check_positive(patch_size=self.patch_size, max_seq_len=self.max_seq_len, edge=self.edge)

    @property
    def grid_side(self) -> int:
        """Tokens along a side of the square."""
        return square_side(self.edge, self.patch_size, self.max_seq_len)

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns the grid of the square, as in `Tokens.grids`; the same for every size."""
        return ((self.grid_side, self.grid_side),)

    def __call__(
        self, image: Any, *, seed: int = 0, epoch: int = 0, key: str = "", symmetry: Symmetry = IDENTITY
    ) -> Tokens:
        """Tokenizes one image; see CharmTokenizer. Nothing is drawn at random."""
        array = as_array(image)
        edge = self.grid_side * self.patch_size
        height, width = (max(1, round(side * edge / max(array.shape[:2]))) for side in array.shape[:2])
        square = np.zeros((edge, edge, 3), np.uint8)
        top, left = (edge - height) // 2, (edge - width) // 2
        square[top : top + height, left : left + width] = resize(array, (height, width))
        return cut_whole(square, self.patch_size, symmetry)
