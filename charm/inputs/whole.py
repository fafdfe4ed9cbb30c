"""Inputs that select nothing: what they have in common, and parts that several of them are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np

from charm.images.arrays import as_array
from charm.tokenization.augment import IDENTITY, Symmetry, apply_symmetry, turn_tokens
from charm.tokenization.geometry import downscale
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens, pad_tokens, row_type


@dataclass(frozen=True)
class WholeInput:
    """An input that selects nothing; a subclass says how large its frame is, and how it is cut if not into one grid.

    A subclass has `settings`, its own of charm.inputs.settings.
    """

    patch_size: int = 14  # p, pixels; the backbone's

    # Whether an image is turned before it is cut, which is dearer; for inputs whose turned tokens are not those of the
    # turned image.
    turned_first = False
    num_scales = 1
    reads = None
    draws = False
    pixel_bytes = 1
    num_residuals = 0

    @classmethod
    def build(cls, settings: Any, cutter: CharmTokenizer, training: bool) -> Self:
        """Builds the input with its settings, and with the patch size and the most tokens of a cutter."""
        return cls(cutter.patch_size, settings)  # type: ignore[call-arg]

    def frame_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the size of the frame, pixels, which is whole patches, of an image of this size."""
        raise NotImplementedError

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the image that patches are cut from in evaluation; see Input."""
        return resize(image, self.frame_hw((image.shape[0], image.shape[1])))

    def cut(self, image: np.ndarray, seed: int, epoch: int, key: str) -> Tokens:
        """Cuts an image, uint8 (H, W, 3), into its tokens, without padding; what is drawn follows from the others."""
        return cut_whole(self.frame(image), self.patch_size)

    @property
    def max_seq_len(self) -> int:
        """The length of the sequence: inputs of a fixed size have no padding."""
        return self.length((1, 1))

    def length(self, image_hw: tuple[int, int]) -> int:
        """Returns the number of tokens of an image of this size."""
        ((height, width),) = self.grids(image_hw)
        return height * width

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns the grid of the frame, as in `Tokens.grids`, from the size alone."""
        height, width = self.frame_hw(image_hw)
        return ((height // self.patch_size, width // self.patch_size),)

    def cutter(self, image_hw: tuple[int, int]) -> None:
        """Returns None: nothing is selected."""

    def of_step(self, seed: int, epoch: int, step: int) -> Self:
        """Returns the input itself: a training step draws nothing for all of its images."""
        return self

    def area_seen(self, image_hw: tuple[int, int]) -> None:
        """Returns None: the image is resized first, so nothing of it is native."""

    def __call__(
        self,
        image: Any,
        *,
        seed: int = 0,
        epoch: int = 0,
        key: str = "",
        symmetry: Symmetry = IDENTITY,
        **maps: np.ndarray,
    ) -> Tokens:
        """Tokenizes one image; see CharmTokenizer."""
        if maps:
            raise ValueError(f"this input takes no {' or '.join(maps)}: it selects no patches")
        array = as_array(image)
        if self.turned_first:
            array, symmetry = apply_symmetry(array, symmetry), IDENTITY
        tokens = self.cut(array, seed, epoch, key)
        return pad_tokens(turn_tokens(tokens, symmetry), self.max_seq_len)


@dataclass(frozen=True)
class BudgetInput(WholeInput):
    """An input that fills a sequence of any length, and so has frames of any size."""

    budget: int = 512  # l, the most tokens

    @classmethod
    def build(cls, settings: Any, cutter: CharmTokenizer, training: bool) -> Self:
        return cls(cutter.patch_size, cutter.max_seq_len, settings)  # type: ignore[call-arg]

    @property
    def max_seq_len(self) -> int:
        return self.budget


def resize(image: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 (H, W) or (H, W, C): area average along an axis that shrinks, bilinear along one that grows."""
    # Two steps: OpenCV does not average by area as soon as either axis grows.
    shrunk = downscale(image, (min(image_hw[0], image.shape[0]), min(image_hw[1], image.shape[1])))
    return cv2.resize(shrunk, image_hw[::-1], interpolation=cv2.INTER_LINEAR)


def put_amid(image: np.ndarray, frame_hw: tuple[int, int], level: int = 0) -> np.ndarray:
    """Puts uint8 (H, W) or (H, W, 3) in the middle of a larger frame, an image on this grey, and a mask on 0."""
    missing = (outer - side for outer, side in zip(frame_hw, image.shape[:2], strict=True))
    (top, bottom), (left, right) = ((both // 2, both - both // 2) for both in missing)
    grey = (level,) * 3 if image.ndim == 3 else 0
    return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=grey)


def take_patches(image: np.ndarray, places: np.ndarray, patch_size: int) -> np.ndarray:
    """Copies patches of an image, (H, W, 3), uint8 or wider, whose sides are multiples of the patch size.

    The places are integer (T, 2), (y, x) on the grid of patches; returns (T, p, p, 3), of the image's dtype.
    """
    height, width = (side // patch_size for side in image.shape[:2])
    row = row_type(patch_size * image.itemsize)
    rows = image.reshape(height, patch_size, width, 3 * patch_size).view(row)[..., 0]
    patches: np.ndarray = rows.swapaxes(1, 2)[tuple(places.T)].view(image.dtype).reshape(-1, patch_size, patch_size, 3)
    return patches


def cut_whole(image: np.ndarray, patch_size: int) -> Tokens:
    """Cuts an image whose sides are multiples of the patch size into all of its patches, at one scale."""
    height, width = (side // patch_size for side in image.shape[:2])
    places = np.stack(np.divmod(np.arange(height * width), width), axis=1)
    return join_scales([(0, take_patches(image, places, patch_size), places)], [(height, width)])


def join_scales(
    scales: Sequence[tuple[int, np.ndarray, np.ndarray]], grids: Sequence[tuple[int, int]], **more: Any
) -> Tokens:
    """Joins the patches of several scales to the tokens of an image, without padding.

    Args:
        scales: in the order of the tokens: number of the scale, patches (T, p, p, 3), places (T, 2), (y, x).
        grids: as in `Tokens`; so is what else is given.
    """
    numbers, patches, places = zip(*scales, strict=True)
    scale_id = np.repeat(np.array(numbers, np.uint8), [len(one) for one in places])
    return Tokens(
        patches=np.concatenate(patches),
        patch_coord=np.concatenate(places, dtype=np.int32),
        scale_id=scale_id,
        patch_valid=np.ones(len(scale_id), bool),
        grids=tuple(grids),
        **more,
    )
