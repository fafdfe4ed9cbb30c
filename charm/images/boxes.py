"""AVIF, HEIC and JPEG 2000, files made of boxes: refuses the kinds that their decoders read wrongly."""

import io
import struct
from collections.abc import Iterator

from PIL import AvifImagePlugin, ImageFile, Jpeg2KImagePlugin

from charm.images.headers import TooManyParts
from charm.images.limits import BOUNDS, LIMITS
from charm.images.reasons import Rejected

_MAX_BOXES = 10_000  # encoders write some 20, and a property for each tile
_CODESTREAM = b"\xff\x4f\xff\x51"
_JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"
_GENERAL = {b"mif1", b"msf1"}  # still images, sequences
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", *_GENERAL}
_ENUMERATED, _SRGB, _GREY, _SYCC = 1, 16, 17, 18
_TILE_PART = 14  # bytes of the shortest one

# libavif would start a thread per core, each with memory of its own; readers already run on every core.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def find_boxed_format(data: bytes) -> str | None:
    """Returns the extension of a format made of boxes, as the first bytes show it; None for others."""
    if data.startswith((_JP2_START, _CODESTREAM)):
        return "jp2"
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[place : place + 4] for place in range(16, end, 4))]
    # The general brands say nothing of the coding; those that are compatible do.
    if brands[0] in _AVIF or (brands[0] in _GENERAL and _AVIF & set(brands)):
        return "avif"
    return "heic" if brands[0] in _HEIC else None


def open_avif(data: bytes) -> tuple[ImageFile.ImageFile, int]:
    """Opens an AVIF file; no pixel is decoded yet. Returns its first image, and bits per channel."""
    codes, bits = None, 8
    properties = _find(data, 0, len(data), b"meta", b"iprp", b"ipco")
    for kind, start, end in _read_boxes(data, *properties) if properties else ():
        if kind == b"colr" and data[start : start + 4] == b"nclx" and codes is None and end - start >= 8:
            codes = struct.unpack_from(">HH", data, start + 4)
        elif kind == b"av1C" and end - start >= 3:
            bits = 16 if data[start + 2] & 0x40 else bits  # high_bitdepth, 10 or 12 bits, which Pillow brings to 8
    image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
    if codes is not None and "icc_profile" not in image.info:
        image.info["cicp"] = codes
    return image, bits


def open_heic(data: bytes) -> tuple[ImageFile.ImageFile, int]:
    """Opens a HEIC file as `open_avif` does; raises Rejected("heif") without the package that reads it."""
    try:
        import pillow_heif
    except ModuleNotFoundError:
        raise Rejected("heif") from None
    pillow_heif.options.DECODE_THREADS = 1
    image: ImageFile.ImageFile = pillow_heif.HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    if (codes := image.info.get("nclx_profile")) and not image.info.get("icc_profile"):
        image.info["cicp"] = codes["color_primaries"], codes["transfer_characteristics"]
    return image, 16 if image.info.get("bit_depth", 8) > 8 else 8  # it brings 10 and 12 bits to 16, and colours to 8


def open_jp2(data: bytes) -> tuple[ImageFile.ImageFile, int]:
    """Opens a JPEG 2000 file as `open_avif` does.

    Raises:
        Rejected: mode, for what Pillow reads wrongly: signs, fewer than 8 bits, palettes, other colours than RGB and
            grey, and channels that nothing explains.
    """
    start, header, profile = 0, None, b""
    spaces, has_alpha = [_SRGB], False
    if not data.startswith(_CODESTREAM):
        inside = _find(data, 0, len(data), b"jp2h")
        codestream = _find(data, 0, len(data), b"jp2c")
        if inside is None or codestream is None:
            raise ValueError("no header or no codestream")
        start, spaces = codestream[0], []
        for kind, place, end in _read_boxes(data, *inside):
            if kind == b"ihdr":
                header = struct.unpack_from(">II", data, place)
            elif kind == b"colr" and data[place] == _ENUMERATED:
                spaces.append(struct.unpack_from(">I", data, place + 3)[0])
            elif kind == b"colr":
                profile = data[place + 3 : end]
            elif kind == b"cdef":
                has_alpha = any(data[entry + 2 : entry + 4] == b"\0\1" for entry in range(place + 2, end, 6))
            elif kind == b"pclr":
                raise Rejected("mode")
    width, height, left, top, tile_width, tile_height, tile_left, tile_top, count = struct.unpack_from(
        ">8IH", data, start + 8
    )
    if header not in (None, (height - top, width - left)) or not tile_width * tile_height:
        raise ValueError("two sizes")  # limits are checked against that of the header
    if -(-(width - tile_left) // tile_width) * -(-(height - tile_top) // tile_height) * _TILE_PART > len(data):
        raise ValueError("cut short")
    samples = data[start + 42 : start + 42 + 3 * count : 3]
    is_known = all(space in (_SRGB, _GREY, _SYCC) for space in spaces) and count in ((2, 4) if has_alpha else (1, 3))
    if not is_known or len(set(samples)) != 1 or not 7 <= samples[0] <= 15:
        raise Rejected("mode")
    pixels = (width - left) * (height - top)
    # OpenJPEG takes 4 bytes a sample; a process without the limits of a child is spared them. More pixels: too_large.
    if BOUNDS.megabytes * 10**6 < pixels * (4 * count + 7) and pixels <= LIMITS.max_pixels:
        raise Rejected("memory")
    image = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data))
    if profile:
        image.info["icc_profile"] = profile
    # Pillow brings 9 to 15 bits of grey to 16, and colours to 8.
    return image, 16 if samples[0] > 7 else 8


def _find(data: bytes, start: int, end: int, *path: bytes) -> tuple[int, int] | None:
    """Finds the content of the first box at a path of boxes within each other; returns (start, end) or None."""
    for kind in path:
        found = next(((start, end) for one, start, end in _read_boxes(data, start, end) if one == kind), None)
        if found is None:
            return None
        start, end = found
        start += 4 if kind == b"meta" else 0  # its version
    return start, end


def _read_boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields (kind, start, end) of the content of each box between two places."""
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1:
            size, content = struct.unpack_from(">Q", data, content)[0], content + 8
        last = end if size == 0 else start + size
        if not content <= last <= end:
            return  # what follows is not read; the decoder may find it damaged
        yield kind, content, last
        start = last
    raise TooManyParts(f"more than {_MAX_BOXES} boxes")
