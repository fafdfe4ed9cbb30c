"""The images of the report: what each strategy keeps native and the model gets to see, and masks that may be wrong."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from charm.drawing import SHOWN_EDGE, UNITS, encode_heat, encode_jpeg, encode_shade, mark_cells, shrink, trace_cells
from charm.inputs.protocol import Input
from charm.saliency.mbd import detect
from charm.tokenization.draws import pixel_key
from charm.tokenization.importance import IMPORTANCE
from charm.tokenization.selection import SELECTIONS
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens
from pipeline.importance.make import read_coverages
from pipeline.shards.columns import ColumnReader, read_column_facts
from pipeline.shards.read import ShardReader

SHOWN_MASKS = 6  # of a kind
MASK_EDGE = 240  # pixels
DIMMED = 0.3  # of the light that what is not salient keeps
DETAIL_HW = (336, 448)  # pixels, largest window that is shown at native size where the whole image is downscaled


@dataclass(frozen=True)
class Scored:
    """One row of predictions.csv; scores on the scale of the labels, `raw` before it was clipped to it."""

    key: str
    name: str
    target: float
    predicted: float
    raw: float


@dataclass(frozen=True)
class View:
    """What one strategy makes of an image. Paths and images are in the frame of the fitted image."""

    selection: str  # key of SELECTIONS; "" where nothing has to be selected
    # num_native, num_tokens: tokens at native resolution, and at any
    num_native: int
    num_tokens: int
    seen: str  # data URI of the image rebuilt from its tokens
    num_outlined: int = 0  # coarse patches that hold native tokens
    outlines: tuple[str, ...] = ()  # SVG path around these, then around those of each coarser scale but the coarsest
    shade: str = ""  # data URI of an overlay, one pixel per native patch, that darkens what is not native
    importance: str = ""  # data URI of the heat map or saliency mask; "" where chance alone decides
    importance_range: tuple[str, str] = ("", "")  # what its darkest and brightest colours stand for
    detail: str = ""  # data URI of a window of it at native size; "" where `seen` is


@dataclass(frozen=True)
class Shown:
    """An image of the gallery."""

    scored: Scored  # its name and scores
    # image_hw, fitted_hw, seen_hw: pixels, as packed, as fitted to the grid, and as rebuilt from tokens
    image_hw: tuple[int, int]
    fitted_hw: tuple[int, int]
    seen_hw: tuple[int, int]
    num_coarse: int  # coarse patches of the whole image
    photo: str  # data URI of the fitted image
    # (y, x, height, width), pixels, what `View.detail` shows of the fitted image; None without detail
    window: tuple[int, int, int, int] | None
    views: tuple[View, ...]  # one per strategy, or a single one where nothing has to be selected


def choose_images(
    scored: Sequence[Scored],
    image_hws: Sequence[tuple[int, int]],
    scenes: Sequence[str],
    tokenizer: Input,
    count: int,
) -> list[Scored]:
    """Chooses at most `count` images at evenly spaced ranks of the true score, or near them where the scene is another.

    Only of those that are tokenized at several scales, if there are any: of the others there is nothing to select.
    """
    rows = list(zip(scored, image_hws, scenes, strict=True))
    large = [row for row in rows if tokenizer.cutter(row[1]) is not None]
    ranked = sorted(large or rows, key=lambda row: (row[0].target, row[0].key))
    shown: Counter[str] = Counter()
    chosen: list[int] = []
    count = min(count, len(ranked))
    spacing = (len(ranked) - 1) / max(1, count - 1)
    for wanted in np.linspace(0, len(ranked) - 1, count).round():
        near = np.arange(len(ranked))[abs(np.arange(len(ranked)) - wanted) <= spacing / 2]
        left = [int(place) for place in near if place not in chosen]
        place = min(left, key=lambda place: (shown[ranked[place][2]], abs(place - wanted)))
        chosen.append(place)
        shown[ranked[place][2]] += 1
    return [ranked[place][0] for place in sorted(chosen)]


def show_image(
    scored: Scored, image: np.ndarray, tokenizer: Input, seed: int, saliency_mask: np.ndarray | None = None
) -> Shown:
    """Tokenizes an image, uint8 (H, W, 3), as the evaluation's first draw does, by every strategy that there is.

    saliency_mask: bool (H, W); None = that of the detector without weights.
    """
    image_hw, key = (image.shape[0], image.shape[1]), pixel_key(image)
    frame, cutter = tokenizer.frame(image), tokenizer.cutter(image_hw)
    if cutter is None:
        return _show_whole(scored, frame, tokenizer(image, seed=seed, key=key), image_hw)

    frame_mask = tokenizer.frame((detect(image) if saliency_mask is None else saliency_mask).astype(np.uint8))
    frame_hw, window = (frame.shape[0], frame.shape[1]), None
    if max(frame_hw) > SHOWN_EDGE:
        tokens = cutter(frame, saliency_mask=frame_mask.view(bool), seed=seed, key=key)
        outlined = mark_cells(tokens, cutter.num_scales - 1, cutter.sides[-1])
        window = choose_window(outlined, cutter.coarse_patch_size)
    views = []
    for selection in SELECTIONS:
        strategy = replace(cutter, selection=selection)
        importance = IMPORTANCE[selection](frame, cutter.coarse_patch_size) if selection in UNITS else None
        tokens = strategy(frame, importance=importance, saliency_mask=frame_mask.view(bool), seed=seed, key=key)
        views.append(_view_tokens(strategy, tokens, importance, frame_mask, window))
    num_coarse = cutter.layout(frame_hw).num_coarse
    return Shown(scored, image_hw, frame_hw, frame_hw, num_coarse, encode_jpeg(shrink(frame)), window, tuple(views))


def _show_whole(scored: Scored, fitted: np.ndarray, tokens: Tokens, image_hw: tuple[int, int]) -> Shown:
    """Shows an image of which no patch has to be selected."""
    seen = tokens.to_image()
    fitted_hw, seen_hw = (fitted.shape[0], fitted.shape[1]), (seen.shape[0], seen.shape[1])
    view = View("", tokens.seq_len, tokens.seq_len, encode_jpeg(shrink(seen)))
    return Shown(scored, image_hw, fitted_hw, seen_hw, 0, encode_jpeg(shrink(fitted)), None, (view,))


def _view_tokens(
    tokenizer: CharmTokenizer,
    tokens: Tokens,
    importance: np.ndarray | None,
    fitted_mask: np.ndarray,
    window: tuple[int, int, int, int] | None,
) -> View:
    """Draws the view of an image that has several scales; fitted_mask is uint8 (H, W) of 0 and 1."""
    native = tokenizer.num_scales - 1
    cells = [mark_cells(tokens, scale, tokenizer.sides[scale]) for scale in range(native, 0, -1)]
    heat, heat_range = "", ("", "")
    if importance is not None:
        heat = encode_heat(importance)
        heat_range = (f"{importance.min():.3g}", f"{importance.max():.3g} {UNITS[tokenizer.selection]}")
    elif tokenizer.selection == "saliency":
        heat = encode_heat(shrink(fitted_mask))
        heat_range = ("background", f"object, {fitted_mask.mean():.0%} of the image")
    seen = tokens.to_image()
    detail = ""
    if window is not None:
        y, x, height, width = window
        detail = encode_jpeg(np.ascontiguousarray(seen[y : y + height, x : x + width]))
    return View(
        selection=tokenizer.selection,
        num_native=int((tokens.patch_valid & (tokens.scale_id == native)).sum()),
        num_tokens=tokens.seq_len,
        num_outlined=int(cells[0].sum()),
        outlines=tuple(trace_cells(marked, tokenizer.coarse_patch_size) for marked in cells),
        shade=encode_shade(mark_cells(tokens, native)),
        importance=heat,
        importance_range=heat_range,
        seen=encode_jpeg(shrink(seen)),
        detail=detail,
    )


def choose_window(marked: np.ndarray, cell_size: int) -> tuple[int, int, int, int]:
    """Returns a window of whole cells, (y, x, height, width) in pixels, of which about half is marked.

    At most DETAIL_HW; there native and downscaled patches can be compared.
    """
    height, width = (
        min(max(1, limit // cell_size), cells) for limit, cells in zip(DETAIL_HW, marked.shape, strict=True)
    )
    counts = np.lib.stride_tricks.sliding_window_view(marked, (height, width)).sum(axis=(2, 3))
    y, x = np.unravel_index(np.abs(counts - height * width / 2).argmin(), counts.shape)
    return int(y) * cell_size, int(x) * cell_size, height * cell_size, width * cell_size


@dataclass(frozen=True)
class ShownMask:
    """name: of the image; coverage: 0..1, 0 = empty; image: data URI of the image, dimmed off the object."""

    name: str
    coverage: float
    image: str


@dataclass(frozen=True)
class ContactSheet:
    """facts: column.json; groups: what they have in common -> masks, those that exist of each."""

    facts: dict[str, Any]
    groups: dict[str, list[ShownMask]]


def make_contact_sheet(folder: Path, images: ShardReader, names: Mapping[str, str]) -> ContactSheet:
    """Draws the masks in `folder` of largest and of smallest coverage, and images without a salient object."""
    facts = read_column_facts(folder)
    coverages = read_coverages(folder)
    ranked = sorted((key for key in coverages if coverages[key] > 0), key=lambda key: (coverages[key], key))
    chosen = {
        "Largest": ranked[::-1][:SHOWN_MASKS],
        "Smallest": ranked[: max(0, len(ranked) - SHOWN_MASKS)][:SHOWN_MASKS],  # none twice
        "Empty": sorted(key for key in coverages if coverages[key] == 0)[:SHOWN_MASKS],
    }
    column = ColumnReader(folder, images)

    def show(key: str) -> ShownMask:
        image = dim(images.read_image(key), column.read_mask(key))
        return ShownMask(names.get(key, key), coverages[key], encode_jpeg(image))

    return ContactSheet(facts, {title: [show(key) for key in keys] for title, keys in chosen.items() if keys})


def dim(image: np.ndarray, saliency_mask: np.ndarray) -> np.ndarray:
    """Returns a small copy of an image, uint8 (H, W, 3), that is dark where a mask, bool (H, W), is False.

    An empty mask dims nothing: then the whole image counts as salient.
    """
    small = shrink(image, MASK_EDGE)
    if not saliency_mask.any():
        return small
    share = shrink(saliency_mask.astype(np.uint8) * 255, MASK_EDGE) / 255
    return np.asarray(np.rint(small * (DIMMED + (1 - DIMMED) * share)[..., None]), np.uint8)
