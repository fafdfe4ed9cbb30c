"""Image files made byte by byte, of kinds that Pillow cannot write."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

from charm.images.decode import decode_image
from charm.images.reasons import Rejected

pillow_heif.register_heif_opener()  # for writing
_CODES = {1: "B", 3: "H", 4: "I", 5: "I"}
_FRACTION = 5
Tags = dict[int, tuple[int, Sequence[int]]]


def outcome(data: bytes) -> np.ndarray | str:
    """What comes of a file: its pixels, or the reason of its refusal."""
    try:
        return decode_image(data).pixels
    except Rejected as error:
        return error.reason


def encode(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    """EXIF data with an orientation alone, from the byte order on."""
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 274, 3, 1, orientation) + bytes(4)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def add_chunk(png: bytes, name: bytes, data: bytes, *, after_pixels: bool = False, damage: int = 0) -> bytes:
    """A PNG with one more chunk, before or after its pixels; `damage` is mixed into its checksum."""
    place = png.index(b"IEND" if after_pixels else b"IDAT") - 4
    added = bytearray(chunk(name, data))
    added[-1] ^= damage
    return png[:place] + added + png[place:]


def add_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 255, marker, len(content) + 2) + content + jpeg[2:]


def retag(data: bytes, primaries: int, transfer: int) -> bytes:
    """An AVIF or HEIC file with other codes of H.273."""
    place = data.index(b"colrnclx") + 8
    return data[:place] + struct.pack(">HH", primaries, transfer) + data[place + 4 :]


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def jp2_with(data: bytes, old: bytes, new: bytes) -> bytes:
    """A JPEG 2000 file whose header has another box instead of that of kind `old`."""
    header = data.index(b"jp2h") - 4
    place = data.index(old, header) - 4
    (length,) = struct.unpack_from(">I", data, place)
    (whole,) = struct.unpack_from(">I", data, header)
    changed = data[:place] + new + data[place + length :]
    return changed[:header] + struct.pack(">I", whole + len(new) - length) + changed[header + 4 :]


def jp2_with_profile(data: bytes, profile: bytes) -> bytes:
    return jp2_with(data, b"colr", box(b"colr", b"\2\0\0" + profile))


def orientation_in_xmp(orientation: int) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
    ) % orientation


def pack_packbits(data: bytes) -> bytes:
    """PackBits, of literal runs alone."""
    parts = (data[start : start + 128] for start in range(0, len(data), 128))
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def pack_lzw(data: bytes) -> bytes:
    """LZW that clears its table before codes have 10 bits."""
    codes: list[int] = []
    for start in range(0, len(data), 200):
        codes += [256, *data[start : start + 200]]
    bits = "".join(format(code, "09b") for code in [*codes, 257])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


CODINGS: dict[int, Callable[[bytes], bytes]] = {1: bytes, 5: pack_lzw, 8: zlib.compress, 32773: pack_packbits}


def _pack_rows(rows: np.ndarray, bits: int, order: str) -> bytes:
    """rows: (h, n) of integers below 2**bits; each row ends at a byte's end."""
    if bits >= 8 and bits != 12:
        return rows.astype(f"{order}u{bits // 8}").tobytes()
    flat = (rows[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(rows), -1)
    return np.packbits(flat.astype(np.uint8), axis=1).tobytes()


def _cut(plane: np.ndarray, layout: str) -> Iterator[np.ndarray]:
    """(h, w, s) -> its strips or tiles of 16 x 16, each (h', w', s)."""
    height, width, samples = plane.shape
    if layout != "tiles":
        step = 4 if layout == "strips" else height
        yield from (plane[start : start + step] for start in range(0, height, step))
        return
    for top in range(0, height, 16):
        for left in range(0, width, 16):
            tile = np.zeros((16, 16, samples), plane.dtype)
            part = plane[top : top + 16, left : left + 16]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def tiff(
    samples: np.ndarray,
    bits: int = 8,
    photometric: int = 2,
    planes: int = 1,
    compression: int = 1,
    order: str = "<",
    layout: str = "one",
    more: Tags | None = None,
) -> bytes:
    """A TIFF of samples (h, w, s), integers of `bits` bits; `more` maps tags to (type, values)."""
    height, width, count = samples.shape
    layers = [samples] if planes == 1 else [samples[..., index : index + 1] for index in range(count)]
    parts = [
        CODINGS[compression](_pack_rows(part.reshape(len(part), -1), bits, order))
        for layer in layers
        for part in _cut(layer, layout)
    ]
    tags: Tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * count), 259: (3, [compression])}
    tags |= {262: (3, [photometric]), 277: (3, [count]), 284: (3, [planes])}
    places = [8 + sum(len(part) + len(part) % 2 for part in parts[:index]) for index in range(len(parts))]
    if layout == "tiles":
        tags |= {322: (4, [16]), 323: (4, [16]), 324: (4, places), 325: (4, [len(part) for part in parts])}
    else:
        rows = 4 if layout == "strips" else height
        tags |= {278: (4, [rows]), 273: (4, places), 279: (4, [len(part) for part in parts])}
    data = b"".join(part + bytes(len(part) % 2) for part in parts)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return (
        head + data + directory({tag: of for tag, of in (tags | (more or {})).items() if of[1]}, 8 + len(data), order)
    )


def directory(tags: Tags, place: int, order: str = "<", following: int = 0) -> bytes:
    """A directory that stands at `place` of a file, and the values that do not fit into it."""
    entries, values = b"", b""
    after = place + 2 + 12 * len(tags) + 4
    for tag, (kind, of) in sorted(tags.items()):
        value = struct.pack(f"{order}{len(of)}{_CODES[kind]}", *of)
        if len(value) > 4:
            value, values = struct.pack(order + "I", after + len(values)), values + value + bytes(len(value) % 2)
        count = len(of) // 2 if kind == _FRACTION else len(of)
        entries += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    return struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", following) + values


def two_directories(
    first: Tags, second: Tags, first_hw: tuple[int, int] = (8, 12), second_hw: tuple[int, int] = (16, 24), *, sub: bool
) -> bytes:
    """A TIFF of two RGB images, grey 40 and grey 200; the second is a SubIFD of the first, or follows it."""
    pixels, directories, place = b"", [], 8
    for (height, width), value, more in ((first_hw, 40, first), (second_hw, 200, second)):
        size = height * width * 3
        tags: Tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [8, 8, 8]), 259: (3, [1]), 262: (3, [2])}
        tags |= {273: (4, [place]), 277: (3, [3]), 278: (4, [height]), 279: (4, [size])}
        directories.append(tags | more)
        pixels, place = pixels + bytes([value]) * size, place + size
    second_bytes = directory(directories[1], place)
    start = place + len(second_bytes)
    if sub:
        directories[0][330] = (4, [place])
    last = directory(directories[0], start, following=0 if sub else place)
    return b"II*\0" + struct.pack("<I", start) + pixels + second_bytes + last


def bmp(
    pixels: np.ndarray, header: int = 40, masks: tuple[int, ...] = (), top_down: bool = False, more: bytes = b""
) -> bytes:
    """A BMP of pixels (h, w), integers of 2, 3 or 4 bytes as their dtype's size is; masks: red, green, blue, alpha."""
    height, width = pixels.shape
    size = {"uint16": 2, "uint32": 4}.get(str(pixels.dtype), 3)
    rows = [
        b"".join(int(value).to_bytes(size, "little") for value in row) for row in (pixels if top_down else pixels[::-1])
    ]
    data = b"".join(row + bytes(-len(row) % 4) for row in rows)
    shape = (width, -height if top_down else height)
    info = struct.pack("<IiiHHIIiiII", header, *shape, 1, 8 * size, 3 if masks else 0, len(data), 2835, 2835, 0, 0)
    info = (info + struct.pack("<4I", *masks))[:header] if masks and header > 40 else info
    info = info.ljust(header, b"\0") + (struct.pack("<3I", *masks[:3]) if masks and header == 40 else b"") + more
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(data), 0, 0, 14 + len(info)) + info + data


def gif(
    height: int,
    width: int,
    indices: Sequence[int],
    canvas: tuple[int, int] | None = None,
    transparent: int | None = None,
    more: bool = False,
) -> bytes:
    """A GIF of black (0) and white (1) pixels in codes of 3 bits, a clear code before each; more: two images."""
    bits = "".join(format(code, "03b")[::-1] for index in indices for code in (4, index)) + format(5, "03b")[::-1]
    packed = bytes(int(bits[start : start + 8][::-1], 2) for start in range(0, len(bits), 8))
    image = b"," + struct.pack("<4HB", 0, 0, width, height, 0) + bytes([2, len(packed)]) + packed + b"\0"
    control = b"" if transparent is None else b"!\xf9\x04\1\0\0" + bytes([transparent, 0])
    screen = struct.pack("<HHBBB", *(canvas or (height, width))[::-1], 0x80, 0, 0)
    return b"GIF89a" + screen + bytes(3) + b"\xff" * 3 + control + image * (1 + more) + b";"
