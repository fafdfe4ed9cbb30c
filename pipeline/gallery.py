"""The pictures of the report: which patches each strategy keeps native, why, and what the model gets to see."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import simplejpeg

from charm.baselines import Tokenizer
from charm.draws import name_by_pixels
from charm.geometry import fit_to_grid
from charm.importance import score_patches
from charm.selection import SELECTIONS
from charm.tokenizer import CharmTokenizer
from charm.tokens import Tokens
from pipeline.saliency.mbd import detect

SHOWN_EDGE = 480  # pixels, longest edge of a shown picture
DETAIL_HW = (336, 448)  # pixels, largest window that is shown at native size where the whole picture is downscaled
JPEG_QUALITY = 85
SHADE = 150  # alpha, 0..255, laid over what is not native; 128 left bright skies as bright as native patches
UNITS = {"frequency": "log power", "gradient": "Sobel magnitude", "entropy": "bits"}


@dataclass(frozen=True)
class Scored:
    """One row of predictions.csv; scores on the scale of 0..1."""

    key: str
    name: str
    target: float
    predicted: float


@dataclass(frozen=True)
class View:
    """What one strategy makes of a picture. Paths and images are in the frame of the fitted picture.

    Attributes:
        selection: key of SELECTIONS; "" where nothing has to be selected.
        num_native, num_tokens: tokens at native resolution, and at any.
        num_outlined: coarse patches that hold native tokens.
        outlines: SVG path around these, then around those of each coarser scale but the coarsest.
        shade: data URI of an overlay, one pixel per native patch, that darkens what is not native.
        importance: data URI of the heat map or saliency mask; "" where chance alone decides.
        importance_range: what its darkest and brightest colours stand for.
        seen: data URI of the picture rebuilt from its tokens.
        detail: data URI of a window of it at native size; "" where `seen` is.
    """

    selection: str
    num_native: int
    num_tokens: int
    seen: str
    num_outlined: int = 0
    outlines: tuple[str, ...] = ()
    shade: str = ""
    importance: str = ""
    importance_range: tuple[str, str] = ("", "")
    detail: str = ""


@dataclass(frozen=True)
class Shown:
    """A picture of the gallery.

    Attributes:
        scored: its name and scores.
        image_hw, fitted_hw, seen_hw: pixels, as packed, as fitted to the grid, and as rebuilt from tokens.
        num_coarse: coarse patches of the whole picture.
        photo: data URI of the fitted picture.
        window: (y, x, height, width), pixels, what `View.detail` shows of the fitted picture; None without detail.
        views: one per strategy, or a single one where nothing has to be selected.
    """

    scored: Scored
    image_hw: tuple[int, int]
    fitted_hw: tuple[int, int]
    seen_hw: tuple[int, int]
    num_coarse: int
    photo: str
    window: tuple[int, int, int, int] | None
    views: tuple[View, ...]


def choose_pictures(
    scored: Sequence[Scored], image_hws: Sequence[tuple[int, int]], tokenizer: Tokenizer, count: int
) -> list[Scored]:
    """At most `count` pictures at evenly spaced ranks of the true score, lowest and highest included.

    Only of those that are tokenized at several scales, if there are any: of the others there is nothing to select.
    """
    large = [
        row
        for row, image_hw in zip(scored, image_hws, strict=True)
        if isinstance(tokenizer, CharmTokenizer) and len(tokenizer.layout(image_hw).cell_sides) > 1
    ]
    ranked = sorted(large or scored, key=lambda row: (row.target, row.key))
    ranks = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [ranked[rank] for rank in ranks]


def show_picture(
    scored: Scored, picture: np.ndarray, tokenizer: Tokenizer, seed: int, saliency_mask: np.ndarray | None = None
) -> Shown:
    """Tokenizes a picture, uint8 (H, W, 3), as the evaluation's first draw does, by every strategy that there is.

    saliency_mask: bool (H, W); None = that of the detector without weights.
    """
    image_hw, key = (picture.shape[0], picture.shape[1]), name_by_pixels(picture)
    if not isinstance(tokenizer, CharmTokenizer):
        return _show_whole(scored, picture, tokenizer(picture, seed=seed, key=key))
    layout = tokenizer.layout(image_hw)
    if len(layout.cell_sides) == 1:
        fitted = fit_to_grid(picture, tokenizer.patch_size, tokenizer.fit)
        return _show_whole(scored, fitted, tokenizer(picture, seed=seed, key=key), image_hw)

    fitted = fit_to_grid(picture, tokenizer.coarse_patch_size, tokenizer.fit)
    if saliency_mask is None:
        saliency_mask = detect(picture)
    window = None
    if max(layout.fitted_hw) > SHOWN_EDGE:
        tokens = tokenizer(picture, saliency_mask=saliency_mask, seed=seed, key=key)
        outlined = mark_cells(tokens, tokenizer.num_scales - 1, tokenizer.sides[-1])
        window = choose_window(outlined, tokenizer.coarse_patch_size)
    views = []
    for selection in SELECTIONS:
        strategy = replace(tokenizer, selection=selection)
        importance = None
        if selection in UNITS:
            importance = score_patches(picture, selection, tokenizer.coarse_patch_size, tokenizer.fit)
        tokens = strategy(picture, importance=importance, saliency_mask=saliency_mask, seed=seed, key=key)
        fitted_mask = fit_to_grid(saliency_mask.astype(np.uint8), tokenizer.coarse_patch_size, tokenizer.fit)
        views.append(_view_tokens(strategy, tokens, importance, fitted_mask, window))
    photo = encode_jpeg(shrink(fitted))
    return Shown(scored, image_hw, layout.fitted_hw, layout.fitted_hw, layout.num_coarse, photo, window, tuple(views))


def _show_whole(scored: Scored, fitted: np.ndarray, tokens: Tokens, image_hw: tuple[int, int] | None = None) -> Shown:
    """A picture of which no patch has to be selected."""
    seen = tokens.to_image()
    fitted_hw, seen_hw = (fitted.shape[0], fitted.shape[1]), (seen.shape[0], seen.shape[1])
    view = View("", tokens.seq_len, tokens.seq_len, encode_jpeg(shrink(seen)))
    return Shown(scored, image_hw or fitted_hw, fitted_hw, seen_hw, 0, encode_jpeg(shrink(fitted)), None, (view,))


def _view_tokens(
    tokenizer: CharmTokenizer,
    tokens: Tokens,
    importance: np.ndarray | None,
    fitted_mask: np.ndarray,
    window: tuple[int, int, int, int] | None,
) -> View:
    """The view of a picture that has several scales; fitted_mask is uint8 (H, W) of 0 and 1."""
    native = tokenizer.num_scales - 1
    cells = [mark_cells(tokens, scale, tokenizer.sides[scale]) for scale in range(native, 0, -1)]
    heat, heat_range = "", ("", "")
    if importance is not None:
        heat = encode_heat(importance)
        heat_range = (f"{importance.min():.3g}", f"{importance.max():.3g} {UNITS[tokenizer.selection]}")
    elif tokenizer.selection == "saliency":
        heat = encode_heat(shrink(fitted_mask))
        heat_range = ("background", f"object, {fitted_mask.mean():.0%} of the picture")
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


def mark_cells(tokens: Tokens, scale: int, side: int = 1) -> np.ndarray:
    """Cells of side * side patches that hold a token of a scale: bool (h / side, w / side), the scale's grid (h, w)."""
    grid_h, grid_w = tokens.grids[scale]
    marked = np.zeros((grid_h // side, grid_w // side), bool)
    y, x = tokens.patch_coord[tokens.patch_valid & (tokens.scale_id == scale)].T // side
    marked[y, x] = True
    return marked


def trace_cells(marked: np.ndarray, cell_size: int) -> str:
    """SVG path of a square of cell_size pixels around each True of a bool (h, w)."""
    return "".join(
        f"M{x * cell_size} {y * cell_size}h{cell_size}v{cell_size}h-{cell_size}z" for y, x in np.argwhere(marked)
    )


def choose_window(marked: np.ndarray, cell_size: int) -> tuple[int, int, int, int]:
    """A window of whole cells, (y, x, height, width) in pixels, of which as near to half as can be is marked.

    At most DETAIL_HW; there native and downscaled patches can be compared.
    """
    height, width = (
        min(max(1, limit // cell_size), cells) for limit, cells in zip(DETAIL_HW, marked.shape, strict=True)
    )
    counts = np.lib.stride_tricks.sliding_window_view(marked, (height, width)).sum(axis=(2, 3))
    y, x = np.unravel_index(np.abs(counts - height * width / 2).argmin(), counts.shape)
    return int(y) * cell_size, int(x) * cell_size, height * cell_size, width * cell_size


def shrink(image: np.ndarray, shown_edge: int = SHOWN_EDGE) -> np.ndarray:
    """Downscales (H, W) or (H, W, 3) to a longest edge of `shown_edge` pixels; never enlarges."""
    scale = shown_edge / max(image.shape[:2])
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def encode_jpeg(image: np.ndarray) -> str:
    """Data URI of uint8 (H, W, 3), RGB."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=JPEG_QUALITY, colorsubsampling="420")
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def encode_heat(values: np.ndarray) -> str:
    """Data URI of (h, w), one pixel per value, from the lowest (dark blue) to the highest (yellow)."""
    return embed_png(paint_heat(values))


def paint_heat(values: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3), RGB, of (h, w): from the lowest (dark blue) to the highest (yellow)."""
    low, high = float(values.min()), float(values.max())
    levels = np.rint((values - low) * (255 / (high - low if high > low else 1))).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def encode_shade(native: np.ndarray) -> str:
    """Data URI of a black overlay for bool (h, w): transparent where True."""
    overlay = np.zeros((*native.shape, 4), np.uint8)
    overlay[..., 3] = np.where(native, 0, SHADE)
    return embed_png(overlay)


def embed_png(image: np.ndarray) -> str:
    """Data URI of uint8 (h, w, 3), RGB, or (h, w, 4), RGBA."""
    return f"data:image/png;base64,{base64.b64encode(encode_png(image)).decode()}"


def encode_png(image: np.ndarray) -> bytes:
    """A file, of uint8 (h, w, 3), RGB, or (h, w, 4), RGBA."""
    order = cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    return cv2.imencode(".png", cv2.cvtColor(image, order))[1].tobytes()
