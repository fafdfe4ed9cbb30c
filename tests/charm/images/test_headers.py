"""What files say of themselves: sizes as decoders see them, no image refused for being small, no endless search."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from charm.images.headers import (
    TooManyParts,
    read_jpeg_header,
    read_orientation,
    read_png_header,
    read_webp_size,
)
from tests.conftest import draw_image


def encode(pixels: np.ndarray, kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(height: int = 40, width: int = 56, mode: str = "RGB", **options: Any) -> bytes:
    return encode(draw_image(height, width), "JPEG", mode, **options)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 255, marker, len(content) + 2) + content


def tiff(entries: list[tuple[int, int, int]], order: str = "<") -> bytes:
    """A TIFF directory of (tag, type, value), as EXIF is."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    fields = [struct.pack(order + "HHI", tag, kind, 1) for tag, kind, _ in entries]
    values = [struct.pack(order + ("I" if kind == 4 else "Hxx"), value) for _, kind, value in entries]
    return head + b"".join(field + value for field, value in zip(fields, values, strict=True)) + bytes(4)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_size_of_a_jpeg(mode: str) -> None:
    header = read_jpeg_header(jpeg(mode=mode))
    assert (header.height, header.width, header.is_common, header.num_scans) == (40, 56, True, 1)


def test_a_thumbnail_is_not_the_image() -> None:
    thumbnail = jpeg(8, 8, progressive=True)
    data = jpeg(exif=b"Exif\0\0" + tiff([(274, 3, 6)]) + thumbnail)
    header = read_jpeg_header(data)
    assert (header.height, header.width, header.num_scans) == (40, 56, 1)
    assert read_orientation(header.exif) == 6


def test_scans_are_those_of_the_first_image_alone() -> None:
    whole = jpeg(progressive=True)
    scans = read_jpeg_header(whole).num_scans
    assert scans == 10  # the script of libjpeg for colours
    assert read_jpeg_header(whole + whole).num_scans == scans
    comment = segment(0xFE, b"\xff\xda" * 100)
    assert read_jpeg_header(whole[:2] + comment + whole[2:]).num_scans == scans
    assert read_jpeg_header(jpeg(mode="L", progressive=True)).num_scans == 6


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": 2}, {"subsampling": 0}, {"mode": "L"}], ids=str
)
@pytest.mark.parametrize("side", [1, 7, 8, 9, 16, 17, 700])
def test_the_emptiest_image_is_as_long_as_its_fewest_bytes(side: int, options: dict[str, Any]) -> None:
    data = encode(np.full((side, side + 40, 3), 90, np.uint8), "JPEG", quality=1, optimize=True, **options)
    scan = len(data) - data.rindex(b"\xff\xda") if "progressive" not in options else len(data)
    assert 0 < read_jpeg_header(data).min_bytes <= scan
    if side == 700:
        assert read_jpeg_header(data).min_bytes > 700 * 740 / 64 / 8


@pytest.mark.parametrize(
    ("place", "value"),
    [
        pytest.param(1, 0xC3, id="lossless"),
        pytest.param(1, 0xC9, id="arithmetic"),
        pytest.param(4, 12, id="12 bits"),
        pytest.param(9, 2, id="two components"),
        pytest.param(11, 0x31, id="three across"),
        pytest.param(14, 0x21, id="colours of two sizes"),
    ],
)
def test_uncommon_kinds_of_jpeg(place: int, value: int) -> None:
    data = bytearray(jpeg())
    data[data.index(b"\xff\xc0") + place] = value
    assert not read_jpeg_header(bytes(data)).is_common


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_common_subsamplings(subsampling: int) -> None:
    assert read_jpeg_header(jpeg(subsampling=subsampling)).is_common


@pytest.mark.parametrize(
    "filler",
    [
        pytest.param(b"\xff" * 2**20 + b"\0", id="a million fill bytes"),
        pytest.param(b"\xff\0" * 2**19, id="stuffed zeros"),
        pytest.param(b"\xff\xd0" * 2**19, id="restarts"),
        pytest.param(b"\xda" * 2**20, id="half a marker"),
    ],
)
def test_fillers_are_skipped_in_one_pass(filler: bytes) -> None:
    whole = jpeg()
    assert read_jpeg_header(whole[:2] + filler + whole[2:]) == read_jpeg_header(whole)


def test_too_many_segments() -> None:
    whole = jpeg()
    with pytest.raises(TooManyParts):
        read_jpeg_header(whole[:2] + segment(0xFE, b"") * 10_000 + whole[2:])


@pytest.mark.parametrize("content", [b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"\xff\xd8" + segment(0xDA, b""), b""])
def test_jpeg_without_a_image(content: bytes) -> None:
    with pytest.raises((ValueError, struct.error)):
        read_jpeg_header(content)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation(order: str, prefix: bytes, kind: int) -> None:
    assert read_orientation(prefix + tiff([(271, 3, 9), (274, kind, 8)], order)) == 8


@pytest.mark.parametrize(
    "exif",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"Exif\0\0", id="prefix alone"),
        pytest.param(b"not EXIF at all", id="text"),
        pytest.param(tiff([(274, 3, 0)]), id="0"),
        pytest.param(tiff([(274, 3, 9)]), id="9"),
        pytest.param(tiff([(274, 4, 2**32 - 1)]), id="4 billion"),
        pytest.param(tiff([(271, 3, 6)]), id="another tag"),
        pytest.param(tiff([(274, 3, 6)])[:18], id="cut short"),
        pytest.param(b"II*\0\xff\xff\xff\xff" + bytes(40), id="directory beyond the end"),
        pytest.param(b"MM\0*\0\0\0\x08\xff\xff" + bytes(500), id="65,535 entries"),
    ],
)
def test_no_usable_orientation_is_upright(exif: bytes) -> None:
    assert read_orientation(exif) == 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="lossy"),
        pytest.param({"lossless": True}, id="lossless"),
        pytest.param({"exif": b"Exif\0\0" + tiff([(274, 3, 1)])}, id="extended"),
        pytest.param({"save_all": True, "append_images": [Image.new("RGB", (300, 200), "red")]}, id="animated"),
    ],
)
def test_size_of_a_webp(options: dict[str, Any]) -> None:
    assert read_webp_size(encode(draw_image(200, 300), "WEBP", **options)) == (200, 300)


def test_webp_without_a_image() -> None:
    with pytest.raises(ValueError, match="no image"):
        read_webp_size(b"RIFF\x10\0\0\0WEBPICCP" + bytes(30))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_the_emptiest_png_is_as_long_as_its_fewest_bytes(mode: str) -> None:
    data = encode(np.zeros((2000, 3000, 3), np.uint8), "PNG", mode, compress_level=9)
    header = read_png_header(data)
    assert (header.height, header.width) == (2000, 3000)
    assert len(data) / 4 < header.min_bytes <= len(data)
