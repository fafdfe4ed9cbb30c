"""What Charm is compared with: the usual input of a vision transformer (Charm, appendix 9)."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from charm.augment import IDENTITY, Symmetry, apply_symmetry
from charm.draws import draw_uniform
from charm.geometry import check_image
from charm.tokenizer import Tokens, gather_patches

_CROP = 224  # pixels, of a shortest edge of 256
_LONGEST = 8  # times the shorter side; of longer pictures only a part is resized


@dataclass(frozen=True)
class StandardTokenizer:
    """Shortest edge to 256 pixels, then a crop of 224 x 224, cut into the patches of a plain ViT.

    Where max_seq_len has no room for the patches of 224 pixels, both sizes shrink in proportion, to the largest square
    grid that fits.

    Args:
        patch_size: p, pixels; the backbone's.
        max_seq_len: l, the most tokens; the sequence is as long as the grid, without padding.
        random_crop: a crop drawn from (seed, epoch, key), or the centre.
    """

    patch_size: int = 14
    max_seq_len: int = 512
    random_crop: bool = True

    num_scales = 1

    def __post_init__(self) -> None:
        for name in ("patch_size", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")

    @property
    def grid_side(self) -> int:
        """Tokens along a side of the crop."""
        return max(1, min(_CROP // self.patch_size, math.isqrt(self.max_seq_len)))

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """As `Tokens.grids`; the same for every size."""
        return ((self.grid_side, self.grid_side),)

    def __call__(
        self,
        image: np.ndarray,
        *,
        seed: int = 0,
        epoch: int = 0,
        key: str = "",
        symmetry: Symmetry = IDENTITY,
    ) -> Tokens:
        """Tokenizes one picture; see CharmTokenizer."""
        check_image(image)
        at = draw_uniform(seed, epoch, key, "crop", 2) if self.random_crop else np.array([0.5, 0.5])
        image = _shorten(image, at)
        crop = self.grid_side * self.patch_size
        scale = crop * 8 / 7 / min(image.shape[:2])  # 256 / 224 = 8 / 7
        height, width = (max(crop, round(side * scale)) for side in image.shape[:2])
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        top, left = (int(u * (side - crop + 1)) for u, side in zip(at, (height, width), strict=True))
        cropped = apply_symmetry(np.ascontiguousarray(resized[top : top + crop, left : left + crop]), symmetry)
        y, x = np.divmod(np.arange(self.grid_side**2), self.grid_side)
        patches = np.empty((len(y), self.patch_size, self.patch_size, 3), np.uint8)
        gather_patches(cropped, y, x, out=patches)
        return Tokens(
            patches=patches,
            patch_coord=np.stack([y, x], axis=1).astype(np.int32),
            scale_id=np.zeros(len(y), np.uint8),
            patch_valid=np.ones(len(y), bool),
            grids=self.grids((height, width)),
        )


def _shorten(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Of a strip, the part around the crop: 1 x 20000 pixels would be resized to 256 x 5,120,000, 4 GB.

    The crop stands at the same share `at` of what is left over before and after, so it shows the same place.
    """
    longest = _LONGEST * min(image.shape[:2])
    top, left = (int(u * max(side - longest, 0)) for u, side in zip(at, image.shape[:2], strict=True))
    return image[top : top + longest, left : left + longest]
