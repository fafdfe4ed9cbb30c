"""Pixels of every kind -> uint8 RGB, upright and opaque: one set of rules for files and for image objects."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from charm.images.colour import Conversion, find_conversion
from charm.images.headers import read_orientation
from charm.images.limits import Colour
from charm.images.reasons import Rejected

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B")  # Pillow's own conversion of them would clip at 255
_ALPHA = ("LA", "PA", "RGBA")
# Pillow's names of the kinds of pixels that it turns into RGB as it should; "F" and "I" it does not.
_MODES = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", *_ALPHA, *_SIXTEEN_BITS}
# Orientation -> (mirror left-right first?, quarter turns counterclockwise after that), EXIF 2.3, tag 274.
_UPRIGHT = {2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1)}


def turn_upright(pixels: np.ndarray, orientation: int) -> tuple[np.ndarray, list[str]]:
    """Turns pixels, (H, W, 3) as stored, upright by their EXIF orientation; returns them with notes."""
    if orientation not in _UPRIGHT:
        return pixels, []
    mirror, turns = _UPRIGHT[orientation]
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirror else pixels, turns)), ["exif_orientation"]


def pillow_to_rgb(image: Image.Image, bits: int, colour: Colour = "srgb") -> tuple[np.ndarray, list[str]]:
    """Converts an image of Pillow to uint8 (H, W, 3), and notes; decodes the image if it is not decoded yet.

    The image is turned by EXIF alone, as in browsers: not by XMP, nor by EXIF in a PNG's text.

    Args:
        image: an image of Pillow, with `info` as its file has it.
        bits: per channel, as in the file.
        colour: as_is leaves colours of other spaces than sRGB as they are.

    Raises:
        Rejected: mode.
    """
    if image.mode not in _MODES:
        raise Rejected("mode")
    if "transparency" in image.info and bits not in (1, 8) and image.mode != "P":
        raise Rejected("mode")  # Pillow compares the transparent colour of 2, 4 or 16 bits with pixels of 8
    image.load()
    conversion, said = find_conversion(image.info, image.mode) if colour == "srgb" else (None, [])
    pixels, notes = _to_rgb(image, bits, conversion)
    # Read only after the pixels: a PNG may have its EXIF behind them.
    exif = image.info.get("exif", b"")
    pixels, turned = turn_upright(pixels, read_orientation(exif) if isinstance(exif, bytes) else 1)
    return pixels, notes + said + turned


def _to_rgb(image: Image.Image, bits: int, conversion: Conversion | None) -> tuple[np.ndarray, list[str]]:
    """Converts an image in any mode of _MODES to uint8 (H, W, 3), and notes."""
    mode = image.mode
    has_alpha = mode in _ALPHA or (mode not in _SIXTEEN_BITS and "transparency" in image.info)
    if has_alpha and isinstance(image.info.get("compression"), int) and image.getextrema()[-1] == (0, 0):
        # A BMP, whose compression is a number: programs leave the fourth byte of a pixel 0 where they do not use it.
        has_alpha, mode = False, "RGB"
        image = image.convert("RGB")
    is_opaque = True
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    # In strips, so that an image of 100 million pixels is in memory twice and not four times.
    for rows in _strips(image.height, image.width):
        is_whole = rows.stop - rows.start == image.height  # an image of one strip is spared the copy of `crop`
        strip = image if is_whole else image.crop((0, rows.start, image.width, rows.stop))
        if mode in _SIXTEEN_BITS:
            strip = Image.fromarray((np.asarray(strip) >> (bits - 8)).astype(np.uint8))
        if has_alpha:
            strip = strip.convert("RGBA")
        if conversion is not None:
            strip = conversion.apply(strip)
        if has_alpha and strip.getchannel("A").getextrema() != (255, 255):
            is_opaque = False
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        pixels[rows] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    done = {
        "grey": mode in ("1", "L", "LA", *_SIXTEEN_BITS),
        "palette": mode in ("P", "PA"),
        "cmyk": mode == "CMYK",
        "lab": mode == "LAB",
        "16_bit": bits > 8,
        "alpha_on_white": not is_opaque,
    }
    return pixels, [note for note, is_done in done.items() if is_done]


def array_to_srgb(pixels: np.ndarray, conversion: Conversion) -> np.ndarray:
    """Converts the colours of RGB, uint8 (H, W, 3), to sRGB."""
    converted = np.empty_like(pixels)
    for rows in _strips(*pixels.shape[:2]):
        converted[rows] = np.asarray(conversion.apply(Image.fromarray(pixels[rows])))
    return converted


def inks_to_rgb(inks: np.ndarray, conversion: Conversion | None) -> np.ndarray:
    """Converts inks, uint8 (H, W, 4), 255 = no ink, to RGB, uint8 (H, W, 3): without a profile colour times black.

    The conversion, of a profile of inks, says more of them than the product does.
    """
    pixels = np.empty((*inks.shape[:2], 3), np.uint8)
    for rows in _strips(*inks.shape[:2]):
        strip = Image.frombytes("CMYK", inks[rows].shape[1::-1], (255 - inks[rows]).tobytes())
        pixels[rows] = np.asarray(conversion.apply(strip) if conversion else strip.convert("RGB"))
    return pixels


def _strips(height: int, width: int) -> Iterator[slice]:
    """Yields slices of rows, of some four million pixels each."""
    step = max(1, 2**22 // width)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def resize_bicubic(image: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Resizes uint8 (H, W) or (H, W, 3) as Pillow does: bicubic, averaging where it shrinks."""
    if image.shape[:2] == image_hw:
        return image
    return np.asarray(Image.fromarray(image).resize(image_hw[::-1], Image.Resampling.BICUBIC))
