"""Headers of image files, read without decoding a pixel: sizes, kinds, orientation, least number of bytes."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# A marker of JPEG: not the stuffed zero, the fill byte or the restarts that stand inside of entropy-coded data.
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive; the others: lossless, hierarchical, arithmetic
_SUBSAMPLINGS = {(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)}  # samples of brightness per sample of colour
PROGRESSIVE, START, END, SCAN, _APP1, _APP2 = 0xC2, 0xD8, 0xD9, 0xDA, 0xE1, 0xE2
WITHOUT_CONTENT = {0x01, START}
# Large ICC profiles and XMP come in parts of 64 kB; depth maps of phones make some 1,000.
MAX_SEGMENTS = 10_000
MAX_CHUNKS = 200_000  # of PNG: 100 MB in the 512 bytes of the most timid writer

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEFLATE_RATIO = 1032  # the most that one byte can become
_ORIENTATION, _EXIF, _COLOUR_SPACE, _INTEROP, _INTEROP_INDEX = 0x0112, 0x8769, 0xA001, 0xA005, 0x0001
_UNCALIBRATED, _ADOBE_RGB = 0xFFFF, b"R03\0"


class TooManyParts(ValueError):
    """Raised for a file of more segments or chunks than any camera or editor writes."""


@dataclass(frozen=True)
class JpegHeader:
    """Facts from the header of a JPEG file."""

    height: int  # as stored, before any EXIF orientation
    width: int
    is_common: bool  # 8 bits a sample, Huffman-coded, grey, colours or inks, colours subsampled alike by 1, 2 or 4
    num_scans: int  # passes over the image
    min_bytes: int  # no Huffman-coded JPEG of this size is shorter
    exif: bytes  # the content of its EXIF segment, from the byte order on; b"" without one
    profile: bytes  # its ICC profile, put together from its parts; b"" without one
    has_more: bool  # whether further images follow, as in MPO and in Ultra HDR


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Reads the first image of a JPEG or MPO file.

    A file with one scan is read up to that scan. One with several is searched to its end, as each scan is a pass over
    all pixels however few bytes it has.

    Raises:
        ValueError, struct.error: damaged, or too many segments.
    """
    frame, exif, num_scans = (0, b""), b"", 0
    profile, has_more = [], False
    for marker, content in _jpeg_segments(data):
        if marker in FRAMES and not frame[1]:
            frame = marker, content
        elif marker == _APP1 and content.startswith(b"Exif\0") and not exif:
            exif = content[6:]
        elif marker == _APP2 and content.startswith(b"ICC_PROFILE\0"):
            profile.append((content[12:13], content[14:]))
        elif marker == _APP2 and content.startswith(b"MPF\0"):
            has_more = True
        elif marker == SCAN:
            num_scans += 1
            if frame[0] != PROGRESSIVE and frame[1][5:6] == content[:1]:
                break  # all components at once: the decoder refuses a second scan
    if not num_scans:
        raise ValueError("no frame or no scan")
    coding, content = frame
    precision, height, width, num_components = struct.unpack_from(">BHHB", content)
    if not height * width * num_components:
        raise ValueError("no pixels")
    sampling = [(byte >> 4, byte & 15) for byte in content[7 : 6 + 3 * num_components : 3]]
    is_common = precision == 8 and coding in HUFFMAN_FRAMES and _is_common_sampling(sampling)
    min_bytes = _min_jpeg_bytes(height, width, sampling, coding == PROGRESSIVE)
    icc = b"".join(part for _, part in sorted(profile, key=lambda one: one[0]))
    return JpegHeader(height, width, is_common, num_scans, min_bytes, exif, icc, has_more)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields (marker, content) of each segment up to the end of the first image; bytes in between are skipped."""
    end = 2
    for _ in range(MAX_SEGMENTS):
        match = MARKER.search(data, end)
        if match is None or match[1][0] == END:
            return
        start = end = match.end()
        if match[1][0] not in WITHOUT_CONTENT:
            end = start + struct.unpack_from(">H", data, start)[0]
            yield match[1][0], data[start + 2 : end]
    raise TooManyParts(f"more than {MAX_SEGMENTS} segments")


def _is_common_sampling(sampling: list[tuple[int, int]]) -> bool:
    """Tells whether TurboJPEG decodes one, three or four components of these samplings, (across, down)."""
    if len(sampling) == 1:
        return True
    if len(sampling) not in (3, 4) or sampling[1] != sampling[2] or sampling[3:] not in ([], sampling[:1]):
        return False
    (across, down), (colour_across, colour_down) = sampling[:2]
    return any((across, down) == (h * colour_across, v * colour_down) for h, v in _SUBSAMPLINGS)


def _min_jpeg_bytes(height: int, width: int, sampling: list[tuple[int, int]], is_progressive: bool) -> int:
    """Returns the fewest bytes of a JPEG: each block of 8x8 takes one Huffman code of 1 bit, two unless progressive."""
    across, down = 8 * max(h for h, _ in sampling), 8 * max(v for _, v in sampling)
    blocks = sum(-(-width * h // across) * -(-height * v // down) for h, v in sampling)
    return blocks * (1 if is_progressive else 2) // 8


def read_orientation(exif: bytes) -> int:
    """Returns the orientation, 1 to 8 (EXIF 2.3, tag 274); 1 if there is none or the EXIF data is damaged."""
    value = _find_number(exif, _ORIENTATION)
    return value if value is not None and 1 <= value <= 8 else 1


def says_adobe_rgb(exif: bytes) -> bool:
    """Tells whether EXIF data say Adobe RGB, as cameras do that write no profile: uncalibrated, of the index R03."""
    if _ADOBE_RGB not in exif:  # nearly always; a hundredth of the time of the rest
        return False
    place = _find_number(exif, _EXIF)
    if place is None or _find_number(exif, _COLOUR_SPACE, place) != _UNCALIBRATED:
        return False
    place = _find_number(exif, _INTEROP, place)
    return place is not None and _find_number(exif, _INTEROP_INDEX, place) == int.from_bytes(_ADOBE_RGB, "big")


def _find_number(exif: bytes, tag: int, place: int | None = None) -> int | None:
    """Finds the value of a tag in EXIF data, in the first directory or in that at a place; None if there is none."""
    if exif.startswith(b"Exif\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        if place is None:
            (place,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, place)
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            found, kind, _ = struct.unpack_from(order + "HHI", exif, entry)
            if found == tag:
                form = {2: ">I", 4: order + "I"}.get(kind, order + "H")  # text is compared as four bytes
                return int(struct.unpack_from(form, exif, entry + 8)[0])
    except struct.error:
        pass
    return None


def read_webp_size(data: bytes) -> tuple[int, int]:
    """Returns (height, width) of the canvas (RFC 9649), before Pillow opens the file and allocates the canvas."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise ValueError("no image")
    return height, width


def read_gif_size(data: bytes) -> tuple[int, int, bool]:
    """Returns (height, width) of the first image and its canvas, and whether further images follow.

    Pillow allocates a canvas when it opens a file, and looks for a second image in blocks of a byte.

    Raises:
        ValueError, LookupError, struct.error: damaged, or too many blocks.
    """
    width, height = struct.unpack_from("<HH", data, 6)
    images = _gif_images(data)
    left, top, image_width, image_height = next(images, (0, 0, 0, 0))
    if not image_width * image_height:
        raise ValueError("no image")
    size = max(height, top + image_height), max(width, left + image_width)
    return *size, next(images, None) is not None


def _gif_images(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yields (left, top, width, height) of each image of a GIF."""
    place = 13 + _palette_bytes(data[10])
    for _ in range(MAX_CHUNKS):
        kind = data[place : place + 1]
        place += 1
        if kind == b"!":
            place = _skip_blocks(data, place + 1)
        elif kind == b",":
            yield struct.unpack_from("<4H", data, place)
            place = _skip_blocks(data, place + 10 + _palette_bytes(data[place + 8]))
        elif kind in (b";", b""):
            return
    raise TooManyParts(f"more than {MAX_CHUNKS} blocks")


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _skip_blocks(data: bytes, place: int) -> int:
    """Returns the place behind blocks that each begin with their length, up to an empty one or the end of the data."""
    for _ in range(MAX_CHUNKS):
        length = data[place] if place < len(data) else 0
        place += length + 1
        if not length:
            return place
    raise TooManyParts(f"more than {MAX_CHUNKS} blocks")


@dataclass(frozen=True)
class PngHeader:
    """Facts from the header of a PNG file."""

    height: int
    width: int
    bit_depth: int  # bits per channel, or per index of a palette
    min_bytes: int  # no PNG of this size is shorter
    codes: (
        tuple[int, int] | None
    )  # (primaries, curve) of H.273, from a cICP chunk, which goes before all others of colour


def read_png_header(data: bytes) -> PngHeader:
    """Reads the header of a PNG file; raises ValueError, LookupError or struct.error if it is damaged."""
    if data[12:16] != b"IHDR":
        raise ValueError("no header")
    width, height, bit_depth, colour_type = struct.unpack_from(">IIBB", data, 16)
    if not height * width:
        raise ValueError("no pixels")
    bits_per_row = width * bit_depth * _PNG_CHANNELS[colour_type]
    place = data.find(b"\0\0\0\4cICP", 33, data.find(b"IDAT"))
    codes = (data[place + 8], data[place + 9]) if place > 0 else None
    return PngHeader(height, width, bit_depth, height * -(-bits_per_row // 8) // _DEFLATE_RATIO, codes)
