"""The whole image at its native size, and smaller in proportion: MUSIQ (Ke et al., ICCV 2021).

Of an image that has too many patches its published code keeps the first ones in raster order, so that the bottom is cut
off; here they are left out evenly. It pads with grey after scaling pixels to -1..1; here with the nearest level, 127.
"""

from dataclasses import dataclass, field

import numpy as np

from charm.inputs.settings import MusiqSettings
from charm.inputs.whole import BudgetInput, cut_whole, join_scales, put_amid, resize
from charm.tokenization.tokens import Tokens

_GREY = 127


@dataclass(frozen=True)
class MusiqInput(BudgetInput):
    """Cuts an image at its native size and at smaller ones, each padded on both sides to whole patches.

    Of an image of more than `budget` patches native ones are left out, evenly in raster order.
    """

    patch_size: int = 32
    budget: int = 1024
    settings: MusiqSettings = field(default_factory=MusiqSettings)

    num_scales = 3
    turned_first = True  # else the odd pixel of padding would be on another side

    def sizes(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns the sizes in pixels, (height, width), at which an image is seen, smallest first."""
        scales = (edge / max(image_hw) for edge in self.settings.edges)
        return *((max(1, round(image_hw[0] * s)), max(1, round(image_hw[1] * s))) for s in scales), image_hw

    def frame_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the native size with its padding, pixels."""
        height, width = (-(-side // self.patch_size) * self.patch_size for side in image_hw)
        return height, width

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the image, at its own size, with its padding."""
        return put_amid(image, self.frame_hw((image.shape[0], image.shape[1])), _GREY)

    def length(self, image_hw: tuple[int, int]) -> int:
        return min(self.budget, sum(height * width for height, width in self.grids(image_hw)))

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns the grid of each size, smallest first, as in `Tokens.grids`, from the size alone."""
        padded = (self.frame_hw(size) for size in self.sizes(image_hw))
        return tuple((height // self.patch_size, width // self.patch_size) for height, width in padded)

    def cut(self, image: np.ndarray, seed: int, epoch: int, key: str) -> Tokens:
        """Cuts each size, the native one first; nothing is drawn at random."""
        sizes = self.sizes((image.shape[0], image.shape[1]))
        parts = [cut_whole(self.frame(resize(image, size)), self.patch_size) for size in sizes]
        scales = []
        room = self.budget
        for scale, part in enumerate(parts):  # the smaller ones are kept whole as long as there is room
            count = min(part.seq_len, room)
            kept = np.linspace(0, part.seq_len - 1, count).round().astype(int)
            scales.append((scale, part.patches[kept], part.patch_coord[kept]))
            room -= count
        return join_scales(scales[::-1], [part.grids[0] for part in parts])
