"""The standard input of a vision transformer: a resized image's crop (Charm, appendix 9 and section 18)."""

from dataclasses import dataclass, field

import numpy as np

from charm.inputs.settings import StandardSettings, whole_patches
from charm.inputs.whole import WholeInput, cut_whole, resize
from charm.tokenization.draws import draw_uniform
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens

_LONGEST = 8  # times the shorter side; of longer images only a part is resized


@dataclass(frozen=True)
class StandardInput(WholeInput):
    """Resizes the image and cuts a square crop of it, which may be drawn in training, into a ViT's patches."""

    settings: StandardSettings = field(default_factory=StandardSettings)
    training: bool = True

    @classmethod
    def build(cls, settings: StandardSettings, cutter: CharmTokenizer, training: bool) -> "StandardInput":
        return cls(cutter.patch_size, settings, training)

    @property
    def _crop(self) -> int:
        """Side of the crop in pixels, whole patches."""
        return whole_patches(self.settings.crop, self.patch_size)

    def frame_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the size of the crop, pixels; the same for every image."""
        return self._crop, self._crop

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the crop at the centre."""
        return self._crop_at(image, np.array([0.5, 0.5]))

    def cut(self, image: np.ndarray, seed: int, epoch: int, key: str) -> Tokens:
        """Cuts the crop of training, or of evaluation."""
        if not self.training or self.settings.place == "centre":
            return super().cut(image, seed, epoch, key)
        return cut_whole(self._crop_at(image, draw_uniform(seed, epoch, key, "crop", 2)), self.patch_size)

    def _crop_at(self, image: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Cuts the crop at fractions (y, x) of what is left over beside it."""
        crop, edge = self._crop, self.settings.edge
        if self.settings.resize == "squash":
            resized = resize(image, (max(crop, edge), max(crop, edge)))
        else:
            shortened = _shorten(image, at)
            scale = edge / min(shortened.shape[:2])
            height, width = (max(crop, round(side * scale)) for side in shortened.shape[:2])
            resized = resize(shortened, (height, width))
        top, left = (int(u * (side - crop + 1)) for u, side in zip(at, resized.shape[:2], strict=True))
        return resized[top : top + crop, left : left + crop]


def _shorten(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Cuts the part around the crop out of a strip: 1 x 20000 pixels would be resized to 256 x 5,120,000, 4 GB.

    The crop is later placed at the same fraction `at` of the leftover length, so it shows the same place.
    """
    longest = _LONGEST * min(image.shape[:2])
    top, left = (int(u * max(side - longest, 0)) for u, side in zip(at, image.shape[:2], strict=True))
    return image[top : top + longest, left : left + longest]
