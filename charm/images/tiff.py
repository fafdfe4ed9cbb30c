"""TIFF: finds the directory that holds the image, and refuses the kinds of pixels that Pillow decodes wrongly."""

import io
import struct
from typing import Any

import numpy as np
from PIL import ImageFile, ImagePalette, TiffImagePlugin

from charm.images.convert import pillow_to_rgb
from charm.images.limits import Colour
from charm.images.reasons import Rejected

_NEW_SUBFILE, _SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_FILL_ORDER, _ORIENTATION, _SAMPLES, _PLANES, _COLOR_MAP = 266, 274, 277, 284, 320
_SUB_DIRECTORIES, _INK_SET, _EXTRA = 330, 332, 338
_SAMPLE_FORMAT, _SUBSAMPLING, _REFERENCE_BLACK_WHITE, _DNG_VERSION = 339, 530, 532, 50706
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # TIFF's type -> struct's
_MAX_DIRECTORIES = 64  # RAW files have up to 10; a scan of many pages has its own image first
_MAX_ENTRIES = 4096  # of a directory; cameras write some 60
_MAX_VALUES = 64  # of an entry: bits of samples, places of SubIFDs
_READ = {_NEW_SUBFILE, _SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _SUB_DIRECTORIES, _EXTRA}
_READ |= {_DNG_VERSION}

_SENSOR = {32803, 34892}  # photometric: colour filter array, linear raw (DNG 1.7)
# Codings of sensor data: Sony, packed, Samsung, Nikon, lossy DNG, Kodak, Pentax.
_SENSOR_CODINGS = {32767, 32769, 32770, 34713, 34892, 65000, 65535}
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType

_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_RAW, _JPEG, _FAX = 1, 7, (2, 3, 4)
# Also LZW, deflate (twice), PackBits, LZMA, zstd and WebP. Old JPEG, SGI's logarithms and ThunderScan were not checked.
_COMPRESSIONS = {_RAW, *_FAX, 5, _JPEG, 8, 32773, 32946, 34925, 50000, 50001}
_PHOTOMETRICS = {_WHITE_IS_ZERO, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB}
_FULL_RANGE = (0, 255, 128, 255, 128, 255)


def open_tiff(data: bytes) -> TiffImagePlugin.TiffImageFile:
    """Opens the first image of a TIFF file; no pixel is decoded yet.

    Raises:
        Rejected: raw, thumbnail, mode.
        SyntaxError, OSError, struct.error, ...: damaged, or Pillow does not know the kind of pixels.
    """
    directories = _read_directories(data)
    _check_first(directories)
    planes, extra = directories[0].get(_PLANES, (1,)), directories[0].get(_EXTRA, ())
    is_short = max(directories[0].get(_BITS, (1,))) <= 8 and directories[0].get(_COMPRESSION, (_RAW,)) == (_RAW,)
    if planes == (2,) and (len(extra) > 1 or (extra not in ((), (2,)) and is_short)):
        raise Rejected("mode")  # Pillow has no names for so many planes and would call the file damaged
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    _check_kind(image)
    tags: Any = image.tag_v2
    if tags.get(_PLANES) == 2 and tags.get(_COMPRESSION, _RAW) == _RAW and max(tags.get(_BITS, (1,))) > 8:
        # Pillow's own reader takes the 16-bit values of a plane for bytes; libtiff reads such planes right.
        raw_mode = TiffImagePlugin.OPEN_INFO[_format_key(tags)][1]
        sizes = (0, 0, tags[_WIDTH], tags[_HEIGHT])
        image.tile = [ImageFile._Tile("libtiff", sizes, 0, (raw_mode[:-1] + "N", False, tags.offset))]
        image.use_load_libtiff = True
    if tags.get(_PHOTOMETRIC) == _PALETTE and max(tags[_COLOR_MAP]) < 256:
        # Some programs write 8 bits into the palette of 16, for which libtiff allows; Pillow takes the high byte.
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[_COLOR_MAP]))
    # Only tag 274 turns a TIFF, as in browsers; Pillow would look into XMP, too.
    image.info.pop("xmp", None)
    return image


def tiff_to_rgb(image: TiffImagePlugin.TiffImageFile, colour: Colour = "srgb") -> tuple[np.ndarray, list[str]]:
    """Pixels of an opened TIFF image, uint8 (H, W, 3), upright, and notes.

    Raises:
        Rejected: mode.
    """
    tags: Any = image.tag_v2
    is_turned = tags.get(_ORIENTATION) in range(2, 9)  # Pillow turns the image while it loads, and then drops the tag
    # A fourth channel that no tag explains: Pillow takes it for alpha, other readers do not.
    is_unclear = tags.get(_PHOTOMETRIC) == _RGB and tags.get(_SAMPLES) == 4 and not tags.get(_EXTRA)
    pixels, notes = pillow_to_rgb(image, int(max(tags.get(_BITS, (1,)))), colour)
    if is_unclear and "alpha_on_white" in notes:
        raise Rejected("mode")
    return pixels, [*notes, "exif_orientation"] if is_turned else notes


def check_tags(image: TiffImagePlugin.TiffImageFile) -> None:
    """Raises Rejected for an image whose file is gone, as `open_tiff` would, as far as its tags tell."""
    tags: Any = image.tag_v2
    known = {tag: tags[tag] for tag in _READ if tag in tags}
    _check_first([{tag: (value,) if isinstance(value, int) else tuple(value) for tag, value in known.items()}])
    _check_kind(image)


def _check_kind(image: TiffImagePlugin.TiffImageFile) -> None:
    """Raises Rejected unless Pillow decodes this combination of tags right, as tests/charm/images/test_tiff.py shows.

    Pillow opens some combinations and decodes them wrongly without a warning: signed values as unsigned, logarithms
    and inks as colours, alpha of grey in a compressed plane of its own as 0, subsampled colours as complete.
    """
    tags: Any = image.tag_v2
    photometric, compression = tags.get(_PHOTOMETRIC), tags.get(_COMPRESSION, _RAW)
    is_planar, bits = tags.get(_PLANES, 1) == 2, max(tags.get(_BITS, (1,)))
    is_wrong = (
        photometric not in _PHOTOMETRICS
        or compression not in _COMPRESSIONS
        or any(form != 1 for form in tags.get(_SAMPLE_FORMAT, (1,)))
        or (bits > 8 and (photometric == _WHITE_IS_ZERO or compression == _JPEG))
        or (photometric == _CMYK and tags.get(_INK_SET, 1) != 1)
        or (photometric == _YCBCR and not _is_full_range(tags, compression, is_planar))
        or (is_planar and compression == _JPEG)
        or (is_planar and photometric not in (_RGB, _CMYK) and not _is_one_plane(tags, compression))
        # Reversed bits: Pillow reverses them only in what it reads itself, and libtiff before it decompresses.
        or (tags.get(_FILL_ORDER, 1) != 1 and compression not in _FAX and (is_planar or compression != _RAW))
    )
    if is_wrong:
        raise Rejected("mode")


def _is_one_plane(tags: Any, compression: int) -> bool:
    """Tells whether Pillow reads a single plane as an image without planes; uncompressed, it does so for some kinds."""
    is_byte = max(tags.get(_BITS, (1,))) == 8 and tags[_PHOTOMETRIC] in (_GREY, _PALETTE)
    return bool(tags.get(_SAMPLES, 1) == 1 and (compression != _RAW or is_byte))


def _is_full_range(tags: Any, compression: int, is_planar: bool) -> bool:
    """Tells whether brightness and colours have the range of JPEG, not of video, and are complete unless JPEG-coded."""
    if compression == _JPEG and not is_planar:
        return True
    reference = tuple(tags.get(_REFERENCE_BLACK_WHITE, _FULL_RANGE))
    return compression == _RAW and tuple(tags.get(_SUBSAMPLING, (2, 2))) == (1, 1) and reference == _FULL_RANGE


def _format_key(tags: Any) -> tuple[Any, ...]:
    """Returns the key of Pillow's table of formats for three or four samples in planes of their own."""
    extra = tuple(tags.get(_EXTRA, ()))
    bits = tuple(tags[_BITS])
    if extra and max(extra) == 0:  # samples without a meaning, which Pillow leaves out
        bits, extra = bits[: -len(extra)], ()
    return tags.prefix, tags[_PHOTOMETRIC], (1,), 1, bits, extra


def _check_first(directories: list[dict[int, tuple[int, ...]]]) -> None:
    """Raises Rejected if the first directory does not hold the image, as in the RAW files of most cameras."""
    first = directories[0]
    area = [_first(one, _WIDTH, 0) * _first(one, _HEIGHT, 0) for one in directories]
    kind = _first(first, _NEW_SUBFILE, 0) | (_REDUCED if first.get(_SUBFILE) == (2,) else 0)
    subs = [index for index, one in enumerate(directories) if one.get(-1)]
    if (
        _DNG_VERSION in first
        or any(_first(one, _PHOTOMETRIC, 0) in _SENSOR for one in directories)
        or any(_first(one, _COMPRESSION, 0) in _SENSOR_CODINGS for one in directories)
        or (kind & _REDUCED and first.get(_SUB_DIRECTORIES))
        or any(area[index] > area[0] for index in subs)  # SubIFDs are made for smaller versions of the image
    ):
        raise Rejected("raw")
    if kind & (_REDUCED | _MASK) and len(directories) > 1:
        raise Rejected("thumbnail")


def _first(directory: dict[int, tuple[int, ...]], tag: int, default: int) -> int:
    return (directory.get(tag) or (default,))[0]


def _read_directories(data: bytes) -> list[dict[int, tuple[int, ...]]]:
    """Reads tag -> integer values of each directory and each SubIFD; a SubIFD also has the key -1.

    Raises:
        struct.error: the first directory is not there.
    """
    order = "<" if data.startswith(b"II") else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    where = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)[0]
    directories: list[dict[int, tuple[int, ...]]] = []
    todo, seen = [(where, False)], set()
    while todo and len(directories) < _MAX_DIRECTORIES:
        where, is_sub = todo.pop(0)
        if where in seen or not where:
            continue
        seen.add(where)
        try:
            directory, following = _read_directory(data, where, order, is_big)
        except struct.error:
            if not directories:
                raise
            continue  # what follows the image is not read
        if is_sub:
            directory[-1] = (1,)
        directories.append(directory)
        todo += [(place, True) for place in directory.get(_SUB_DIRECTORIES, ())]
        todo.append((following, is_sub))
    if not directories:
        raise struct.error("no directory")
    return directories


def _read_directory(data: bytes, where: int, order: str, is_big: bool) -> tuple[dict[int, tuple[int, ...]], int]:
    """Reads the integers of the tags _READ from a directory, and the place of the next directory (0: none)."""
    head, entry, word = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHI4s", "I")
    (count,) = struct.unpack_from(order + head, data, where)
    start, size = where + struct.calcsize(order + head), struct.calcsize(order + entry)
    directory = {}
    for index in range(min(count, _MAX_ENTRIES)):
        tag, kind, number, value = struct.unpack_from(order + entry, data, start + index * size)
        if tag in _READ and tag not in directory and kind in _INTEGERS and 0 < number <= _MAX_VALUES:
            values = f"{order}{number}{_INTEGERS[kind]}"
            is_here = struct.calcsize(values) <= len(value)
            source, place = (value, 0) if is_here else (data, struct.unpack(order + word, value)[0])
            if place + struct.calcsize(values) <= len(source):
                directory[tag] = struct.unpack_from(values, source, place)
    end = start + count * size
    return directory, struct.unpack_from(order + word, data, end)[0] if end + len(word) <= len(data) else 0
