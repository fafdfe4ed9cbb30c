"""Bytes to pixels: the one decoder of every stage, so that image, mask and importance map share one frame."""

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import BmpImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from charm.images.headers import (
    TooManyParts,
    check_png,
    read_jpeg_header,
    read_orientation,
    read_png_header,
    read_webp_size,
)
from charm.images.reasons import REASONS

# Limits, below, are checked before any pixel is decoded and replace Pillow's own, which warns at 89 million.
Image.MAX_IMAGE_PIXELS = None

EXTENSIONS = ("bmp", "jpg", "png", "tif", "webp")  # of the allowed formats
MAX_PIXELS = 100_000_000

_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_ORIENTATION = 258, 262, 274
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B")
_ALPHA = ("LA", "PA", "RGBA")
# Pillow's names of the kinds of pixels that it turns into RGB as it should; "F", "I" and "LAB" it does not.
_MODES = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", *_ALPHA, *_SIXTEEN_BITS}
# Orientation -> (mirror left-right first?, quarter turns counterclockwise after that), EXIF 2.3, tag 274.
_UPRIGHT = {2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1)}


class Rejected(Exception):
    """An image that cannot be used; `reason` is a key of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason


@dataclass(frozen=True)
class Limits:
    """What a file may ask for before any of its pixels is decoded."""

    max_pixels: int = MAX_PIXELS
    max_bytes: int = 400_000_000  # 100 million pixels of 4 channels, not compressed
    max_side: int = 65_500  # pixels; the longest side of a JPEG
    max_scans: int = 64  # of a JPEG; encoders make 10 to 20, and each is a pass over all pixels


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 (H, W, 3), RGB, upright; extension: of the file's true format, without a dot; notes: of NOTES."""

    pixels: np.ndarray
    extension: str
    notes: tuple[str, ...]


def decode_image(data: bytes, limits: Limits = Limits()) -> Decoded:
    """Decodes an image of an allowed format; JPEG strictly, where other decoders fill damaged parts in silence.

    16 bits become 8, palettes and CMYK become RGB, transparent pixels are put on white, EXIF orientation is applied,
    and of several images in a file the first is taken. CMYK JPEGs are read as inverted, as programs write them.

    Raises:
        Rejected: empty, format, mode, too_many_bytes, too_large, too_long, too_many_parts, corrupt.
        MemoryError: says nothing about the file.
    """
    if not data:
        raise Rejected("empty")
    if len(data) > limits.max_bytes:
        raise Rejected("too_many_bytes")
    extension = _find_format(data)
    try:
        if extension == "jpg":
            pixels, orientation, notes = _decode_jpeg(data, limits)
        else:
            pixels, orientation, notes = _decode_other(data, extension, limits)
    except (Rejected, MemoryError):
        raise
    except TooManyParts:
        raise Rejected("too_many_parts") from None
    except Exception as error:  # the parsers raise many kinds on damaged files
        if "memory" in str(error):  # as the C libraries say it
            raise MemoryError from error
        raise Rejected("corrupt") from None
    if orientation in _UPRIGHT:
        mirror, turns = _UPRIGHT[orientation]
        pixels = np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirror else pixels, turns))
        notes.append("exif_orientation")
    return Decoded(pixels, extension, tuple(notes))


def _find_format(data: bytes) -> str:
    """The extension of the format that the first bytes are of. Nothing is guessed from the rest, nor from the name."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tif"
    if data.startswith(b"BM") and data[15:18] == b"\0\0\0":  # the length of its header, below 256
        return "bmp"
    raise Rejected("format")


def _check_size(height: int, width: int, limits: Limits) -> None:
    if height * width > limits.max_pixels:
        raise Rejected("too_large")
    if max(height, width) > limits.max_side:
        raise Rejected("too_long")


def _decode_jpeg(data: bytes, limits: Limits) -> tuple[np.ndarray, int, list[str]]:
    """Pixels as stored, their orientation, and notes."""
    header = read_jpeg_header(data)
    _check_size(header.height, header.width, limits)
    if not header.is_common:
        raise Rejected("mode")
    if header.num_scans > limits.max_scans:
        raise Rejected("too_many_parts")
    if len(data) < header.min_bytes:
        raise Rejected("corrupt")
    height, width, kind, _ = simplejpeg.decode_jpeg_header(data)
    if (height, width) != (header.height, header.width):
        raise Rejected("corrupt")  # the limits must have been checked against the sizes that the decoder goes by
    orientation = read_orientation(header.exif)
    if kind in ("CMYK", "YCCK"):
        inks = simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True)
        return _inks_to_rgb(inks), orientation, ["cmyk"]
    pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    return pixels, orientation, ["grey"] if kind == "Gray" else []


def _inks_to_rgb(inks: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4), 255 = no ink, -> uint8 (H, W, 3): each colour times black, rounded as Pillow rounds it."""
    pixels = np.empty((*inks.shape[:2], 3), np.uint8)
    for rows in _strips(*inks.shape[:2]):
        product = inks[rows, :, :3].astype(np.uint16) * inks[rows, :, 3:] + np.uint16(128)
        pixels[rows] = (product >> 8) + product >> 8
    return pixels


def _decode_other(data: bytes, extension: str, limits: Limits) -> tuple[np.ndarray, int, list[str]]:
    """Pixels as stored (of TIFF upright already), their orientation, and notes."""
    with warnings.catch_warnings(action="ignore"):  # about metadata
        image, bits = _open_image(data, extension, limits)
        _check_size(image.height, image.width, limits)
        if image.mode not in _MODES:
            raise Rejected("mode")
        notes = ["first_frame"] if getattr(image, "is_animated", False) else []
        orientation = read_orientation(image.info.get("exif", b""))
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            orientation = 1  # Pillow turns TIFFs while it loads them
            if image.tag_v2.get(_TIFF_ORIENTATION) in _UPRIGHT:
                notes.append("exif_orientation")
        image.load()
        pixels, done = _to_rgb(image, bits)
        return pixels, orientation, notes + done


def _open_image(data: bytes, extension: str, limits: Limits) -> tuple[ImageFile.ImageFile, int]:
    """The image, no pixel decoded yet, and its bits per channel."""
    file = io.BytesIO(data)
    if extension == "webp":
        _check_size(*read_webp_size(data), limits)
        return WebPImagePlugin.WebPImageFile(file), 8
    if extension == "png":
        header = read_png_header(data)
        _check_size(header.height, header.width, limits)
        if len(data) < header.min_bytes:
            raise Rejected("corrupt")
        check_png(data)
        return PngImagePlugin.PngImageFile(file), header.bit_depth
    try:
        return (BmpImagePlugin.BmpImageFile(file), 8) if extension == "bmp" else _open_tiff(file)
    except (SyntaxError, OSError) as error:  # how Pillow says that it does not know a kind of pixels or compression
        is_unknown = str(error).lower().startswith(("unknown", "unsupported")) or isinstance(error.__cause__, KeyError)
        raise Rejected("mode" if is_unknown else "corrupt") from None


def _open_tiff(file: io.BytesIO) -> tuple[TiffImagePlugin.TiffImageFile, int]:
    image = TiffImagePlugin.TiffImageFile(file)
    bits = max(image.tag_v2.get(_TIFF_BITS, (1,)))
    if bits > 8 and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0:
        raise Rejected("mode")  # grey with white as 0, which Pillow turns round up to 8 bits only
    return image, bits


def _to_rgb(image: Image.Image, bits: int) -> tuple[np.ndarray, list[str]]:
    """uint8 (H, W, 3) of any mode of _MODES, and notes."""
    mode = image.mode
    has_alpha = mode in _ALPHA or (mode not in _SIXTEEN_BITS and "transparency" in image.info)
    is_opaque = True
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    # In strips, so that an image of 100 million pixels is in memory twice and not four times.
    for rows in _strips(image.height, image.width):
        is_whole = rows.stop - rows.start == image.height  # then spared a copy
        strip = image if is_whole else image.crop((0, rows.start, image.width, rows.stop))
        if mode in _SIXTEEN_BITS:  # which Pillow's own conversion would clip at 255
            pixels[rows] = (np.asarray(strip) >> (bits - 8)).astype(np.uint8)[..., None]
            continue
        if has_alpha:
            strip = strip.convert("RGBA")
            if strip.getchannel("A").getextrema() != (255, 255):
                is_opaque = False
                strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        pixels[rows] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    done = {
        "grey": mode in ("1", "L", "LA", *_SIXTEEN_BITS),
        "palette": mode in ("P", "PA"),
        "cmyk": mode == "CMYK",
        "16_bit": bits > 8,
        "alpha_on_white": not is_opaque,
    }
    return pixels, [note for note, is_done in done.items() if is_done]


def _strips(height: int, width: int) -> Iterator[slice]:
    """Slices of rows, of some four million pixels each."""
    step = max(1, 2**22 // width)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))
