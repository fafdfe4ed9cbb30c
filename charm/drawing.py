"""Drawings of an image as a model sees it, shared by the report, the page and `charm show`."""

import base64

import cv2
import numpy as np
import simplejpeg

from charm.tokenization.tokens import Tokens

SHOWN_EDGE = 480  # pixels, longest edge of a shown image
JPEG_QUALITY = 85
SHADE = 150  # alpha, 0..255, over all but native patches; 128 left bright skies as bright as native patches
UNITS = {"frequency": "log power", "gradient": "Sobel magnitude", "entropy": "bits"}


def mark_cells(tokens: Tokens, scale: int, side: int = 1) -> np.ndarray:
    """Marks cells of side * side patches that hold a token of a scale of grid (h, w): bool (h / side, w / side)."""
    grid_h, grid_w = tokens.grids[scale]
    marked = np.zeros((grid_h // side, grid_w // side), bool)
    y, x = tokens.patch_coord[tokens.patch_valid & (tokens.scale_id == scale)].T // side
    marked[y, x] = True
    return marked


def trace_cells(marked: np.ndarray, cell_size: int) -> str:
    """Returns the SVG path of a square of cell_size pixels around each True of a bool (h, w)."""
    return "".join(
        f"M{x * cell_size} {y * cell_size}h{cell_size}v{cell_size}h-{cell_size}z" for y, x in np.argwhere(marked)
    )


def shrink(image: np.ndarray, shown_edge: int = SHOWN_EDGE) -> np.ndarray:
    """Downscales (H, W) or (H, W, 3) to a longest edge of `shown_edge` pixels; never enlarges."""
    scale = shown_edge / max(image.shape[:2])
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def encode_jpeg(image: np.ndarray) -> str:
    """Encodes uint8 (H, W, 3), RGB, as a data URI of a JPEG file."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=JPEG_QUALITY, colorsubsampling="420")
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def encode_heat(values: np.ndarray) -> str:
    """Encodes (h, w) as a data URI of one pixel per value, from the lowest (dark blue) to the highest (yellow)."""
    return embed_png(paint_heat(values))


def paint_heat(values: np.ndarray) -> np.ndarray:
    """Colours values, (h, w), from the lowest (dark blue) to the highest (yellow): uint8 (h, w, 3), RGB."""
    low, high = float(values.min()), float(values.max())
    levels = np.rint((values - low) * (255 / (high - low if high > low else 1))).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def encode_shade(native: np.ndarray) -> str:
    """Encodes bool (h, w) as a data URI of a black overlay, transparent where True."""
    overlay = np.zeros((*native.shape, 4), np.uint8)
    overlay[..., 3] = np.where(native, 0, SHADE)
    return embed_png(overlay)


def embed_png(image: np.ndarray) -> str:
    """Encodes uint8 (h, w, 3), RGB, or (h, w, 4), RGBA, as a data URI of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(encode_png(image)).decode()}"


def encode_png(image: np.ndarray) -> bytes:
    """Encodes uint8 (h, w, 3), RGB, or (h, w, 4), RGBA, as the bytes of a PNG file."""
    order = cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    return cv2.imencode(".png", cv2.cvtColor(image, order))[1].tobytes()
