"""The tokens of the published code, on which its checkpoints were trained: right tokens would be foreign to them.

As Charm_tokenizer 1.0.17 cuts them with patch_selection="frequency" and two scales. What differs from CharmTokenizer:

- coarse patches are downscaled by cubic interpolation without antialiasing, each for itself, and overshoot 0..255;
- the border is cropped or blackened on the right and at the bottom, whichever changes less by the product of both axes;
- 64 coarse patches stay native, those whose spectrum has the highest mean of logarithms, whatever the length;
- small images, native as they are, carry the scale of coarse tokens;
- native patches are listed coarse patch by coarse patch, and their positions row by row, so that most have another's;
- dropping is uniform, and padding is attended to: it shows a token of its own in the place of an embedded patch.

For the last, padding is a scale besides, the coarsest, of one black patch: its scale embedding is that token.
Where the published code fails (fewer than 64 coarse patches, sides below 28 pixels) images are taken as far as they go.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from charm.inputs.settings import PublishedSettings
from charm.inputs.whole import BudgetInput, join_scales, take_patches
from charm.tokenization.budget import FIXED_NATIVE_TOKENS
from charm.tokenization.draws import draw_subset
from charm.tokenization.tokens import Tokens

PADDING, COARSE, NATIVE = range(3)  # scales
_MOST_NATIVE = FIXED_NATIVE_TOKENS // 4  # coarse patches
_TAPS = (-0.09375, 0.59375, 0.59375, -0.09375)  # cubic, a = -0.75, half-way between two pixels
_AT_ONCE = 1024  # coarse patches whose spectra are in memory


@dataclass(frozen=True)
class PublishedInput(BudgetInput):
    """Cuts an image as the published code does; of too many tokens some are left out, drawn by seed and key."""

    budget: int = 1024
    settings: PublishedSettings = field(default_factory=PublishedSettings)

    num_scales = 3
    turned_first = True  # the border is not the same on all sides
    pixel_bytes = 4

    def _cell(self, image_hw: tuple[int, int]) -> int:
        """Returns the side of what an image of this size is cut into, pixels: a patch, or a coarse patch."""
        height, width = (-(-side // self.patch_size) for side in image_hw)
        return self.patch_size if height * width <= self.settings.tokens + 1 else 2 * self.patch_size

    def frame_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the size, pixels, of an image of this size after its border is cropped or padded."""
        cell = self._cell(image_hw)
        (rest_y, missing_y), (rest_x, missing_x) = ((side % cell or 1, -side % cell or 1) for side in image_hw)
        is_cropped = cell > self.patch_size and missing_y * missing_x > rest_y * rest_x and min(image_hw) >= cell
        height, width = (side // cell * cell if is_cropped else -(-side // cell) * cell for side in image_hw)
        return height, width

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the image without its right and lower border, or with more of it in black."""
        height, width = self.frame_hw((image.shape[0], image.shape[1]))
        kept = image[:height, :width]
        more = (0, height - kept.shape[0], 0, width - kept.shape[1])
        return cv2.copyMakeBorder(kept, *more, cv2.BORDER_CONSTANT, value=0)

    def _count(self, image_hw: tuple[int, int]) -> int:
        """Returns the number of tokens before any is left out or added."""
        cell = self._cell(image_hw)
        height, width = self.frame_hw(image_hw)
        cells = height * width // cell**2
        return cells if cell == self.patch_size else cells + 3 * min(_MOST_NATIVE, cells)

    def length(self, image_hw: tuple[int, int]) -> int:
        """Returns the number of tokens of an image of this size, with those of padding that are attended to."""
        return min(max(self._count(image_hw), self.settings.tokens if self.settings.padded else 0), self.budget)

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns the grids of padding, coarse and native tokens, as in `Tokens.grids`, from the size alone."""
        height, width = self.frame_hw(image_hw)
        cell, is_padded = self._cell(image_hw), self.length(image_hw) > self._count(image_hw)
        coarse, native = ((height // side, width // side) for side in (cell, self.patch_size))
        return (1, 1) if is_padded else (0, 0), coarse, native

    def cut(self, image: np.ndarray, seed: int, epoch: int, key: str) -> Tokens:
        """Cuts native patches, coarse ones and padding, in this order; what is left out is the same in every epoch."""
        image_hw = (image.shape[0], image.shape[1])
        frame, p, cell = self.frame(image), self.patch_size, self._cell(image_hw)
        grid_w = frame.shape[1] // cell
        rest, chosen = np.arange(frame.shape[0] // cell * grid_w), np.zeros(0, int)
        if cell > p:
            chosen = choose_native(frame, cell)
            rest = np.delete(rest, chosen)
        cells, within = (np.stack(np.divmod(index, side)) for index, side in ((chosen, grid_w), (np.arange(4), 2)))
        y, x = (2 * cells[:, :, None] + within[:, None]).reshape(2, -1)
        native = np.stack([y, x], axis=1)
        coarse = np.stack(np.divmod(rest, grid_w), axis=1)
        carried = np.concatenate([native[np.lexsort((x, y))], coarse])  # positions: row by row
        count, length = len(carried), self.length(image_hw)
        kept = draw_subset(seed, 0, key, "drop", count, min(count, length))
        native, coarse = native[kept[: len(native)]], coarse[kept[len(native) :]]
        cut = take_patches(frame, coarse, cell)
        padding = np.zeros((length - len(native) - len(coarse), 2), np.int32)
        scales = [
            (NATIVE, take_patches(frame, native, p), native),
            (COARSE, halve(cut) if cell > p else cut, coarse),
            (PADDING, np.zeros((len(padding), p, p, 3), np.float32), padding),  # all of them are float32 for these
        ]
        carried = np.concatenate([carried[kept], padding], dtype=np.int32)
        return join_scales(scales, self.grids(image_hw), carried_coord=carried)


def choose_native(frame: np.ndarray, cell: int) -> np.ndarray:
    """Chooses the coarse patches of uint8 (H, W, 3) that stay native: int (64,) or fewer, in raster order."""
    count = frame.shape[0] * frame.shape[1] // cell**2
    places = np.stack(np.divmod(np.arange(count), frame.shape[1] // cell), axis=1)
    parts = (places[at : at + _AT_ONCE] for at in range(0, count, _AT_ONCE))
    scores = [measure_frequency(take_patches(frame, part, cell)) for part in parts]
    return np.sort(np.argsort(np.concatenate(scores), kind="stable")[-_MOST_NATIVE:])


def measure_frequency(cells: np.ndarray) -> np.ndarray:
    """Measures the mean of the spectrum's decibels of uint8 (N, c, c, 3), the constant and all colours included.

    A single zero of a spectrum makes it -inf, so that flat or regular patches come last.
    """
    spectrum = np.fft.fft2(cells.astype(np.float32) / 255, axes=(1, 2))
    with np.errstate(divide="ignore"):
        decibels: np.ndarray = (20 * np.log10(np.abs(spectrum))).mean(axis=(1, 2, 3))
    return decibels


def halve(cells: np.ndarray) -> np.ndarray:
    """Halves each of uint8 (N, 2p, 2p, 3) by cubic interpolation without antialiasing, float32 (N, p, p, 3)."""
    halved = cells.astype(np.float32)
    for axis in (1, 2):
        padded = np.pad(halved, [(1, 1) if dim == axis else (0, 0) for dim in range(4)], mode="edge")
        taken = np.moveaxis(padded, axis, 0)
        last = len(taken) - 3
        mixed = np.zeros_like(taken[:last:2])
        for k, tap in enumerate(_TAPS):
            mixed += tap * taken[k : k + last : 2]
        halved = np.moveaxis(mixed, 0, axis)
    return np.ascontiguousarray(halved)
