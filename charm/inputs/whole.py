"""Images resized as a whole and cut into every patch of one grid: what inputs of a single scale share."""

import math

import cv2
import numpy as np

from charm.tokenization.augment import Symmetry, apply_symmetry
from charm.tokenization.geometry import downscale
from charm.tokenization.tokens import Tokens, gather_patches


def check_positive(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")


def square_side(pixels: int, patch_size: int, max_seq_len: int) -> int:
    """Tokens along a side of the largest square grid within `pixels` and within max_seq_len tokens."""
    return max(1, min(pixels // patch_size, math.isqrt(max_seq_len)))


def resize(image: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Area average along an axis that gets shorter, bilinear along one that gets longer."""
    # One after the other: OpenCV's area average is none where either axis gets longer.
    shrunk = downscale(image, (min(image_hw[0], image.shape[0]), min(image_hw[1], image.shape[1])))
    return cv2.resize(shrunk, image_hw[::-1], interpolation=cv2.INTER_LINEAR)


def cut_whole(image: np.ndarray, patch_size: int, symmetry: Symmetry) -> Tokens:
    """Every patch of a square image whose sides are multiples of the patch size, at one scale."""
    turned = apply_symmetry(np.ascontiguousarray(image), symmetry)
    side = image.shape[0] // patch_size
    y, x = np.divmod(np.arange(side * side), side)
    patches = np.empty((len(y), patch_size, patch_size, 3), np.uint8)
    gather_patches(turned, y, x, out=patches)
    return Tokens(
        patches=patches,
        patch_coord=np.stack([y, x], axis=1).astype(np.int32),
        scale_id=np.zeros(len(y), np.uint8),
        patch_valid=np.ones(len(y), bool),
        grids=((side, side),),
    )
