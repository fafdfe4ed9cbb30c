"""Bytes to pixels: the one decoder of every stage, so that picture, mask and importance map share one frame."""

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from pipeline.reasons import REASONS

# The limit below is checked before any pixel is decoded and replaces Pillow's own, which warns at 89 million.
Image.MAX_IMAGE_PIXELS = None

# Pillow's name of a format -> extension. MPO, a JPEG with further pictures behind it, is opened as JPEG.
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif"}
# Pillow opens a format by name only where its plugin has been imported; those of JPEG, PNG and BMP it imports itself.
_OPENED_AS = ["JPEG", "PNG", "BMP", WebPImagePlugin.WebPImageFile.format, TiffImagePlugin.TiffImageFile.format]
MAX_PIXELS = 100_000_000

_EXIF_ORIENTATION = 0x0112
# Orientation -> (mirror left-right first?, quarter turns counterclockwise after that), EXIF 2.3, tag 274.
_UPRIGHT = {2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1)}


class Rejected(Exception):
    """A picture that cannot be used; `reason` is a key of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 (H, W, 3), RGB, upright; extension: of the file's true format, without a dot."""

    pixels: np.ndarray
    extension: str


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decodes a picture of an allowed format; JPEG strictly, where other decoders fill damaged parts in silence.

    16 bits become 8, palettes and CMYK become RGB, transparent pixels are put on white, EXIF orientation is applied.

    Raises:
        Rejected: empty, format, too_large, corrupt.
    """
    if not data:
        raise Rejected("empty")
    try:
        picture = Image.open(io.BytesIO(data), formats=_OPENED_AS)
    except UnidentifiedImageError:
        raise Rejected("format") from None
    except Exception:  # Pillow's parsers raise many kinds on damaged headers
        raise Rejected("corrupt") from None
    if picture.width * picture.height > max_pixels:
        raise Rejected("too_large")
    extension = EXTENSIONS[str(picture.format)]
    try:
        orientation = picture.getexif().get(_EXIF_ORIENTATION, 1) if "exif" in picture.info else 1
        if extension == "jpg" and picture.mode in ("RGB", "L"):
            pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
        else:
            pixels = _to_rgb(picture)
    except Exception:
        raise Rejected("corrupt") from None
    mirror, turns = _UPRIGHT.get(orientation, (False, 0))
    if mirror or turns:
        pixels = np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirror else pixels, turns))
    return Decoded(pixels, extension)


def _to_rgb(picture: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3) of any Pillow mode."""
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion would clip at 255
        grey = (np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.asarray(picture.convert("RGB"))
