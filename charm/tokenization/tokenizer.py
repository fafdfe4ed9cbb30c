"""Charm tokenization: an image becomes a short sequence of patches of two or three scales (Charm, section 3.2.1)."""

from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Self, overload

import numpy as np

from charm.images.arrays import as_array, check_mask
from charm.runtime.schema import check_fields
from charm.tokenization import settings as kinds
from charm.tokenization.augment import IDENTITY, Symmetry, turn_tokens
from charm.tokenization.budget import AreaSeen, count_detailed, keep_tokens, measure_area
from charm.tokenization.draws import draw_subset
from charm.tokenization.geometry import Layout, cell_sides, fit_to_grid, plan_layout
from charm.tokenization.importance import IMPORTANCE
from charm.tokenization.selection import Draw, judge_saliency, pool_saliency, select_patches
from charm.tokenization.tokens import TokenBatch, Tokens, gather_patches, stack_tokens


@dataclass(frozen=True)
class CharmTokenizer:
    """Turns images into `Tokens`.

    An image of at most `max_seq_len` patches is tokenized whole. Of a larger one, some coarse patches of
    `coarse_patch_size` pixels are cut into native patches and the others are downscaled (charm.tokenization.geometry
    has the counts). How many are native is the `budget`:

        fixed   256 native tokens, as published: 64, 28 or 16 coarse patches for a coarse_ratio of 2, 3 or 4 (three
                scales: 16, and 16 more at the middle scale). Tokens beyond max_seq_len are dropped, a shorter sequence
                is padded.
        fill    as many as max_seq_len has room for, (l - num_coarse) // (n * n - 1) with two scales (three scales: as
                many native as middle, then what still fits). The few places left, too few for one more coarse patch,
                show single native patches of a downscaled one besides it, so that the sequence has exactly
                max_seq_len tokens, nothing dropped and nothing padded. An image whose coarse tokens alone exceed
                max_seq_len gets no native patch, and coarse ones are dropped: give it a larger max_seq_len, a larger
                coarse_ratio, or budget="share".
        share   native (and middle) tokens take the share `native_share` of max_seq_len, or more where `fill` has room
                for more; coarse tokens take the rest, dropped uniformly among themselves.

    Args:
        patch_size: p, pixels; the backbone's.
        coarse_ratio: n = p' / p, how many times the coarsest scale is downscaled: 2, 3 or 4 (2 with three scales).
        num_scales: 2 or 3.
        max_seq_len: l, tokens.
        selection: which patches are shown in detail, a key of charm.tokenization.selection.SELECTIONS.
        threshold: t >= 1, size of the pool of important patches in multiples of the number chosen.
        budget: "fixed", "fill" or "share".
        native_share: of max_seq_len, in (0, 1]; for budget="share".
        drop: which tokens go when there are too many: "uniform" (the paper) or "low_first", coarser ones first.
        fit: how the image meets its grid, "nearest" or "pad" (charm.tokenization.geometry.fit_to_grid).
        saliency_coverage: share of a coarse patch that the saliency mask must cover, in (0, 1].
        redraw: "epoch" draws patches anew each epoch, "once" keeps the first draw (Charm, table 7).

    Raises:
        ValueError: a setting is out of its range.
    """

    patch_size: kinds.PatchSize = 14
    coarse_ratio: kinds.CoarseRatio = 2
    num_scales: kinds.NumScales = 2
    max_seq_len: kinds.SeqLen = 512
    selection: kinds.Selection = "random"
    threshold: kinds.Threshold = 2.0
    budget: kinds.Budget = "fixed"
    native_share: kinds.Share = 0.5
    drop: kinds.Drop = "uniform"
    fit: kinds.Fit = "nearest"
    saliency_coverage: kinds.Coverage = 0.5
    redraw: kinds.Redraw = "epoch"
    sides: tuple[int, ...] = field(init=False, repr=False, compare=False)

    draws = True
    pixel_bytes = 1
    num_residuals = 0

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "sides", cell_sides(self.num_scales, self.coarse_ratio))

    @property
    def reads(self) -> str | None:
        """The importance map that the selection needs, which is the name of its column; None if chance decides."""
        return None if self.selection == "random" else self.selection

    @property
    def coarse_patch_size(self) -> int:
        """p', pixels: the side of the patches that are selected."""
        return self.sides[-1] * self.patch_size

    def layout(self, image_hw: tuple[int, int]) -> Layout:
        """Returns the sizes and grids of an image of this size, (height, width) in pixels."""
        return plan_layout(image_hw, self.patch_size, self.sides, self.max_seq_len, self.fit)

    def grids(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns the grids that `Tokens.grids` will have, from the size alone."""
        return self._all_grids(self.layout(image_hw))

    def _all_grids(self, layout: Layout) -> tuple[tuple[int, int], ...]:
        """Returns a grid for every scale, (0, 0) for a scale that the layout does not use."""
        return ((0, 0),) * (self.num_scales - len(layout.grids)) + layout.grids

    def length(self, image_hw: tuple[int, int]) -> int:
        """Returns the number of tokens, without padding, of an image of this size; known from the size alone."""
        layout = self.layout(image_hw)
        total, selected = self.count_tokens(layout), sum(self.count_detailed(layout.num_coarse))
        # Other budgets than `fixed` fill the places that are left, while there is a coarse patch to fill them from.
        fills = len(layout.cell_sides) > 1 and self.budget != "fixed" and selected < layout.num_coarse
        return self.max_seq_len if fills else min(total, self.max_seq_len)

    def count_tokens(self, layout: Layout) -> int:
        """Returns the number of tokens before any is dropped because it exceeds max_seq_len."""
        if len(layout.cell_sides) == 1:
            return layout.num_coarse
        detailed = self.count_detailed(layout.num_coarse)
        counts = (*detailed, layout.num_coarse - sum(detailed))  # of coarse patches, native first
        return sum(count * side**2 for count, side in zip(counts, self.sides[::-1], strict=True))

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Returns the image that patches are cut from: fitted to its grid, not resized. (H, W, 3) or a mask (H, W)."""
        selects = self.cutter((image.shape[0], image.shape[1])) is not None
        return fit_to_grid(image, self.coarse_patch_size if selects else self.patch_size, self.fit)

    def cutter(self, image_hw: tuple[int, int]) -> Self | None:
        """Returns the tokenizer itself, or None for an image so small that it is tokenized whole."""
        return self if len(self.layout(image_hw).cell_sides) > 1 else None

    def count_detailed(self, num_coarse: int) -> tuple[int, ...]:
        """Returns how many of `num_coarse` coarse patches are shown at each finer scale, native first."""
        return count_detailed(num_coarse, self.sides, self.max_seq_len, self.budget, self.native_share)

    def of_step(self, seed: int, epoch: int, step: int) -> Self:
        """Returns the tokenizer itself: a training step draws nothing for all of its images."""
        return self

    def area_seen(self, image_hw: tuple[int, int]) -> AreaSeen:
        """Returns how much of the area of an image of this size is seen natively, downscaled and not at all.

        Of the image as it is fitted to its grid; known from the size alone.

        >>> [round(fraction, 2) for fraction in CharmTokenizer(max_seq_len=512).area_seen((3024, 4032))]
        [0.0, 0.03, 0.97]
        """
        layout = self.layout(image_hw)
        if len(layout.cell_sides) == 1:
            return AreaSeen(1.0, 0.0, 0.0)
        counts = self.count_detailed(layout.num_coarse)
        counts += (layout.num_coarse - sum(counts),)
        return measure_area(counts, self.sides[::-1], self.max_seq_len, self.budget, self.drop)

    @overload
    def __call__(self, image: list[Any] | tuple[Any, ...], **arguments: Any) -> TokenBatch: ...

    @overload
    def __call__(
        self,
        image: Any,
        *,
        importance: np.ndarray | None = None,
        saliency_mask: np.ndarray | None = None,
        seed: int = 0,
        epoch: int = 0,
        key: str = "",
        symmetry: Symmetry = IDENTITY,
    ) -> Tokens: ...

    def __call__(self, image: Any, **arguments: Any) -> Tokens | TokenBatch:
        """Tokenizes an image, or a list of images to a batch.

        Args:
            image: an image of any size from 1 x 1: numpy uint8 (H, W, 3) RGB, PIL, or torch uint8 (3, H, W) RGB. For a
                list or tuple, every argument but seed and epoch is one, too; keys are "0", "1", ... if none are given.
            importance: float (grid_h, grid_w), one score per coarse patch of the image fitted to its coarse grid
                (charm.score_patches). Computed when None. Not used by "random" and "saliency".
            saliency_mask: bool (H, W), True on the salient object. Needed by selection="saliency".
            seed, epoch, key: all random draws are a function of these alone.
            symmetry: flip and turn applied to the tokens. Importance and mask are those of the image as it is given,
                and the same patches are shown under every symmetry.

        Raises:
            ValueError: an array is not as described.

        >>> image = np.zeros((480, 640, 3), np.uint8)
        >>> tokens = CharmTokenizer(patch_size=14, max_seq_len=512)(image, key="photo-1")
        >>> tokens.patches.shape, tokens.seq_len, tokens.grids
        ((512, 14, 14, 3), 512, ((17, 23), (34, 46)))
        >>> CharmTokenizer(max_seq_len=64)([image, image[:100]]).patches.shape
        (2, 64, 14, 14, 3)
        """
        if isinstance(image, list | tuple):
            arguments.setdefault("key", [str(index) for index in range(len(image))])
            shared = {name: arguments.pop(name) for name in ("seed", "epoch") if name in arguments}
            for name, values in arguments.items():
                if not isinstance(values, list | tuple) or len(values) != len(image):
                    raise ValueError(f"{name}: expected a list of {len(image)}, one for each image")
            own = [dict(zip(arguments, values, strict=True)) for values in zip(*arguments.values(), strict=True)]
            return stack_tokens([self._tokenize(one, **mine, **shared) for one, mine in zip(image, own, strict=True)])
        return self._tokenize(image, **arguments)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that `CharmTokenizer` was built with, defaults included."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.init}

    def _tokenize(
        self,
        image: Any,
        *,
        importance: np.ndarray | None = None,
        saliency_mask: np.ndarray | None = None,
        seed: int = 0,
        epoch: int = 0,
        key: str = "",
        symmetry: Symmetry = IDENTITY,
    ) -> Tokens:
        image = as_array(image)
        for name, array in (("importance", importance), ("saliency_mask", saliency_mask)):
            if array is not None and not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is {type(array).__name__}: expected a numpy array")
        layout = self.layout((image.shape[0], image.shape[1]))
        if len(layout.cell_sides) == 1:
            y, x = np.divmod(np.arange(layout.num_coarse), layout.coarse_grid_hw[1])
            return turn_tokens(self._assemble(image, [(y, x)], layout), symmetry)
        scores = self._score(image, layout, importance, saliency_mask)
        draw = partial(draw_subset, seed, epoch if self.redraw == "epoch" else 0, key)
        return turn_tokens(self._assemble(image, self._choose(layout, scores, draw), layout), symmetry)

    def judge_mask(self, saliency_mask: np.ndarray) -> str:
        """Tells whether the mask, bool (H, W), is of an "object", a "small" one, or "empty" (judge_saliency)."""
        return judge_saliency(self._fit_mask(saliency_mask), self.coarse_patch_size, self.saliency_coverage)

    def _fit_mask(self, saliency_mask: np.ndarray) -> np.ndarray:
        return fit_to_grid(saliency_mask.view(np.uint8), self.coarse_patch_size, self.fit).view(bool)

    def _score(
        self, image: np.ndarray, layout: Layout, importance: np.ndarray | None, saliency_mask: np.ndarray | None
    ) -> np.ndarray:
        """Returns the importance of each coarse patch, float32 (N,) in raster order; unset values for "random"."""
        if self.selection == "random":
            return np.empty(layout.num_coarse, np.float32)
        if self.selection == "saliency":
            if saliency_mask is None:
                raise ValueError('selection="saliency" needs saliency_mask, bool (H, W)')
            check_mask(saliency_mask, layout.image_hw)
            return pool_saliency(self._fit_mask(saliency_mask), self.coarse_patch_size, self.saliency_coverage).ravel()
        if importance is None:
            fitted = fit_to_grid(image, self.coarse_patch_size, self.fit)
            return IMPORTANCE[self.selection](fitted, self.coarse_patch_size).ravel()
        if importance.shape != layout.coarse_grid_hw:
            raise ValueError(
                f"importance is {importance.shape}: expected {layout.coarse_grid_hw}, one score per coarse patch of "
                f"{self.coarse_patch_size} pixels of an image of {layout.image_hw}"
            )
        if not np.isfinite(importance).all():
            raise ValueError("importance has values that are not finite")
        return np.asarray(importance, np.float32).ravel()

    def _choose(self, layout: Layout, scores: np.ndarray, draw: Draw) -> list[tuple[np.ndarray, np.ndarray]]:
        """Chooses the tokens to show at each scale, native first; returns their coordinates (y, x)."""
        counts = self.count_detailed(layout.num_coarse)
        cells = select_patches(self.selection, scores, counts, draw, self.threshold)
        rest = np.ones(layout.num_coarse, bool)
        rest[np.concatenate(cells)] = False
        cells.append(np.flatnonzero(rest))
        sides = self.sides[::-1]
        total = sum(len(cell) * side**2 for cell, side in zip(cells, sides, strict=True))
        coords = [_subdivide(cell, layout.coarse_grid_hw[1], side) for cell, side in zip(cells, sides, strict=True)]
        if total > self.max_seq_len:
            # `share` has reserved the places of native tokens: only coarse tokens are dropped.
            drop = "low_first" if self.budget == "share" else self.drop
            kept = keep_tokens([len(y) for y, _ in coords], self.max_seq_len, drop, draw)
            return [(y[keep], x[keep]) for (y, x), keep in zip(coords, kept, strict=True)]
        downscaled = np.concatenate(cells[:0:-1])
        if total < self.max_seq_len and self.budget != "fixed" and len(downscaled):
            # The places left are too few for one more coarse patch: they show some native patches of a downscaled one.
            found = select_patches(self.selection, scores[downscaled], (1,), draw, self.threshold, "extra")
            extra = _subdivide(downscaled[found[0]], layout.coarse_grid_hw[1], sides[0])
            y, x = (
                np.concatenate([axis, more[: self.max_seq_len - total]])
                for axis, more in zip(coords[0], extra, strict=True)
            )
            coords[0] = (y, x)
        return coords

    def _assemble(self, image: np.ndarray, coords: list[tuple[np.ndarray, np.ndarray]], layout: Layout) -> Tokens:
        """Cuts the patches of each scale, native first, and pads the sequence to max_seq_len."""
        length, size = self.max_seq_len, self.patch_size
        tokens = Tokens(
            patches=np.empty((length, size, size, 3), np.uint8),
            patch_coord=np.zeros((length, 2), np.int32),
            scale_id=np.zeros(length, np.uint8),
            patch_valid=np.zeros(length, bool),
            grids=self._all_grids(layout),
        )
        start = 0
        for below_native, (y, x) in enumerate(coords):
            if len(y) == 0:
                continue
            stop = start + len(y)
            side = layout.cell_sides[-1 - below_native]
            gather_patches(image, layout, y, x, side, out=tokens.patches[start:stop])
            tokens.patch_coord[start:stop, 0] = y
            tokens.patch_coord[start:stop, 1] = x
            tokens.scale_id[start:stop] = self.num_scales - 1 - below_native
            start = stop
        tokens.patches[start:] = 0
        tokens.patch_valid[:start] = True
        return tokens


def _subdivide(cells: np.ndarray, grid_w: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists the side * side tokens of each coarse patch: indices (N,) -> y, x (N * side * side,) on the finer grid."""
    row, column = np.divmod(cells, grid_w)
    within_y, within_x = np.divmod(np.arange(side * side), side)
    return (row[:, None] * side + within_y).ravel(), (column[:, None] * side + within_x).ravel()
