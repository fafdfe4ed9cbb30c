"""The input of a learnt resizer: the image on a small square, and planes of what is lost on the way there.

MULLER (Tu, Milanfar, Talebi, ICCV 2023; subject of the patent application US 2024/0331091) adds band-passed detail to a
bilinear resize R: with x_k = G x_(k-1), G a Gaussian of 5 taps, y = R x + sum_k tanh(a_k R (x_k - x_(k-1)) + b_k). All
that depends on the whole image is linear and is made here; the model learns a_k and b_k (charm.model.resizer).
"""

from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from charm.inputs.settings import MullerSettings, whole_patches
from charm.inputs.whole import WholeInput, take_patches
from charm.tokenization.tokens import RESIDUAL_UNIT, Tokens

LAYERS = 2  # K, band-passed planes
_TAPS = cv2.getGaussianKernel(5, 1.0, cv2.CV_32F)
_BORDERS = {"zero": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}


@dataclass(frozen=True)
class MullerInput(WholeInput):
    """Resizes an image to a square without averaging, as the original does, with a plane per layer besides."""

    settings: MullerSettings = field(default_factory=MullerSettings)

    num_residuals = LAYERS
    turned_first = True  # the planes with it

    def frame_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the size of the square, pixels; the same for every image."""
        edge = whole_patches(self.settings.edge, self.patch_size)
        return edge, edge

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the square, before anything is added to it."""
        return cv2.resize(image, self.frame_hw((1, 1)), interpolation=cv2.INTER_LINEAR)

    def cut(self, image: np.ndarray, seed: int, epoch: int, key: str) -> Tokens:
        """Cuts the square; `residuals` are the planes, a layer's three channels together."""
        tokens = super().cut(image, seed, epoch, key)
        planes = [
            take_patches(np.rint(plane / RESIDUAL_UNIT).astype(np.int16), tokens.patch_coord, self.patch_size)
            for plane in measure_bands(image, self.frame_hw((1, 1)), self.settings.border)
        ]
        return replace(tokens, residuals=np.concatenate(planes, axis=-1))


def measure_bands(image: np.ndarray, image_hw: tuple[int, int], border: str) -> list[np.ndarray]:
    """Returns the resized differences of successive blurs of uint8 (H, W, 3), float32 (h, w, 3) on 0..1 each.

    The border is "zero", as the original's, of which every border is an edge, or "reflect".
    """
    sharp: np.ndarray = image.astype(np.float32) / 255
    bands = []
    for _ in range(LAYERS):
        blurred = cv2.sepFilter2D(sharp, -1, _TAPS, _TAPS, borderType=_BORDERS[border])
        bands.append(cv2.resize(blurred - sharp, image_hw[::-1], interpolation=cv2.INTER_LINEAR))
        sharp = blurred
    return bands
