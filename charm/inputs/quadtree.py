"""Patches of several sizes, small where the image has detail: mixed-resolution tokenization with an exact budget.

Ronen, Levy, Golbert, "Vision Transformers with Mixed-Resolution Tokenization", CVPRW 2023, with their pixel-blur score.
They squash images to 256 x 256 first (`edge: 256`); at native size it is a rival of Charm that draws nothing.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from charm.inputs.naflex import fit_budget
from charm.inputs.settings import QuadtreeSettings
from charm.inputs.whole import BudgetInput, join_scales, resize, take_patches
from charm.tokenization.geometry import fit_to_grid, fitted_hw
from charm.tokenization.tokens import Tokens


@dataclass(frozen=True)
class QuadtreeInput(BudgetInput):
    """Starts with the largest patches and splits the one that loses most when it is shown in p x p pixels.

    It goes on as long as there is room: a split replaces a patch by its four quarters, so that l or up to two fewer
    tokens are used. An image of which the largest patches alone exceed l is downscaled until they do not.
    """

    settings: QuadtreeSettings = field(default_factory=QuadtreeSettings)

    @property
    def num_scales(self) -> int:  # type: ignore[override]
        return self.settings.levels

    @property
    def _root(self) -> int:
        """Side of the largest patches, pixels."""
        return self.patch_size << (self.settings.levels - 1)

    def frame_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Returns the size, pixels, of an image of this size after fitting to whole largest patches."""
        height, width = fitted_hw(self._sized(image_hw), self._root)
        if height * width > self.budget * self._root**2:
            height, width = (side * self._root for side in fit_budget(image_hw, self.budget))
        return height, width

    def _sized(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        return (self.settings.edge,) * 2 if self.settings.edge else image_hw

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the image cropped or padded to whole largest patches; resized with an edge, or if it is too large."""
        image_hw = (image.shape[0], image.shape[1])
        sized, target = self._sized(image_hw), self.frame_hw(image_hw)
        if fitted_hw(sized, self._root) != target:
            return resize(image, target)
        return fit_to_grid(image if sized == image_hw else resize(image, sized), self._root)

    def length(self, image_hw: tuple[int, int]) -> int:
        roots, finest = (height * width for height, width in (self.grids(image_hw)[0], self.grids(image_hw)[-1]))
        return min(finest, roots + (self.budget - roots) // 3 * 3)

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns the grid of each size of patches, largest first, as in `Tokens.grids`, from the size alone."""
        height, width = (side // self._root for side in self.frame_hw(image_hw))
        return tuple((height << level, width << level) for level in range(self.settings.levels))

    def cut(self, image: np.ndarray, seed: int, epoch: int, key: str) -> Tokens:
        """Cuts the leaves of the tree, small patches first; nothing is drawn at random."""
        frame, levels = self.frame(image), self.settings.levels
        shown = [frame]  # finest first
        for _ in range(levels - 1):
            height, width = shown[-1].shape[:2]
            shown.append(cv2.resize(shown[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
        shown.reverse()
        losses = [measure_loss(frame, small, self.patch_size) for small in shown[:-1]]
        splits = choose_splits(losses, (self.budget - losses[0].size) // 3)
        is_leaf = [~splits[0]]
        for above, below in zip(splits, [*splits[1:], None], strict=True):
            children = above.repeat(2, axis=0).repeat(2, axis=1)
            is_leaf.append(children if below is None else children & ~below)
        scales = []
        for level in range(levels - 1, -1, -1):
            places = np.argwhere(is_leaf[level])
            scales.append((level, take_patches(shown[level], places, self.patch_size), places))
        return join_scales(scales, [(len(leaf), leaf.shape[1]) for leaf in is_leaf])


def measure_loss(frame: np.ndarray, small: np.ndarray, patch_size: int) -> np.ndarray:
    """Measures how much each patch of uint8 (H, W, 3) loses that is shown in p x p pixels of uint8 (H / s, W / s, 3).

    That is sqrt(mean squared error x side), the side being that of the patch in the frame, s p pixels. Returns float64
    (H / s / p, W / s / p).
    """
    height, width = frame.shape[:2]
    blurred = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    difference = cv2.absdiff(frame, blurred)
    error = cv2.multiply(difference, difference, dtype=cv2.CV_32F)
    grid_hw = (small.shape[0] // patch_size, small.shape[1] // patch_size)
    # An area average by a whole number is the mean of each patch; of three channels, which are averaged last.
    means = cv2.resize(error, grid_hw[::-1], interpolation=cv2.INTER_AREA).reshape(*grid_hw, 3)
    loss: np.ndarray = np.sqrt(means.mean(axis=2, dtype=np.float64) * (height // grid_hw[0]))
    return loss


def choose_splits(losses: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Chooses the patches that `count` splits fall on, the highest loss first, among patches that are there by then.

    A patch of the second size is there once its root is split. So the splits are those of the highest keys, a root's
    loss, or for a quarter the smaller of its own and its root's; of equal keys the root's comes first, then the higher
    loss, then the raster order. No heap is needed.

    The losses are float (h, w) of the largest patches, and (2h, 2w) of their quarters if these may be split, too.
    Returns a bool array for each of them, True where a patch is split.
    """
    keys = [losses[0]]
    for loss in losses[1:]:
        keys.append(np.minimum(loss, keys[-1].repeat(2, axis=0).repeat(2, axis=1)))
    flat, own = (np.concatenate([array.ravel() for array in arrays]) for arrays in (keys, losses))
    level = np.repeat(np.arange(len(losses)), [loss.size for loss in losses])
    order = np.lexsort((np.arange(len(flat)), -own, level, -flat))[: max(count, 0)]
    split = np.zeros(len(flat), bool)
    split[order] = True
    ends = np.cumsum([loss.size for loss in losses])[:-1]
    return [part.reshape(loss.shape) for part, loss in zip(np.split(split, ends), losses, strict=True)]
