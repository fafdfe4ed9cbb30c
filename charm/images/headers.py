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
PROGRESSIVE, START, END, SCAN, _APP1 = 0xC2, 0xD8, 0xD9, 0xDA, 0xE1
WITHOUT_CONTENT = {0x01, START}
# Large ICC profiles and XMP come in parts of 64 kB; depth maps of phones make some 1,000.
MAX_SEGMENTS = 10_000
MAX_CHUNKS = 200_000  # of PNG: 100 MB in the 512 bytes of the most timid writer

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEFLATE_RATIO = 1032  # the most that one byte can become
_ORIENTATION = 0x0112


class TooManyParts(ValueError):
    """Raised for a file of more segments or chunks than any camera or editor writes."""


@dataclass(frozen=True)
class JpegHeader:
    """Facts from the header of a JPEG file.

    Attributes:
        height, width: as stored, before any EXIF orientation.
        is_common: 8 bits a sample, Huffman-coded, grey, colours or inks, colours subsampled alike by 1, 2 or 4.
        num_scans: passes over the image.
        min_bytes: no Huffman-coded JPEG of this size is shorter.
        exif: the content of its EXIF segment, from the byte order on; b"" without one.
    """

    height: int
    width: int
    is_common: bool
    num_scans: int
    min_bytes: int
    exif: bytes


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Reads the first image of a JPEG or MPO file.

    A file with one scan is read up to that scan. One with several is searched to its end, as each scan is a pass over
    all pixels however few bytes it has.

    Raises:
        ValueError, struct.error: damaged, or too many segments.
    """
    frame, exif, num_scans = (0, b""), b"", 0
    for marker, content in _jpeg_segments(data):
        if marker in FRAMES and not frame[1]:
            frame = marker, content
        elif marker == _APP1 and content.startswith(b"Exif\0") and not exif:
            exif = content[6:]
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
    return JpegHeader(height, width, is_common, num_scans, min_bytes, exif)


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
    """Returns the orientation, 1 to 8 (EXIF 2.3, tag 274); 1 if there is none or the EXIF data is damaged.

    Args:
        exif: the data from the byte order on, or from "Exif" on.
    """
    if exif.startswith(b"Exif\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, offset)
        for entry in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, kind, _ = struct.unpack_from(order + "HHI", exif, entry)
            if tag == _ORIENTATION:
                value = int(struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, entry + 8)[0])
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


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


@dataclass(frozen=True)
class PngHeader:
    """Facts from the header of a PNG file.

    Attributes:
        bit_depth: bits per channel, or per index of a palette.
        min_bytes: no PNG of this size is shorter.
    """

    height: int
    width: int
    bit_depth: int
    min_bytes: int


def read_png_header(data: bytes) -> PngHeader:
    """Reads the header of a PNG file; raises ValueError, LookupError or struct.error if it is damaged."""
    if data[12:16] != b"IHDR":
        raise ValueError("no header")
    width, height, bit_depth, colour_type = struct.unpack_from(">IIBB", data, 16)
    if not height * width:
        raise ValueError("no pixels")
    bits_per_row = width * bit_depth * _PNG_CHANNELS[colour_type]
    return PngHeader(height, width, bit_depth, height * -(-bits_per_row // 8) // _DEFLATE_RATIO)
