"""Mends files that decoders complain about although every pixel is there.

Mended bytes are decoded strictly again: a decoder names its first complaint only, and a harmless one may hide real
damage behind it.
"""

import re
import struct
import zlib

from charm.images import headers

_APP0, _APP15, _ADOBE, _COMMENT = 0xE0, 0xEF, 0xEE, 0xFE
# What libjpeg says of files whose pixels may all be there; whatever else it says is damage.
_HARMLESS = re.compile(
    r"Invalid SOS parameters|unknown JFIF revision|extraneous bytes before marker|Premature end of JPEG file"
    r"|two SOI markers|bad ICC marker|Unknown Adobe color transform"
)
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x(..)")
_SEQUENTIAL = bytes((0, 63, 0))  # first and last coefficient and the precision of a scan that is not progressive
_MAX_TRIES = 100  # more than scans are allowed
_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}


def mend_jpeg(data: bytes, complaint: str) -> bytes:
    """Rewrites the first image of a JPEG with markers as the standard has them; entropy-coded data stay as they are.

    The parameters of sequential scans, the version of JFIF and Adobe's transform are set to the values that decoders
    assume anyway, bytes between segments and segments without pixels are left out, and a missing end is added. Raises
    ValueError if the complaint, libjpeg's message, is about pixels, a segment is damaged, or scans are missing.
    """
    if not _HARMLESS.search(complaint):
        raise ValueError(complaint)
    parts = [b"\xff\xd8"]
    coding, components = 0, b""
    precision: dict[int, list[int]] = {}  # of each coefficient of each component: the lowest bit that came
    end, in_scan, marker = 2, False, 0
    for _ in range(headers.MAX_SEGMENTS):
        match = headers.MARKER.search(data, end)
        between = data[end : match.start() if match else len(data)].rstrip(b"\xff")
        if in_scan:
            parts.append(between)
        elif _is_segment(between):
            raise ValueError("a segment has lost its marker")
        marker = match[1][0] if match else 0
        in_scan = False
        if match is None or marker == headers.END or (marker == headers.START and precision):
            break
        start = end = match.end()
        if marker in headers.WITHOUT_CONTENT:
            continue
        end = start + struct.unpack_from(">H", data, start)[0]
        content = bytearray(data[start + 2 : end])
        if end > len(data):
            raise ValueError("cut short")
        if marker in headers.FRAMES:
            coding, components = marker, bytes(content[6::3])
        elif marker == headers.SCAN:
            in_scan = True
            _mend_scan(content, coding, precision)
        elif marker == _APP0 and content.startswith(b"JFIF\0"):
            content[5] = 1
        elif marker == _ADOBE and content.startswith(b"Adobe"):
            if len(content) > 11 and content[11] > 2:
                content[11] = 1 if not components or len(components) == 3 else 2
        elif _APP0 <= marker <= _APP15 or marker == _COMMENT:
            continue
        parts.append(struct.pack(">BBH", 255, marker, len(content) + 2) + content)
    else:
        raise headers.TooManyParts(f"more than {headers.MAX_SEGMENTS} segments")
    if any(any(precision.get(one, [1])) for one in components):
        raise ValueError("scans are missing")  # where a file was cut, decoders fill what is missing in silence
    if parts[-1].endswith(b"\0\0"):
        # A file that was cut may have been filled up with zeros. Decoders take some for pixels and read up to 8 bytes
        # ahead without a word, so that the complaint may be gone once the rest is mended.
        parts[-1] = parts[-1].rstrip(b"\0")
    return b"".join([*parts, b"\xff\xd9"])


def _mend_scan(content: bytearray, coding: int, precision: dict[int, list[int]]) -> None:
    """Mends the header of a scan; records in `precision` the lowest bit that came of each coefficient."""
    if coding != headers.PROGRESSIVE and coding in headers.HUFFMAN_FRAMES:
        content[-3:] = _SEQUENTIAL
    first, last, bits = content[-3:]
    for one in content[1:-3:2]:
        levels = precision.setdefault(one, [14] * 64)
        levels[first : last + 1] = [bits & 15] * (min(last, 63) + 1 - first)


def _is_segment(between: bytes) -> bool:
    """Tells whether bytes between segments are a segment with a damaged marker: their length field fits."""
    return len(between) >= 4 and struct.unpack_from(">H", between, 2)[0] + 2 == len(between)


def strip_padding(data: bytes, complaint: str) -> bytes:
    """Removes equal bytes from the end of the scan that libjpeg finds too long.

    All bytes at the end with the value of the last byte are removed. If the scan needed some of them, as after a cut
    that was filled up with zeros, strict decoding then fails. Bytes of other values stay: they may belong to damaged
    data, which decoders read too fast. Raises ValueError if the complaint is about something else, or the scan does not
    end in equal bytes.
    """
    match = _EXTRANEOUS.search(complaint)
    if match is None:
        raise ValueError(complaint)
    count, marker = int(match[1]), bytes((255, int(match[2], 16)))
    place = data.find(marker)
    for _ in range(_MAX_TRIES):
        if place < 0:
            break
        value = data[place - 1 : place]
        if data.count(value, max(0, place - count), place) == count:
            return data[:place].rstrip(value) + data[place:]
        place = data.find(marker, place + 2)
    raise ValueError(complaint)


def mend_png(data: bytes) -> bytes:
    """Checks every checksum of a PNG up to the end of the image, and mends damage that leaves the pixels whole.

    Returns:
        The data unchanged; or without ancillary chunks of a wrong checksum, which decoders skip, and with a missing end
        added. Whether all pixels are there is for the decoder to tell.

    Raises:
        ValueError, struct.error: damaged, cut short, or too many chunks.
    """
    view = memoryview(data)
    parts, start, has_pixels = [view[:8]], 8, False
    for _ in range(headers.MAX_CHUNKS):
        name = data[start + 4 : start + 8]
        (length,) = struct.unpack(">I", data[start : start + 4].ljust(4, b"\0"))
        end = start + 12 + length
        if end > len(data) or len(name) < 4:
            if not has_pixels or not (len(name) < 4 or name == b"IEND" or _is_ancillary(name)):
                raise ValueError("cut short")
            return b"".join([*parts, b"\0\0\0\0IEND\xaeB`\x82"])
        if zlib.crc32(view[start + 4 : end - 4]) == struct.unpack_from(">I", data, end - 4)[0]:
            parts.append(view[start:end])
        elif not _is_ancillary(name):
            raise ValueError("a checksum differs")
        if name == b"IEND":
            return data if sum(map(len, parts)) == end else b"".join(parts)
        has_pixels = has_pixels or name == b"IDAT"
        start = end
    raise headers.TooManyParts(f"more than {headers.MAX_CHUNKS} chunks")


def _is_ancillary(name: bytes) -> bool:
    """Tells whether a chunk says nothing of pixels; tRNS (transparency) does, and iDAT, an IDAT with a flipped bit."""
    return name.isalpha() and name[:1].islower() and name.upper() not in _CRITICAL and name != b"tRNS"
