"""What Charm is compared with: other ways to hand a photograph to a vision transformer (Charm, table 3 and appendices).

    StandardTokenizer   shortest edge 256, a crop of 224 (appendix 9); shortest edge 439, a crop of 384 (section 18)
    PaddingTokenizer    longest edge 512, padded to a square (appendix 16)
    SquareTokenizer     Charm on a picture that was made square first: 256 x 256 ("MS"), or with both edges as long as
                        the longest ("HR + MS", section 4.4.1)

All take a picture as CharmTokenizer does, and give the same `Tokens`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from charm.augment import IDENTITY, Symmetry, apply_symmetry
from charm.draws import draw_uniform
from charm.geometry import downscale
from charm.pictures import as_array, check_mask
from charm.tokenizer import CharmTokenizer
from charm.tokens import Tokens, gather_patches, pad_tokens

_LONGEST = 8  # times the shorter side; of longer pictures only a part is resized
_MOST_EDGE = 10_000  # pixels: of a strip of 1 x 60,000, which is no large file, the square would take 11 GB
_NATIVE_SHARE = 64 / 81  # of the coarse patches of a small square; as of 256 pixels with p = 14 and budget "fixed"


@dataclass(frozen=True)
class StandardTokenizer:
    """Shortest edge to 8 / 7 of `crop` pixels (256 for 224), then a square crop, cut into the patches of a plain ViT.

    Where max_seq_len has no room for the patches of the crop, both sizes shrink in proportion, to the largest square
    grid that fits.

    Args:
        patch_size: p, pixels; the backbone's.
        max_seq_len: l, the most tokens; the sequence is as long as the grid, without padding.
        random_crop: a crop drawn from (seed, epoch, key), or the centre.
        crop: pixels, rounded down to whole patches; 224, or 384 (729 tokens with p = 14).
    """

    patch_size: int = 14
    max_seq_len: int = 512
    random_crop: bool = True
    crop: int = 224

    num_scales = 1

    def __post_init__(self) -> None:
        _check_positive(patch_size=self.patch_size, max_seq_len=self.max_seq_len, crop=self.crop)

    @property
    def grid_side(self) -> int:
        """Tokens along a side of the crop."""
        return _square_side(self.crop, self.patch_size, self.max_seq_len)

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """As `Tokens.grids`; the same for every size."""
        return ((self.grid_side, self.grid_side),)

    def __call__(
        self, image: Any, *, seed: int = 0, epoch: int = 0, key: str = "", symmetry: Symmetry = IDENTITY
    ) -> Tokens:
        """Tokenizes one picture; see CharmTokenizer."""
        at = draw_uniform(seed, epoch, key, "crop", 2) if self.random_crop else np.array([0.5, 0.5])
        shortened = _shorten(as_array(image), at)
        crop = self.grid_side * self.patch_size
        scale = crop * 8 / 7 / min(shortened.shape[:2])
        height, width = (max(crop, round(side * scale)) for side in shortened.shape[:2])
        resized = _resize(shortened, (height, width))
        top, left = (int(u * (side - crop + 1)) for u, side in zip(at, (height, width), strict=True))
        return _cut_whole(resized[top : top + crop, left : left + crop], self.patch_size, symmetry)


@dataclass(frozen=True)
class PaddingTokenizer:
    """Longest edge to `edge` pixels, the shorter one padded with black on both sides: a square, in proportion.

    The padding is part of the picture and attended to, as in the paper. Where max_seq_len has no room for the patches,
    the edge shrinks to the largest square grid that fits (the paper's 1296 tokens need l >= 1296).

    Args:
        patch_size: p, pixels; the backbone's.
        max_seq_len: l, the most tokens.
        edge: pixels, rounded down to whole patches.
    """

    patch_size: int = 14
    max_seq_len: int = 1296
    edge: int = 512

    num_scales = 1

    def __post_init__(self) -> None:
        _check_positive(patch_size=self.patch_size, max_seq_len=self.max_seq_len, edge=self.edge)

    @property
    def grid_side(self) -> int:
        """Tokens along a side of the square."""
        return _square_side(self.edge, self.patch_size, self.max_seq_len)

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """As `Tokens.grids`; the same for every size."""
        return ((self.grid_side, self.grid_side),)

    def __call__(
        self, image: Any, *, seed: int = 0, epoch: int = 0, key: str = "", symmetry: Symmetry = IDENTITY
    ) -> Tokens:
        """Tokenizes one picture; see CharmTokenizer. Nothing is drawn at random."""
        array = as_array(image)
        edge = self.grid_side * self.patch_size
        height, width = (max(1, round(side * edge / max(array.shape[:2]))) for side in array.shape[:2])
        square = np.zeros((edge, edge, 3), np.uint8)
        top, left = (edge - height) // 2, (edge - width) // 2
        square[top : top + height, left : left + width] = _resize(array, (height, width))
        return _cut_whole(square, self.patch_size, symmetry)


@dataclass(frozen=True)
class SquareTokenizer:
    """Charm on a picture that is first resized to a square, which distorts it.

    Args:
        charm: cuts the square. Where it would leave it whole, since it has few patches, 64 of 81 coarse patches stay
            native and the others are downscaled ("some areas", section 4.4.1).
        edge: pixels; 0 for the picture's own longest edge, up to 10,000.
    """

    charm: CharmTokenizer
    edge: int = 256

    @property
    def num_scales(self) -> int:
        return self.charm.num_scales

    def plan(self, image_hw: tuple[int, int]) -> tuple[int, CharmTokenizer]:
        """The square's edge, and a tokenizer that has too few tokens to leave the square whole."""
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
        """Of the square, pixels."""
        return self.edge or min(max(image_hw), _MOST_EDGE)

    def resize(self, picture: np.ndarray) -> np.ndarray:
        """The square of a picture, uint8 (H, W, 3): uint8 (edge, edge, 3)."""
        edge = self._edge(picture.shape[:2])
        return _resize(picture, (edge, edge))

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """As `Tokens.grids`, known from the size alone."""
        edge, cutter = self.plan(image_hw)
        return cutter.grids((edge, edge))

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
        """Tokenizes one picture; see CharmTokenizer. Importance is computed: given maps are of another grid."""
        array = as_array(image)
        edge, cutter = self.plan((array.shape[0], array.shape[1]))
        if saliency_mask is not None:
            check_mask(saliency_mask, array.shape[:2])
            resized = cv2.resize(saliency_mask.view(np.uint8), (edge, edge), interpolation=cv2.INTER_NEAREST)
            saliency_mask = resized.view(bool)
        square = self.resize(array)
        tokens = cutter(square, saliency_mask=saliency_mask, seed=seed, epoch=epoch, key=key, symmetry=symmetry)
        return pad_tokens(tokens, self.charm.max_seq_len)  # as long as those of a larger picture of the same batch


Tokenizer = CharmTokenizer | StandardTokenizer | PaddingTokenizer | SquareTokenizer

# Called as (what cuts patches, whether in training): all take their patch size and length from it, some their patches.
TOKENIZERS: dict[str, Callable[[CharmTokenizer, bool], Tokenizer]] = {
    "charm": lambda cutter, training: cutter,
    "standard": lambda cutter, training: StandardTokenizer(cutter.patch_size, cutter.max_seq_len, training),
    "standard_384": lambda cutter, training: StandardTokenizer(cutter.patch_size, cutter.max_seq_len, training, 384),
    "padding": lambda cutter, training: PaddingTokenizer(cutter.patch_size, cutter.max_seq_len),
    "ms": lambda cutter, training: SquareTokenizer(cutter, edge=256),
    "hr_ms": lambda cutter, training: SquareTokenizer(cutter, edge=0),
}


def _check_positive(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")


def _square_side(pixels: int, patch_size: int, max_seq_len: int) -> int:
    """Tokens along a side of the largest square grid within `pixels` and within max_seq_len tokens."""
    return max(1, min(pixels // patch_size, math.isqrt(max_seq_len)))


def _resize(image: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Area average along an axis that gets shorter, bilinear along one that gets longer."""
    # One after the other: OpenCV's area average is none where either axis gets longer.
    shrunk = downscale(image, (min(image_hw[0], image.shape[0]), min(image_hw[1], image.shape[1])))
    return cv2.resize(shrunk, image_hw[::-1], interpolation=cv2.INTER_LINEAR)


def _cut_whole(image: np.ndarray, patch_size: int, symmetry: Symmetry) -> Tokens:
    """Every patch of a square picture whose sides are multiples of the patch size, at one scale."""
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


def _shorten(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Of a strip, the part around the crop: 1 x 20000 pixels would be resized to 256 x 5,120,000, 4 GB.

    The crop stands at the same share `at` of what is left over before and after, so it shows the same place.
    """
    longest = _LONGEST * min(image.shape[:2])
    top, left = (int(u * max(side - longest, 0)) for u, side in zip(at, image.shape[:2], strict=True))
    return image[top : top + longest, left : left + longest]
