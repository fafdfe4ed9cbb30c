"""Bytes to pixels: the one decoder of every stage, so that image, mask and importance map share one frame."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import GifImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from charm.images import headers
from charm.images.bmp import open_bmp
from charm.images.boxes import find_boxed_format, open_avif, open_heic, open_jp2
from charm.images.colour import find_conversion
from charm.images.convert import array_to_srgb, inks_to_rgb, pillow_to_rgb, turn_upright
from charm.images.limits import LIMITS, Colour, Limits
from charm.images.mending import mend_jpeg, mend_png, strip_padding
from charm.images.reasons import Rejected
from charm.images.tiff import open_tiff, tiff_to_rgb

# Limits, below, are checked before any pixel is decoded and replace Pillow's own, which warns at 89 million.
Image.MAX_IMAGE_PIXELS = None

# How the RAW files of cameras begin that are not plain TIFF: Canon, Olympus, Panasonic, Fujifilm, Sigma, Minolta.
_RAW_STARTS = (b"II\x1a\0\0\0HEAPCCDR", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM")
_STARTS = {
    "jpg": (b"\xff\xd8\xff",),
    "png": (b"\x89PNG\r\n\x1a\n",),
    "tif": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "gif": (b"GIF87a", b"GIF89a"),
}
_MENDINGS = 3  # tries at a JPEG whose scans are padded


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 (H, W, 3), RGB, upright; extension: of the file's true format, without a dot; notes: of NOTES."""

    pixels: np.ndarray
    extension: str
    notes: tuple[str, ...]


def decode_image(data: bytes, limits: Limits = LIMITS, colour: Colour = "srgb") -> Decoded:
    """Decodes an image of an allowed format; JPEG strictly, where other decoders fill damaged parts in silence.

    16 bits become 8, palettes and CMYK become RGB, colours of other spaces become those of sRGB, transparent pixels are
    put on white, EXIF orientation is applied, and of several images in a file the first is taken. CMYK JPEGs are read
    as inverted, as programs write them. Whole files that decoders warn of are read, and noted; a file whose first image
    is only a thumbnail or mask is refused. README.md has the table of what is read, noted and refused.

    Raises:
        Rejected: empty, format, raw, heif, thumbnail, mode, too_many_bytes, too_large, too_long, too_many_parts,
            corrupt.
        MemoryError: says nothing about the file.
    """
    if not data:
        raise Rejected("empty")
    if len(data) > limits.max_bytes:
        raise Rejected("too_many_bytes")
    extension = _find_format(data)
    try:
        if extension == "jpg":
            pixels, notes = _decode_jpeg(data, limits, colour)
        else:
            # Pillow warns about metadata. JPEG, which Pillow does not decode here, goes without the filter: it would
            # hold for all threads.
            with warnings.catch_warnings(action="ignore"):
                pixels, notes = _decode_with_pillow(_OPENERS[extension], data, limits, colour)
    except (Rejected, MemoryError):
        raise
    except headers.TooManyParts:
        raise Rejected("too_many_parts") from None
    except Exception as error:  # the parsers raise many kinds on damaged files
        if "memory" in str(error):  # the C libraries report a lack of memory in words only
            raise MemoryError from error
        raise Rejected("corrupt") from None
    return Decoded(pixels, extension, tuple(notes))


def _find_format(data: bytes) -> str:
    """Returns the extension of the format that the first bytes show; neither the rest nor the name is looked at."""
    is_canon = data[4:12] == b"ftypcrx " or (data[:2] in (b"II", b"MM") and data[8:10] == b"CR")
    if is_canon or data.startswith(_RAW_STARTS):
        raise Rejected("raw")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith(b"BM") and data[15:18] == b"\0\0\0":  # the length of its header, below 256
        return "bmp"
    found = next((extension for extension, starts in _STARTS.items() if data.startswith(starts)), None)
    if extension := found or find_boxed_format(data):
        return extension
    raise Rejected("format")


def _check_size(height: int, width: int, limits: Limits) -> None:
    if height * width > limits.max_pixels:
        raise Rejected("too_large")
    if max(height, width) > limits.max_side:
        raise Rejected("too_long")


def _decode_jpeg(data: bytes, limits: Limits, colour: Colour) -> tuple[np.ndarray, list[str]]:
    """Decodes a JPEG file to upright pixels, uint8 (H, W, 3), and notes."""
    header = headers.read_jpeg_header(data)
    _check_size(header.height, header.width, limits)
    if not header.is_common:
        raise Rejected("mode")
    if header.num_scans > limits.max_scans:
        raise Rejected("too_many_parts")
    if len(data) < header.min_bytes:
        raise Rejected("corrupt")
    try:
        pixels, notes = _decode_strictly(data, header, colour)
    except ValueError as error:
        if "memory" in str(error):
            raise
        pixels, notes = _decode_mended(mend_jpeg(data, str(error)), header, colour)
    pixels, turned = turn_upright(pixels, headers.read_orientation(header.exif))
    return pixels, notes + turned + ["first_frame"] * header.has_more


def _decode_strictly(data: bytes, header: headers.JpegHeader, colour: Colour) -> tuple[np.ndarray, list[str]]:
    """Decodes a JPEG file to pixels as stored, and notes; raises ValueError if libjpeg warns of anything."""
    height, width, kind, _ = simplejpeg.decode_jpeg_header(data)
    if (height, width) != (header.height, header.width):
        raise Rejected("corrupt")  # the limits must have been checked against the sizes that the decoder goes by
    mode = {"CMYK": "CMYK", "YCCK": "CMYK", "Gray": "L"}.get(kind, "RGB")
    said = {"icc_profile": header.profile, "exif": header.exif}
    conversion, notes = find_conversion(said, mode) if colour == "srgb" else (None, [])
    if mode == "CMYK":
        return inks_to_rgb(simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True), conversion), ["cmyk", *notes]
    pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    if conversion is not None:
        pixels = array_to_srgb(pixels, conversion)
    return pixels, ["grey", *notes] if mode == "L" else notes


def _decode_mended(data: bytes, header: headers.JpegHeader, colour: Colour) -> tuple[np.ndarray, list[str]]:
    """Decodes a mended JPEG file as `_decode_strictly` does, without the padding at the ends of scans."""
    for _ in range(_MENDINGS):
        try:
            pixels, notes = _decode_strictly(data, header, colour)
        except ValueError as error:
            data = strip_padding(data, str(error))
        else:
            return pixels, [*notes, "jpeg_warning"]
    raise Rejected("corrupt")


Opened = tuple[ImageFile.ImageFile, int, list[str]]  # no pixel is decoded yet; bits per channel; notes


def _decode_with_pillow(
    opener: Callable[[bytes, Limits], Opened], data: bytes, limits: Limits, colour: Colour
) -> tuple[np.ndarray, list[str]]:
    """Decodes a file of any format but JPEG to upright pixels, uint8 (H, W, 3), and notes."""
    image, bits, notes = opener(data, limits)
    if not isinstance(image, GifImagePlugin.GifImageFile) and getattr(image, "is_animated", False):
        notes = ["first_frame", *notes]
    _check_size(image.height, image.width, limits)
    size = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        pixels, done = tiff_to_rgb(image, colour)
    else:
        pixels, done = pillow_to_rgb(image, bits, colour)
        if image.size != size:  # a HEIC file whose header lies; its limits were checked against the header
            raise Rejected("corrupt")
    return pixels, notes + done


def _open_webp(data: bytes, limits: Limits) -> Opened:
    _check_size(*headers.read_webp_size(data), limits)
    return WebPImagePlugin.WebPImageFile(io.BytesIO(data)), 8, []


def _open_png(data: bytes, limits: Limits) -> Opened:
    header = headers.read_png_header(data)
    _check_size(header.height, header.width, limits)
    if len(data) < header.min_bytes:
        raise Rejected("corrupt")
    mended = mend_png(data)
    image = PngImagePlugin.PngImageFile(io.BytesIO(mended))
    if header.codes is not None:
        image.info["cicp"] = header.codes
    return image, header.bit_depth, ["png_warning"] if mended is not data else []


def _open_bmp(data: bytes, limits: Limits) -> Opened:
    with _refusing_unknown_kinds():
        return open_bmp(data), 8, []


def _open_tiff(data: bytes, limits: Limits) -> Opened:
    with _refusing_unknown_kinds():
        return open_tiff(data), 0, []  # `tiff_to_rgb` reads the bits from its tags


def _open_gif(data: bytes, limits: Limits) -> Opened:
    height, width, has_more = headers.read_gif_size(data)
    _check_size(height, width, limits)
    image = GifImagePlugin.GifImageFile(io.BytesIO(data))
    if image.tile[0].extents != (0, 0, width, height) and "transparency" not in image.info:
        raise Rejected("mode")  # nothing says which colour the rest of its canvas has
    return image, 8, ["first_frame"] * has_more


_OPENERS: dict[str, Callable[[bytes, Limits], Opened]] = {
    "webp": _open_webp,
    "png": _open_png,
    "bmp": _open_bmp,
    "tif": _open_tiff,
    "gif": _open_gif,
    "avif": lambda data, limits: (*open_avif(data), []),
    "heic": lambda data, limits: (*open_heic(data), []),
    "jp2": lambda data, limits: (*open_jp2(data), []),
}


@contextlib.contextmanager
def _refusing_unknown_kinds() -> Iterator[None]:
    """Rejects a file as "mode" where Pillow does not know its kind of pixels, and as "corrupt" where it is damaged."""
    try:
        yield
    except (SyntaxError, OSError) as error:
        is_unknown = str(error).lower().startswith(("unknown", "unsupported")) or isinstance(error.__cause__, KeyError)
        raise Rejected("mode" if is_unknown else "corrupt") from None
