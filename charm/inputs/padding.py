"""The whole image in proportion, padded to a square (Charm, appendix 16)."""

from dataclasses import dataclass, field

import numpy as np

from charm.inputs.settings import PaddingSettings, whole_patches
from charm.inputs.whole import WholeInput, put_amid, resize


@dataclass(frozen=True)
class PaddingInput(WholeInput):
    """Resizes the longest edge to `edge` pixels and pads the shorter one with black on both sides to a square.

    The padding is part of the image and attended to, as in the paper: 1,296 tokens for an edge of 512 and p = 14.
    """

    settings: PaddingSettings = field(default_factory=PaddingSettings)

    def frame_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the size of the square, pixels; the same for every image."""
        edge = whole_patches(self.settings.edge, self.patch_size)
        return edge, edge

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the image in its square."""
        square_hw = self.frame_hw((1, 1))
        height, width = (max(1, round(side * square_hw[0] / max(image.shape[:2]))) for side in image.shape[:2])
        return put_amid(resize(image, (height, width)), square_hw)
