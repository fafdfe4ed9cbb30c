"""Charm on an image that was made square first: "MS" and "HR + MS" of the paper's table 3 (section 4.4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import cv2
import numpy as np

from charm.images.arrays import as_array, check_mask
from charm.inputs.settings import SquareSettings
from charm.inputs.whole import resize
from charm.tokenization.augment import IDENTITY, Symmetry
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens, pad_tokens

_MOST_EDGE = 10_000  # pixels: of a strip of 1 x 60,000, which is no large file, the square would take 11 GB
_NATIVE_SHARE = 64 / 81  # of the coarse patches of a small square; 256 pixels, p = 14 and budget "fixed" give it


@dataclass(frozen=True)
class SquareInput:
    """Charm on an image that is first resized to a square, which distorts it.

    Of a square with so few patches that it would be left whole, 64 of 81 coarse patches stay native and the others are
    downscaled ("some areas", section 4.4.1).
    """

    charm: CharmTokenizer  # cuts the square
    settings: SquareSettings = field(default_factory=SquareSettings)

    draws = True
    pixel_bytes = 1
    num_residuals = 0

    @classmethod
    def build(cls, settings: SquareSettings, cutter: CharmTokenizer, training: bool) -> "SquareInput":
        return cls(cutter, settings)

    @property
    def patch_size(self) -> int:
        return self.charm.patch_size

    @property
    def max_seq_len(self) -> int:
        return self.charm.max_seq_len

    @property
    def num_scales(self) -> int:
        return self.charm.num_scales

    @property
    def reads(self) -> str | None:
        """The column of masks, for selection "saliency"; stored scores are of another grid and are not read."""
        return "saliency" if self.charm.reads == "saliency" else None

    def plan(self, image_hw: tuple[int, int]) -> tuple[int, CharmTokenizer]:
        """Returns the square's edge, pixels, and a tokenizer with too few tokens to leave the square whole."""
        edge = self._edge(image_hw)
        whole, sides = self.charm.layout((edge, edge)), self.charm.sides
        if len(whole.cell_sides) > 1 or whole.num_coarse == 1:
            return edge, self.charm
        most = whole.num_coarse - 1
        num_coarse = replace(self.charm, max_seq_len=most).layout((edge, edge)).num_coarse
        costs = [side**2 - sides[0] ** 2 for side in sides[1:]]  # tokens that a coarse patch takes more than downscaled
        length = num_coarse * sides[0] ** 2 + round(num_coarse * _NATIVE_SHARE) // len(costs) * sum(costs)
        return edge, replace(self.charm, max_seq_len=min(length, most), budget="fill")

    def _edge(self, image_hw: Sequence[int]) -> int:
        """Returns the edge of the square, pixels."""
        return self.settings.edge or min(max(image_hw), _MOST_EDGE)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resizes an image, uint8 (H, W, 3), to its square, uint8 (edge, edge, 3)."""
        return resize(image, (self._edge(image.shape[:2]),) * 2)

    def length(self, image_hw: tuple[int, int]) -> int:
        edge, cutter = self.plan(image_hw)
        return cutter.length((edge, edge))

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        edge, cutter = self.plan(image_hw)
        return cutter.grids((edge, edge))

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the square, fitted to its grid; of an image or of a mask."""
        return self.plan((image.shape[0], image.shape[1]))[1].frame(self.resize(image))

    def cutter(self, image_hw: tuple[int, int]) -> CharmTokenizer | None:
        """Returns what selects patches of the square; None for one of a single patch."""
        edge, cutter = self.plan(image_hw)
        return cutter.cutter((edge, edge))

    def of_step(self, seed: int, epoch: int, step: int) -> Self:
        return self

    def area_seen(self, image_hw: tuple[int, int]) -> None:
        """Returns None: the image is resized first, so nothing of it is native."""

    def __call__(
        self,
        image: Any,
        *,
        saliency_mask: np.ndarray | None = None,
        seed: int = 0,
        epoch: int = 0,
        key: str = "",
        symmetry: Symmetry = IDENTITY,
    ) -> Tokens:
        """Tokenizes one image; see CharmTokenizer. Importance is computed, as stored maps are of another grid."""
        array = as_array(image)
        edge, cutter = self.plan((array.shape[0], array.shape[1]))
        if saliency_mask is not None:
            check_mask(saliency_mask, array.shape[:2])
            resized = cv2.resize(saliency_mask.view(np.uint8), (edge, edge), interpolation=cv2.INTER_NEAREST)
            saliency_mask = resized.view(bool)
        square = self.resize(array)
        tokens = cutter(square, saliency_mask=saliency_mask, seed=seed, epoch=epoch, key=key, symmetry=symmetry)
        return pad_tokens(tokens, self.charm.max_seq_len)  # images of one batch have sequences of one length
