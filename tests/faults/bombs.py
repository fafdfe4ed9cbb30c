"""Files that ask for more than they are worth, made here byte by byte."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()  # for writing
TIFF_LONG = 4
DEFLATED = zlib.compress(bytes(50_000_000), 1)


def encode(kind: str, side: int = 64, **options: Any) -> bytes:
    """A good image of smooth shades."""
    shades = np.random.default_rng(side).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shades).resize((side, side)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int,
    height: int,
    bits: int = 8,
    colour: int = 2,
    data: bytes = zlib.compress(bytes(1000)),
    extra: bytes = b"",
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def resized_jpeg(width: int, height: int, **options: Any) -> bytes:
    """A good image whose header says another size."""
    data = bytearray(encode("JPEG", **options))
    frame = data.index(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def many_scans(number: int, side: int = 1000) -> bytes:
    """A progressive JPEG that repeats its last scan, a pass over the whole image in few bytes."""
    data = encode("JPEG", side, progressive=True)
    last = data.rindex(b"\xff\xc4")
    return data[:-2] + data[last:-2] * (number - 10) + data[-2:]


def segments(number: int) -> bytes:
    data = encode("JPEG")
    return data[:2] + b"\xff\xfe\0\2" * number + data[2:]


def tiff(tags: dict[int, tuple[int, int]], following: int = 0, data: bytes = bytes(64)) -> bytes:
    """Of tag -> (count, value or offset), each of 32 bits. The pixels, or what should be pixels, start at byte 256."""
    entries = b"".join(struct.pack("<HHII", tag, TIFF_LONG, *of) for tag, of in sorted(tags.items()))
    directory = struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", following)
    return (b"II*\0" + directory).ljust(256, b"\0") + data


def grey_tiff(width: int, height: int, **changed: tuple[int, int]) -> bytes:
    """A grey image, not compressed, of one strip; `changed` maps "t" and a tag's number to what it has instead."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 256, 277: 1, 278: height, 279: width * height}
    honest = {tag: (1, value % 2**32) for tag, value in tags.items()}
    return tiff(honest | {int(tag[1:]): of for tag, of in changed.items()})


def many_directories() -> bytes:
    """Whose SubIFDs stand two bytes apart, each with 65,535 tags that name more of them."""
    entry = struct.pack("<HHII", 330, TIFF_LONG, 64, 8)
    return b"II*\0" + struct.pack("<I", 300) + bytes(292) + (b"\xff\xff" + entry * 65535) * 2


def webp(kind: bytes, content: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int, data: bytes = bytes(64)) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + info + data


def gif(width: int, height: int, canvas: tuple[int, int] = (9, 9), blocks: bytes = b"", disposal: int = 0) -> bytes:
    """A GIF of a pixel; disposal: 2 and 3 make Pillow allocate the image when it opens it."""
    screen = struct.pack("<HHBBB", *canvas, 0x80, 0, 0) + bytes(6)
    image = b"," + struct.pack("<4HB", 0, 0, width, height, 0) + b"\2\2L\1\0"
    return b"GIF89a" + screen + b"!\xf9\4" + bytes([disposal << 2]) + bytes(4) + blocks + image + b";"


def boxed(kind: str, width: int, height: int, **options: Any) -> bytes:
    """A good AVIF, HEIC or JPEG 2000 image whose header says another size."""
    data = encode(kind, **options)
    sides = struct.pack(">II", 64, 64)
    if kind == "JPEG2000":
        data = data.replace(b"ihdr" + sides, b"ihdr" + struct.pack(">II", height, width))
        return data.replace(sides + bytes(8) + sides, struct.pack(">IIIIII", width, height, 0, 0, width, height))
    return data.replace(b"ispe" + bytes(4) + sides, b"ispe" + bytes(4) + struct.pack(">II", width, height))


def many_boxes(kind: str) -> bytes:
    data = encode(kind)
    place = int.from_bytes(data[:4], "big")
    return data[:place] + b"\0\0\0\x08free" * 1_000_000 + data[place:]


# Each has to be refused, within 1 s of computing and 200 MB.
REFUSED = {
    "PNG, 1 bit, 60000 x 60000": png(60000, 60000, 1, 0),
    "PNG, 4 exapixels": png(2**31 - 1, 2**31 - 1),
    "PNG, 100 megapixels in 1 kB": png(9999, 9999),
    "PNG, a line of 100 megapixels": png(10**8, 1),
    "PNG with text that inflates to 50 MB": png(9, 9, extra=chunk(b"zTXt", b"k\0\0" + DEFLATED)),
    "PNG with a profile that inflates to 50 MB": png(9, 9, extra=chunk(b"iCCP", b"k\0\0" + DEFLATED)),
    "PNG of 300,000 chunks": png(9, 9, extra=chunk(b"teST", b"") * 300_000),
    "PNG whose pixels inflate to 50 MB": png(9, 9, data=DEFLATED)[:-13],
    "JPEG, 95 megapixels in 23 kB": resized_jpeg(9747, 9747, side=400, quality=95).ljust(23_000, b"\0"),
    "progressive JPEG, 95 megapixels": resized_jpeg(9747, 9747, side=400, progressive=True),
    "JPEG, 4 gigapixels": resized_jpeg(65535, 65535),
    "JPEG of 300 scans": many_scans(300),
    "JPEG of 100,000 segments": segments(100_000),
    "JPEG, a million fill bytes": b"\xff\xd8" + b"\xff" * 10**6 + b"\0",
    "JPEG, a million restarts": b"\xff\xd8" + b"\xff\xd0" * 10**6,
    "TIFF, 4 gigapixels": grey_tiff(2**16 + 1, 2**16 - 1),
    "TIFF, 100 megapixels in 64 bytes": grey_tiff(10000, 10000),
    "TIFF, 4 billion bits a sample": grey_tiff(8, 8, t258=(1, 2**32 - 1)),
    "TIFF, 4 billion samples a pixel": grey_tiff(8, 8, t277=(1, 2**32 - 1)),
    "TIFF, 4 billion strips": grey_tiff(8, 8, t273=(2**32 - 1, 8)),
    "TIFF, strips beyond the end": grey_tiff(8, 8, t273=(1, 2**32 - 1)),
    "TIFF, strips of no bytes": grey_tiff(8, 8, t279=(1, 0), t273=(1, 10**6)),
    "TIFF, unknown compression": grey_tiff(8, 8, t259=(1, 60000)),
    "TIFF, deflate that is none": grey_tiff(8, 8, t259=(1, 8)),
    "TIFF, 65,535 tags": b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(12 * 65535),
    "TIFF, 64 directories of 65,535 tags": many_directories(),
    "JPEG without an end, 20 MB of stuffed zeros": encode("JPEG")[:-20] + b"\xff\0" * 10**7,
    "JPEG of 9,000 segments, a stray byte behind each": encode("JPEG")[:2]
    + b"\xff\xfe\0\2x" * 9000
    + encode("JPEG")[2:-40],
    "PNG of 150,000 damaged chunks": png(9, 9, extra=(chunk(b"teST", b"")[:-1] + b"x") * 150_000)[:-13],
    "WebP, 281 terapixels": webp(b"VP8X", struct.pack("<I", 2) + b"\xff" * 6),
    "WebP, lossy, 16383 x 16383": webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(50)),
    "WebP, lossless, 16384 x 16384": webp(b"VP8L", b"\x2f\xff\xff\xff\xff" + bytes(50)),
    "WebP, lossless, 99 megapixels in 50 bytes": webp(
        b"VP8L", b"\x2f" + struct.pack("<I", 9949 << 14 | 9949) + b"\xff" * 50
    ),
    "BMP, 4 exapixels": bmp(2**31 - 1, 2**31 - 1),
    "BMP, 99 megapixels in 64 bytes": bmp(9949, 9949),
    "BMP, upside down, 2 gigapixels": bmp(1, -(2**31)),
    "GIF, 4 gigapixels": gif(65535, 65535),
    "GIF, 4 gigapixels that are allocated when it is opened": gif(65535, 65535, (1, 1), disposal=2),
    "GIF, 99 megapixels in 40 bytes": gif(9949, 9949, (9949, 9949), disposal=3),
    "GIF, 5 million blocks of a comment": gif(9, 9, blocks=b"!\xfe" + b"\1x" * 5_000_000 + b"\0"),
    "GIF, a million extensions": gif(9, 9, blocks=b"!\xfe\0" * 1_000_000),
    "GIF, 10 MB between its blocks": gif(9, 9, blocks=bytes(10**7)),
    "AVIF, 4 gigapixels": boxed("AVIF", 65535, 65535),
    "AVIF, a million boxes": many_boxes("AVIF"),
    "HEIC, 4 gigapixels": boxed("HEIF", 65535, 65535),
    "HEIC, 99 megapixels in 600 bytes": boxed("HEIF", 9949, 9949),
    "HEIC, a million boxes": many_boxes("HEIF"),
    "JPEG 2000, 4 gigapixels": boxed("JPEG2000", 65500, 65500),
    "JPEG 2000, 99 megapixels in 3 kB": boxed("JPEG2000", 9949, 9949),
    "JPEG 2000, 16 million tiles": boxed("JPEG2000", 4096, 4096).replace(
        struct.pack(">6I", 4096, 4096, 0, 0, 4096, 4096), struct.pack(">6I", 4096, 4096, 0, 0, 1, 1)
    ),
    "JPEG 2000, a million boxes": many_boxes("JPEG2000"),
}


def large() -> dict[str, bytes]:
    """Images of the most pixels that are allowed, honest or not: decoded or refused, within 10 s and 1.5 GB."""
    blank = zlib.compressobj(9)
    rows = b"".join(blank.compress(bytes(1251 * 100)) for _ in range(100)) + blank.flush()
    one_bit = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10000, 10000, 1, 0, 0, 0, 0))
    shades = Image.linear_gradient("L").resize((10000, 10000))
    colours = Image.merge("RGB", (shades, shades, shades))
    turned = Image.Exif()
    turned[274] = 6
    progressive, baseline = io.BytesIO(), io.BytesIO()
    colours.save(progressive, "JPEG", progressive=True, subsampling=0, exif=turned)
    colours.save(baseline, "JPEG")
    return {
        "PNG, 1 bit": one_bit + chunk(b"IDAT", rows) + chunk(b"IEND", b""),
        "JPEG": baseline.getvalue(),
        "progressive JPEG, 4:4:4, to be turned": progressive.getvalue(),
        "AVIF, 99 megapixels": boxed("AVIF", 9949, 9949),
        "progressive JPEG of 64 scans, 25 megapixels": many_scans(64, 5000),
        "progressive JPEG, 95 megapixels that are not there, but padding is": resized_jpeg(
            9747, 9747, progressive=True
        ).ljust(2**20, b"\0"),
        "JPEG 2000, 70 megapixels that are not there": boxed("JPEG2000", 8366, 8366, no_jp2=True),
    }
