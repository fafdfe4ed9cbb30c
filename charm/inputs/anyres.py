"""The whole image as one tile, and the image in proportion as several: AnyRes of LLaVA-NeXT (Charm, section 6).

Liu et al., "LLaVA-NeXT", 2024. Each tile has the position embeddings of a whole image; here, all tiles attend to each
other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from charm.images.convert import resize_bicubic
from charm.inputs.settings import AnyResSettings, whole_patches
from charm.inputs.whole import WholeInput, cut_whole, join_scales, put_amid
from charm.tokenization.tokens import Tokens


@dataclass(frozen=True)
class AnyResInput(WholeInput):
    """Shows an image squashed to one tile (scale 0), and in proportion on several, padded with black (scale 1)."""

    settings: AnyResSettings = field(default_factory=AnyResSettings)

    turned_first = True  # which tiles an image gets depends on how it is turned

    @property
    def tile(self) -> int:
        """Side of a tile in pixels, whole patches."""
        return whole_patches(self.settings.tile, self.patch_size)

    @property
    def max_seq_len(self) -> int:
        return self.settings.length(self.patch_size)

    def frame_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the size of all tiles of an image of this size, in pixels."""
        return choose_canvas(
            image_hw, [(rows * self.tile, columns * self.tile) for rows, columns in self.settings.pinpoints]
        )

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the image in proportion on black, as its tiles show it."""
        image_hw = (image.shape[0], image.shape[1])
        canvas_hw = self.frame_hw(image_hw)
        return put_amid(resize_bicubic(image, resized_hw(image_hw, canvas_hw)), canvas_hw)

    def length(self, image_hw: tuple[int, int]) -> int:
        return sum(height * width for height, width in self.grids(image_hw))

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns the grids of the squashed image and of all tiles, as in `Tokens.grids`, from the size alone."""
        side = self.tile // self.patch_size
        return ((side, side), *super().grids(image_hw))

    def cut(self, image: np.ndarray, seed: int, epoch: int, key: str) -> Tokens:
        """Cuts the tiles, then the squashed image."""
        whole = cut_whole(resize_bicubic(image, (self.tile, self.tile)), self.patch_size)
        tiles = super().cut(image, seed, epoch, key)
        scales = [(scale, one.patches, one.patch_coord) for scale, one in ((1, tiles), (0, whole))]
        return join_scales(scales, (*whole.grids, *tiles.grids), pos_grids=whole.grids * 2)


def choose_canvas(image_hw: tuple[int, int], canvases: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Chooses the canvas, (height, width), that keeps most pixels of an image and then wastes fewest of its own."""
    height, width = image_hw

    def judge(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    return max(canvases, key=judge)  # the first of equals


def resized_hw(image_hw: tuple[int, int], canvas_hw: tuple[int, int]) -> tuple[int, int]:
    """Returns the size, (height, width), of an image in proportion that touches two sides of a canvas."""
    (height, width), (canvas_h, canvas_w) = image_hw, canvas_hw
    if canvas_w / width < canvas_h / height:
        return min(math.ceil(height * (canvas_w / width)), canvas_h), canvas_w
    return canvas_h, min(math.ceil(width * (canvas_h / height)), canvas_w)
