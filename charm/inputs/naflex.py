"""The whole image in its own proportions, resized so that its patches just fit into the sequence.

The input of NaFlex models (SigLIP 2: Tschannen et al., 2025, arXiv 2502.14786; after NaViT: Dehghani et al., NeurIPS
2023): the composition is seen whole, and no native detail.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from charm.inputs.settings import NaFlexSettings
from charm.inputs.whole import BudgetInput, resize
from charm.tokenization.geometry import fit_to_grid


@dataclass(frozen=True)
class NaFlexInput(BudgetInput):
    """Resizes an image to the largest grid of whole patches in about its proportions that has at most l of them."""

    settings: NaFlexSettings = field(default_factory=NaFlexSettings)

    def frame_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the size in pixels to which an image of this size is resized."""
        height, width = fit_budget(image_hw, self.budget)
        own = tuple(-(-side // self.patch_size) for side in image_hw)
        if not self.settings.enlarge and own[0] * own[1] <= self.budget:
            height, width = own
        return height * self.patch_size, width * self.patch_size

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the resized image; one that is not to be enlarged keeps its pixels, and its edge is repeated."""
        height, width = self.frame_hw((image.shape[0], image.shape[1]))
        is_native = 0 <= height - image.shape[0] < self.patch_size and 0 <= width - image.shape[1] < self.patch_size
        if not self.settings.enlarge and is_native:
            return fit_to_grid(image, self.patch_size, "pad")
        return resize(image, (height, width))


def fit_budget(image_hw: tuple[int, int], budget: int) -> tuple[int, int]:
    """Returns the grid, (height, width), of the largest ratio r at which an image has at most `budget` patches.

    At r it has ceil(h r / p) * ceil(w r / p) of them, so that the largest r makes one axis of whole patches; p does not
    matter. Computed in whole numbers; the search of timm (`get_image_size_for_seq`) and transformers finds the same.

    >>> fit_budget((480, 640), 512)
    (19, 26)
    """
    height, width = image_hw
    # The most patches along each axis if it is the one of whole patches; 0 where the other has too many of them.
    rows, columns = (
        bisect_right(range(1, budget + 1), budget, key=partial(_count_patches, side=side, other=other))
        for side, other in ((height, width), (width, height))
    )
    if rows * width >= columns * height:
        return rows, -(-width * rows // height)
    return -(-height * columns // width), columns


def _count_patches(count: int, side: int, other: int) -> int:
    """Returns the patches of an image, `count` of them along an axis of length `side`; `other` is the other length."""
    return count * -(-other * count // side)
