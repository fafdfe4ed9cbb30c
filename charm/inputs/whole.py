"""Resizing of whole images, and cutting into all patches of one grid: shared by the inputs of a single scale."""

import math

import cv2
import numpy as np

from charm.tokenization.augment import Symmetry, turn_tokens
from charm.tokenization.geometry import downscale
from charm.tokenization.tokens import Tokens


def check_positive(**settings: int) -> None:
    """Raises ValueError unless each setting is at least 1."""
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")


def square_side(pixels: int, patch_size: int, max_seq_len: int) -> int:
    """Returns the tokens along a side of the largest square grid within `pixels` and max_seq_len tokens."""
    return max(1, min(pixels // patch_size, math.isqrt(max_seq_len)))


def resize(image: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Resizes an image, uint8 (H, W, C): area average along an axis that shrinks, bilinear along one that grows."""
    # Two steps: OpenCV does not average by area as soon as either axis grows.
    shrunk = downscale(image, (min(image_hw[0], image.shape[0]), min(image_hw[1], image.shape[1])))
    return cv2.resize(shrunk, image_hw[::-1], interpolation=cv2.INTER_LINEAR)


def cut_whole(image: np.ndarray, patch_size: int, symmetry: Symmetry) -> Tokens:
    """Cuts a square image, whose sides are multiples of the patch size, into all of its patches, at one scale."""
    side = image.shape[0] // patch_size
    patches = image.reshape(side, patch_size, side, patch_size, 3).swapaxes(1, 2)
    tokens = Tokens(
        patches=patches.reshape(-1, patch_size, patch_size, 3),
        patch_coord=np.stack(np.divmod(np.arange(side * side), side), axis=1).astype(np.int32),
        scale_id=np.zeros(side * side, np.uint8),
        patch_valid=np.ones(side * side, bool),
        grids=((side, side),),
    )
    return turn_tokens(tokens, symmetry)
