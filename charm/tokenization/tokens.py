"""An image as tokens: patches with their place and scale."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from charm.tokenization.geometry import Layout, cut_window

ARRAYS = ("patches", "patch_coord", "scale_id", "patch_valid")  # of Tokens, an entry per token; all inputs have them
RESIDUAL_UNIT = 1 / 32767  # of Tokens.residuals, on the scale of 0..1


@dataclass(frozen=True)
class Tokens:
    """An image as a sequence of L = max_seq_len patches: native ones first, then coarser ones, then padding.

    Attributes:
        patches: uint8 (L, p, p, 3), RGB; zero where padding. float32 on the same scale where downscaling overshoots it.
        patch_coord: int32 (L, 2), (y, x) of the patch on the grid of its scale; zero where padding.
        scale_id: uint8 (L,), 0 = coarsest .. num_scales - 1 = native resolution; zero where padding.
        patch_valid: bool (L,), False where padding.
        grids: number of tokens (height, width) that would cover the image at each scale, coarsest first; (0, 0) for
            a scale that the image does not use.
        pos_grids: grid of the position embeddings at each scale, which repeats where it is smaller than that of
            `grids`, as for tiles that are embedded each for itself (AnyRes); None = `grids`.
        carried_coord: int32 (L, 2), the places whose position embeddings the tokens carry; None = their own.
        residuals: int16 (L, p, p, 3 K), K images beside the patches that a model mixes with them, in RESIDUAL_UNITs;
            None for most inputs.
    """

    patches: np.ndarray
    patch_coord: np.ndarray
    scale_id: np.ndarray
    patch_valid: np.ndarray
    grids: tuple[tuple[int, int], ...]
    pos_grids: tuple[tuple[int, int], ...] | None = None
    carried_coord: np.ndarray | None = None
    residuals: np.ndarray | None = None

    @property
    def seq_len(self) -> int:
        """Number of tokens without padding."""
        return int(self.patch_valid.sum())

    @property
    def pos_coord(self) -> np.ndarray:
        """int32 (L, 2), (y, x) of each token on its grid of `pos_grids`."""
        own = self.patch_coord if self.carried_coord is None else self.carried_coord
        if self.pos_grids is None:
            return own
        coord: np.ndarray = own % np.array(self.pos_grids, np.int32)[self.scale_id]
        return coord

    def to_image(self, fill: int = 127) -> np.ndarray:
        """Draws the fitted image as the model sees it: uint8 (H, W, 3), coarser patches enlarged, `fill` where dropped.

        >>> from charm import CharmTokenizer
        >>> image = np.full((100, 140, 3), 200, np.uint8)
        >>> CharmTokenizer(max_seq_len=70)(image).to_image().shape
        (98, 140, 3)
        """
        patch_size = self.patches.shape[1]
        height, width = (side * patch_size for side in self.grids[-1])
        image = np.full((height, width, 3), fill, np.uint8)
        for scale, (grid_h, grid_w) in enumerate(self.grids):
            at_scale = self.patch_valid & (self.scale_id == scale)
            if not at_scale.any():
                continue
            y, x = self.patch_coord[at_scale].T
            canvas = np.zeros((grid_h, patch_size, grid_w, patch_size, 3), np.uint8)
            canvas[y, :, x] = self.patches[at_scale].clip(0, 255)
            shown = np.zeros((grid_h, grid_w), np.uint8)
            shown[y, x] = 1
            at_scale_image = canvas.reshape(grid_h * patch_size, grid_w * patch_size, 3)
            enlarged = cv2.resize(at_scale_image, (width, height), interpolation=cv2.INTER_NEAREST)
            where = cv2.resize(shown, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
            image[where] = enlarged[where]
        return image


def pad_tokens(tokens: Tokens, length: int) -> Tokens:
    """Returns the same tokens with padding up to `length`."""
    missing = length - len(tokens.patch_valid)

    def pad(array: np.ndarray) -> np.ndarray:
        return np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)])

    names = ARRAYS if tokens.carried_coord is None else (*ARRAYS, "carried_coord")
    padded: dict[str, Any] = {name: pad(getattr(tokens, name)) for name in names}
    return replace(tokens, **padded)


def gather_patches(image: np.ndarray, layout: Layout, y: np.ndarray, x: np.ndarray, side: int, out: np.ndarray) -> None:
    """Copies the patches of one scale out of an image that is not fitted to its grid yet.

    The fitted image itself would be a copy of the whole image, of which only the border differs.

    Args:
        image: uint8 (H, W, 3).
        layout: of the image.
        y, x: integer (T,), on the grid of the scale.
        side: tokens along a side of a coarse patch at this scale; one of layout.cell_sides.
        out: uint8 (T, p, p, 3).
    """
    patch_size, native = out.shape[1], layout.cell_sides[-1]
    (top, left), row = layout.origin, row_type(patch_size)
    rows = out.reshape(-1, patch_size, 3 * patch_size).view(row)[..., 0]
    # Area averages never reach across the border of a coarse patch: whole images and single patches scale alike.
    if side == native:
        rows[...] = _gather_squares(image, top + y * patch_size, left + x * patch_size, patch_size)
    elif native % side == 0:
        scaled = _downscale_fitted(image, layout, native // side)
        grid_w = scaled.shape[1] // patch_size
        index = (y[:, None] * patch_size + np.arange(patch_size)) * grid_w + x[:, None]
        np.take(scaled.reshape(-1, 3 * patch_size).view(row)[:, 0], index, out=rows, mode="clip")
    else:
        # The middle scale shows few coarse patches, and its ratio (4 : 3) is slow: 5 ms for the whole of 1024 x 768.
        size, smaller = native * patch_size, side * patch_size
        cells, cell = np.unique(np.stack([y // side, x // side]), axis=1, return_inverse=True)
        squares = _gather_squares(image, top + cells[0] * size, left + cells[1] * size, size)
        pile = squares.view(np.uint8).reshape(-1, size, 3)
        scaled = cv2.resize(pile, (smaller, len(squares) * smaller), interpolation=cv2.INTER_AREA)
        parts = scaled.reshape(-1, 3 * patch_size).view(row).reshape(-1, side, patch_size, side)
        rows[...] = parts[cell, y % side, :, x % side]


def _downscale_fitted(image: np.ndarray, layout: Layout, ratio: int) -> np.ndarray:
    """Downscales the fitted image to uint8 (H' / ratio, W' / ratio, 3); pads only coarse patches at a border."""
    (height, width), (top, left) = layout.fitted_hw, layout.origin
    scaled = np.empty((height // ratio, width // ratio, 3), np.uint8)
    rows, columns = (
        _split_axis(side, fitted, coarse)
        for side, fitted, coarse in zip(layout.image_hw, layout.fitted_hw, layout.coarse_grid_hw, strict=True)
    )
    for (y, end_y), (x, end_x) in itertools.product(rows, columns):
        window = cut_window(image, (top + y, left + x), (end_y - y, end_x - x))
        target = scaled[y // ratio : end_y // ratio, x // ratio : end_x // ratio]
        cv2.resize(window, target.shape[1::-1], dst=target, interpolation=cv2.INTER_AREA)
    return scaled


def _split_axis(side: int, fitted: int, num_coarse: int) -> list[tuple[int, int]]:
    """Splits an axis of a fitted image, in pixels, into its first coarse patch, the inner ones and its last."""
    cell = fitted // num_coarse
    borders = {0, fitted} if side >= fitted else {0, cell, fitted - cell, fitted}
    return list(itertools.pairwise(sorted(borders)))


def _gather_squares(image: np.ndarray, top: np.ndarray, left: np.ndarray, size: int) -> np.ndarray:
    """Copies squares of `size` pixels, (T, size) of `row_type`; beyond the border of the image its edge repeats."""
    if image.strides[1:] != (3, 1):  # pixels of a row do not follow each other, as in a mirrored view
        image = np.ascontiguousarray(image)
    height, width = image.shape[:2]
    if width < size:
        image = cv2.copyMakeBorder(image, 0, 0, 0, size - width, cv2.BORDER_REPLICATE)
        width = size
    # Rows begin at any pixel of the image, so that the elements overlap.
    shape, strides = (height, width - size + 1, 3 * size), (image.strides[0], 3, 1)
    rows = np.lib.stride_tricks.as_strided(image, shape, strides, writeable=False).view(row_type(size))[..., 0]
    inside = np.clip(left, 0, width - size)
    squares: np.ndarray = rows[np.clip(top[:, None] + np.arange(size), 0, height - 1), inside[:, None]]
    beyond = left - inside  # pixels to the right of the image, below 0 to the left of it
    for columns in np.unique(beyond[beyond != 0]):  # seldom more than one number for each border
        at = beyond == columns
        pile = squares[at].view(np.uint8).reshape(-1, size, 3)
        most = max(1 - size, min(int(columns), size - 1))
        moved = cut_window(pile, (0, most), (len(pile), size))
        squares[at] = moved.reshape(-1, 3 * size).view(squares.dtype).reshape(-1, size)
    return squares


def row_type(size: int) -> np.dtype[np.void]:
    """Returns the dtype of `size` RGB pixels of a row as one element, which numpy copies at once."""
    return np.dtype((np.void, 3 * size))


@dataclass(frozen=True)
class TokenBatch:
    """B images as tokens: the arrays of `Tokens` with a leading axis B, and the grids of each image."""

    patches: np.ndarray
    patch_coord: np.ndarray
    scale_id: np.ndarray
    patch_valid: np.ndarray
    grids: list[tuple[tuple[int, int], ...]]


def stack_tokens(samples: Sequence[Tokens]) -> TokenBatch:
    """Stacks images of one tokenizer, whose sequences are of one length, to a batch.

    Raises ValueError if there is no sample, or one has positions or residuals that a batch does not hold.
    """
    if not samples:
        raise ValueError("a batch needs at least one image, got none")
    held = ("pos_grids", "carried_coord", "residuals")
    if any(getattr(sample, name) is not None for sample in samples for name in held):
        raise ValueError(f"a batch holds none of {', '.join(held)}: score these images with a CharmScorer")
    arrays = {name: np.stack([getattr(sample, name) for sample in samples]) for name in ARRAYS}
    return TokenBatch(**arrays, grids=[sample.grids for sample in samples])
