"""Sizes: how an image is fitted to its grid of patches, and how many tokens that gives.

An image that has more than `max_seq_len` patches is first cut into coarse patches of p' x p' pixels. Each coarse patch
is then shown at one of `num_scales` scales, as a square of `cell_sides[scale]` x `cell_sides[scale]` tokens:

    two scales,   p' = n p:  1 token downscaled n times,                     or n * n tokens at native resolution
    three scales, p' = 4 p:  2 * 2 tokens downscaled twice, 3 * 3 in between, or 4 * 4 tokens at native resolution

(Charm, section 3.2.1 and appendix 7.) The grid of a scale is thus the coarse grid times the side of its cell.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import get_args

import cv2
import numpy as np

from charm.tokenization.settings import Fit


def cell_sides(num_scales: int, coarse_ratio: int) -> tuple[int, ...]:
    """Returns the tokens along a side of one coarse patch at each scale, coarsest first: (1, n) or (2, 3, 4)."""
    if num_scales == 2 and coarse_ratio in (2, 3, 4):
        return (1, coarse_ratio)
    if num_scales == 3 and coarse_ratio == 2:
        return (2, 3, 4)
    raise ValueError(
        f"num_scales={num_scales} with coarse_ratio={coarse_ratio}: expected 2 scales with a ratio of 2, 3 or 4, "
        "or 3 scales with a ratio of 2 (patch sizes 2p, 3p, 4p)"
    )


@cache
def exact(ratio: float) -> Fraction:
    """Returns the ratio that a decimal stands for: 1.1 * 50 is 55, and not 55.00000000000001 as in floats."""
    return Fraction(str(ratio))


def limit_edge(image_hw: tuple[int, int], max_edge: int | None) -> tuple[int, int]:
    """Returns the size, in pixels, of an image reduced in proportion to a longest edge of at most `max_edge`."""
    if max_edge is None or max(image_hw) <= max_edge:
        return image_hw
    height, width = (max(1, round(side * max_edge / max(image_hw))) for side in image_hw)
    return height, width


def downscale(image: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 (H, W) or (H, W, C) by area average; returns the image unchanged if it already has that size."""
    if image.shape[:2] == tuple(image_hw):
        return image
    return cv2.resize(image, image_hw[::-1], interpolation=cv2.INTER_AREA)


def fitted_hw(image_hw: tuple[int, int], multiple: int, fit: Fit = "nearest") -> tuple[int, int]:
    """Returns the size, in pixels, of an image after `fit_to_grid`; at least one cell of the grid on a side."""
    if fit not in get_args(Fit):
        raise ValueError(f"fit={fit!r}: expected one of {', '.join(get_args(Fit))}")
    slack = multiple // 2 if fit == "nearest" else multiple - 1
    height, width = ((side + slack) // multiple * multiple for side in image_hw)
    return max(height, multiple), max(width, multiple)


def fit_to_grid(image: np.ndarray, multiple: int, fit: Fit = "nearest") -> np.ndarray:
    """Crops or pads each axis by itself to a multiple, without resizing.

    Args:
        image: (H, W) or (H, W, C), any dtype that OpenCV has.
        multiple: pixels.
        fit: "nearest" crops or pads to the nearer multiple, so that at most multiple / 2 pixels change (more only
            where a side is shorter than that); "pad" never crops.

    Returns:
        (H', W') or (H', W', C). Both sides of an axis share the change; padding repeats the edge. An image that is
        only cropped is returned as a view.
    """
    image_hw = (image.shape[0], image.shape[1])
    target = fitted_hw(image_hw, multiple, fit)
    return cut_window(image, _find_origin(image_hw, target), target)


def _find_origin(image_hw: tuple[int, int], fitted_hw: tuple[int, int]) -> tuple[int, int]:
    """Finds where in the image, (y, x), its fitted image begins; below 0 where padding comes first."""
    y, x = (int((side - fitted) / 2) for side, fitted in zip(image_hw, fitted_hw, strict=True))
    return y, x


def cut_window(image: np.ndarray, origin: tuple[int, int], window_hw: tuple[int, int]) -> np.ndarray:
    """Cuts a window out of an image, (H, W) or (H, W, C); a view unless the window reaches beyond the border.

    Args:
        image: any dtype that OpenCV has.
        origin: pixel, (y, x), at which the window begins; the window holds at least one pixel of the image.
        window_hw: pixels. Where there is no image, its edge is repeated.
    """
    (top, left), (height, width) = origin, window_hw
    part = image[max(top, 0) : top + height, max(left, 0) : left + width]
    if part.shape[:2] == window_hw:
        return part
    before = max(-top, 0), max(-left, 0)
    after = height - before[0] - part.shape[0], width - before[1] - part.shape[1]
    padded = cv2.copyMakeBorder(part, before[0], after[0], before[1], after[1], cv2.BORDER_REPLICATE)
    return padded.reshape(*window_hw, *image.shape[2:])  # OpenCV drops the axis of a single channel


@dataclass(frozen=True)
class Layout:
    """Sizes and grids of an image's tokens, (height, width), which follow from the image's size."""

    image_hw: tuple[int, int]  # pixels
    fitted_hw: tuple[int, int]  # pixels, after fitting to the grid
    # Tokens along a side of a coarse patch, per scale, coarsest first. (1,) where the image has few enough patches to
    # be tokenized whole at its native resolution.
    cell_sides: tuple[int, ...]
    coarse_grid_hw: tuple[int, int]  # number of coarse patches

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Number of tokens (height, width) that would cover the image at each scale, coarsest first."""
        height, width = self.coarse_grid_hw
        return tuple((height * side, width * side) for side in self.cell_sides)

    @property
    def origin(self) -> tuple[int, int]:
        """Pixel of the image, (y, x), at which the fitted image begins; below 0 where padding comes first."""
        return _find_origin(self.image_hw, self.fitted_hw)

    @property
    def num_coarse(self) -> int:
        return self.coarse_grid_hw[0] * self.coarse_grid_hw[1]


def plan_layout(
    image_hw: tuple[int, int], patch_size: int, sides: tuple[int, ...], max_seq_len: int, fit: Fit = "nearest"
) -> Layout:
    """Plans one scale if the image fits into the sequence (s <= l), else the scales of `sides` (see `cell_sides`)."""
    height, width = fitted_hw(image_hw, patch_size, fit)
    grid = (height // patch_size, width // patch_size)
    if grid[0] * grid[1] <= max_seq_len:
        return Layout(image_hw, (height, width), (1,), grid)
    coarse_patch_size = sides[-1] * patch_size
    height, width = fitted_hw(image_hw, coarse_patch_size, fit)
    return Layout(image_hw, (height, width), sides, (height // coarse_patch_size, width // coarse_patch_size))
