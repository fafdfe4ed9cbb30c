"""Inputs that resize an image and show all of it, or of a crop of it, on one grid: what they have in common."""

from typing import Any, Self

import cv2
import numpy as np

from charm.images.arrays import as_array
from charm.tokenization.augment import IDENTITY, Symmetry, apply_symmetry, turn_tokens
from charm.tokenization.geometry import downscale
from charm.tokenization.tokens import Tokens, pad_tokens, row_type


class WholeInput:
    """An input that selects nothing; a subclass says how large its frame is, and how it is cut if not into one grid.

    Attributes:
        turned_first: whether an image is turned before it is cut, which is dearer; for inputs whose turned tokens are
            not those of the turned image.
    """

    patch_size: int
    turned_first = False
    num_scales = 1
    reads = None
    draws = False
    whole_grid = True
    pixel_bytes = 1
    num_residuals = 0

    def frame_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the size of the frame, pixels, which is whole patches, of an image of this size."""
        raise NotImplementedError

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the image that patches are cut from in evaluation; see Input."""
        return resize(image, self.frame_hw((image.shape[0], image.shape[1])))

    def cut(self, image: np.ndarray, seed: int, epoch: int, key: str) -> Tokens:
        """Cuts an image, uint8 (H, W, 3), into its tokens, without padding; what is drawn follows from the others."""
        return cut_whole(self.frame(image), self.patch_size)

    @property
    def max_seq_len(self) -> int:
        """The length of the sequence: inputs of a fixed size have no padding."""
        return self.length((1, 1))

    def length(self, image_hw: tuple[int, int]) -> int:
        """Returns the number of tokens of an image of this size."""
        ((height, width),) = self.grids(image_hw)
        return height * width

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns the grid of the frame, as in `Tokens.grids`, from the size alone."""
        height, width = self.frame_hw(image_hw)
        return ((height // self.patch_size, width // self.patch_size),)

    def cutter(self, image_hw: tuple[int, int]) -> None:
        """Returns None: nothing is selected."""

    def of_step(self, seed: int, epoch: int, step: int) -> Self:
        """Returns the input itself: a training step draws nothing for all of its images."""
        return self

    def area_seen(self, image_hw: tuple[int, int]) -> None:
        """Returns None: the image is resized first, so nothing of it is native."""

    def __call__(
        self,
        image: Any,
        *,
        seed: int = 0,
        epoch: int = 0,
        key: str = "",
        symmetry: Symmetry = IDENTITY,
        **maps: np.ndarray,
    ) -> Tokens:
        """Tokenizes one image; see CharmTokenizer."""
        if maps:
            raise ValueError(f"this input takes no {' or '.join(maps)}: it selects no patches")
        array = as_array(image)
        if self.turned_first:
            array, symmetry = apply_symmetry(array, symmetry), IDENTITY
        tokens = self.cut(array, seed, epoch, key)
        return pad_tokens(turn_tokens(tokens, symmetry), self.max_seq_len)


def resize(image: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 (H, W) or (H, W, C): area average along an axis that shrinks, bilinear along one that grows."""
    # Two steps: OpenCV does not average by area as soon as either axis grows.
    shrunk = downscale(image, (min(image_hw[0], image.shape[0]), min(image_hw[1], image.shape[1])))
    return cv2.resize(shrunk, image_hw[::-1], interpolation=cv2.INTER_LINEAR)


def take_patches(image: np.ndarray, y: np.ndarray, x: np.ndarray, patch_size: int) -> np.ndarray:
    """Copies patches of an image whose sides are multiples of the patch size.

    Args:
        image: (H, W, 3), uint8 or wider.
        y, x: integer (T,), on the grid of patches.
        patch_size: p, pixels.

    Returns:
        (T, p, p, 3), of the image's dtype.
    """
    height, width = (side // patch_size for side in image.shape[:2])
    row = row_type(patch_size * image.itemsize)
    rows = image.reshape(height, patch_size, width, 3 * patch_size).view(row)[..., 0]
    patches: np.ndarray = rows.swapaxes(1, 2)[y, x].view(image.dtype).reshape(-1, patch_size, patch_size, 3)
    return patches


def cut_whole(image: np.ndarray, patch_size: int) -> Tokens:
    """Cuts an image whose sides are multiples of the patch size into all of its patches, at one scale."""
    height, width = (side // patch_size for side in image.shape[:2])
    count = height * width
    y, x = np.divmod(np.arange(count), width)
    return Tokens(
        patches=take_patches(image, y, x, patch_size),
        patch_coord=np.stack([y, x], axis=1).astype(np.int32),
        scale_id=np.zeros(count, np.uint8),
        patch_valid=np.ones(count, bool),
        grids=((height, width),),
    )
