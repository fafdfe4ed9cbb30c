"""The paper's augmentation: horizontal flips and quarter turns, of an image together with its columns and grids; grey.

Patches are chosen and cut in the frame of the image as it is, then coordinates and patches are turned. Importance maps
that were computed beforehand thus stay true, the same patches are shown however an image is turned, and only pixels
that are shown are moved.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from charm.tokenization.draws import draw_uniform
from charm.tokenization.tokens import Tokens

# flip -> turns -> OpenCV's code of a flip, which follows a transposition if `turns` is odd. This takes one or two
# passes over the pixels; a flip and then a turn would take three.
_FLIPS = {False: (None, 0, -1, 1), True: (1, None, 0, -1)}


@dataclass(frozen=True)
class Symmetry:
    """A horizontal flip, then `turns` quarter turns counterclockwise."""

    flip: bool = False
    turns: int = 0

    @property
    def transposes(self) -> bool:
        """Whether height and width change places."""
        return self.turns % 2 == 1


IDENTITY = Symmetry()


def apply_symmetry(array: np.ndarray, symmetry: Symmetry) -> np.ndarray:
    """Transforms an image, mask or map: (H, W) or (H, W, C) with C <= 4, bool or any dtype that OpenCV has."""
    if array.dtype in (np.int64, np.uint64):
        raise ValueError(f"array is {array.dtype}: OpenCV would narrow it to 32 bits; expected bool, float or narrower")
    values = array.view(np.uint8) if array.dtype == bool else array
    if symmetry.transposes:
        values = cv2.transpose(values)
    flip = _FLIPS[symmetry.flip][symmetry.turns % 4]
    if flip is not None:
        values = cv2.flip(values, flip)
    # OpenCV drops the axis of a single channel.
    return values.reshape(*values.shape[:2], *array.shape[2:]).view(array.dtype)


def turn_tokens(tokens: Tokens, symmetry: Symmetry) -> Tokens:
    """Transforms the tokens of an image to those of the transformed image, in the same order."""
    if symmetry == IDENTITY:
        return tokens
    num_tokens, patch_size = tokens.seq_len, tokens.patches.shape[1]
    # One below the other, patches are one image for OpenCV. Some turns reverse the pile.
    turned = apply_symmetry(tokens.patches[:num_tokens].reshape(-1, patch_size, 3), symmetry)
    if symmetry.transposes:
        turned = turned.reshape(patch_size, num_tokens, patch_size, 3).swapaxes(0, 1)
    turned = turned.reshape(num_tokens, patch_size, patch_size, 3)[:: -1 if symmetry.turns % 4 >= 2 else 1]
    patches, patch_coord = np.empty_like(tokens.patches), np.zeros_like(tokens.patch_coord)
    patches[:num_tokens], patches[num_tokens:] = turned, 0
    y, x = tokens.patch_coord[:num_tokens].T
    height, width = np.array(tokens.grids)[tokens.scale_id[:num_tokens]].T
    if symmetry.flip:
        x = width - 1 - x
    for _ in range(symmetry.turns % 4):
        y, x, height, width = width - 1 - x, y, width, height
    patch_coord[:num_tokens, 0], patch_coord[:num_tokens, 1] = y, x
    grids = tuple(grid[::-1] for grid in tokens.grids) if symmetry.transposes else tokens.grids
    return replace(tokens, patches=patches, patch_coord=patch_coord, grids=grids)


def to_grey(image: np.ndarray) -> np.ndarray:
    """Returns the luminance of an image, uint8 (H, W, 3), in three equal channels (Charm, table 11)."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def draw_symmetry(seed: int, epoch: int, key: str, flip: float = 0.5, rotate: float = 0.5) -> Symmetry:
    """Draws a flip with probability `flip`, and with probability `rotate` a turn by 90, 180 or 270 degrees."""
    flips, rotates, turn = draw_uniform(seed, epoch, key, "augment", 3)
    return Symmetry(bool(flips < flip), 1 + int(3 * turn) if rotates < rotate else 0)
