"""The paper's augmentation: horizontal flips and quarter turns, of an image together with its columns and grids.

An image is fitted to its grid first and transformed afterwards. Only in this order do importance maps that were
computed beforehand stay true: importance(transform(x)) == transform(importance(x)).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from charm.tokenization.draws import draw_uniform

_TURNS = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)


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
    if symmetry.flip:
        values = cv2.flip(values, 1)
    turn = _TURNS[symmetry.turns % 4]
    if turn is not None:
        values = cv2.rotate(values, turn)
    # OpenCV drops the axis of a single channel.
    return values.reshape(*values.shape[:2], *array.shape[2:]).view(array.dtype)


def draw_symmetry(seed: int, epoch: int, key: str, flip: float = 0.5, rotate: float = 0.5) -> Symmetry:
    """With probability `flip` a flip; with probability `rotate` a turn by 90, 180 or 270 degrees, equally often."""
    flips, rotates, turn = draw_uniform(seed, epoch, key, "augment", 3)
    return Symmetry(bool(flips < flip), 1 + int(3 * turn) if rotates < rotate else 0)
