"""Whole files that decoders warn of are read; damaged ones stay refused, whatever harmless fault they have besides."""

import re
import struct
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from charm.images.decode import decode_image
from charm.images.headers import TooManyParts
from charm.images.mending import mend_jpeg, mend_png
from charm.images.reasons import Rejected
from tests.charm.images.files import add_chunk, add_segment, chunk, encode, exif
from tests.conftest import draw_image

PIXELS = draw_image(96, 128)
SOURCES = {
    "baseline": encode(PIXELS, "JPEG"),
    "optimized": encode(PIXELS, "JPEG", optimize=True),
    "4:4:4": encode(PIXELS, "JPEG", subsampling=0, quality=95),
    "grey": encode(PIXELS, "JPEG", "L"),
    "restarts": encode(PIXELS, "JPEG", restart_marker_blocks=4),
    "progressive": encode(PIXELS, "JPEG", progressive=True),
    "progressive with restarts": encode(PIXELS, "JPEG", progressive=True, restart_marker_rows=1),
    "thumbnail": encode(PIXELS, "JPEG", exif=b"Exif\0\0" + exif(1) + encode(PIXELS[:16, :16], "JPEG")),
}


def find_scans(data: bytes) -> list[tuple[int, int]]:
    """Where the header of each scan begins, and where its pixels do."""
    scans, place = [], 2
    while match := re.compile(rb"\xff([\xc0-\xcf\xda-\xfe])").search(data, place):
        place = match.end() + struct.unpack_from(">H", data, match.end())[0]
        if match[1] == b"\xda":
            scans.append((match.start(), place))
    return scans


def without_parameters(data: bytes) -> bytes:
    """As Samsung's phones write it."""
    _, start = find_scans(data)[0]
    return data[: start - 3] + bytes(3) + data[start:]


def of_jfif_nine(data: bytes) -> bytes:
    place = data.index(b"JFIF\0") + 5
    return data[:place] + b"\x09" + data[place + 1 :]


def of_unknown_transform(data: bytes) -> bytes:
    return add_segment(data, 0xEE, b"Adobe\0\x64\0\0\0\0\x09")


HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "no parameters of the scan": without_parameters,
    "JFIF 9": of_jfif_nine,
    "bytes between segments": lambda data: data[:20] + b"\x12\x34stray\0" + data[20:],
    "zeros before the end": lambda data: data[:-2] + bytes(200) + data[-2:],
    "blanks before the end": lambda data: data[:-2] + b" " * 50 + data[-2:],
    "no end": lambda data: data[:-2],
    "no end, then zeros": lambda data: data[:-2] + bytes(333),
    "no end, then another image": lambda data: data[:-2] + encode(PIXELS[:32], "JPEG"),
    "zeros, then another image": lambda data: data[:-2] + bytes(99) + data[-2:] + encode(PIXELS[:32], "JPEG"),
    "a profile in too few parts": lambda data: add_segment(data, 0xE2, b"ICC_PROFILE\0\5\3" + bytes(24)),
    "all of it": lambda data: of_jfif_nine(data[:20] + b"stray" + data[20:])[:-2] + bytes(64),
}


def may_have(source: str, harmless: str) -> bool:
    return "progressive" not in source or harmless != "no parameters of the scan"


@pytest.mark.parametrize("source", SOURCES)
def test_whole_jpegs(source: str) -> None:
    data = SOURCES[source]
    whole = decode_image(data)
    assert "jpeg_warning" not in whole.notes
    for name, change in HARMLESS.items():
        if may_have(source, name):
            decoded = decode_image(change(data))
            assert np.array_equal(decoded.pixels, whole.pixels), name
            ignored = ("icc_ignored",) if "profile" in name else ()
            assert decoded.notes == (*whole.notes, *ignored, "jpeg_warning"), name


def test_adobe_transform_of_no_meaning() -> None:
    data = SOURCES["baseline"]
    assert np.array_equal(decode_image(of_unknown_transform(of_jfif_nine(data))).pixels, decode_image(data).pixels)


def test_orientation_is_kept() -> None:
    data = encode(PIXELS, "JPEG", exif=b"Exif\0\0" + exif(6))
    decoded = decode_image(without_parameters(data))
    assert np.array_equal(decoded.pixels, decode_image(data).pixels)
    assert decoded.notes == ("jpeg_warning", "exif_orientation")


def damage(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Bits flipped, bytes cut out, sectors zeroed, scans missing."""
    draws = np.random.default_rng(0)
    scans, end = find_scans(data), len(data) - 2
    for _ in range(25):
        place, length = int(draws.integers(scans[0][1], end - 40)), int(draws.integers(20, 400))
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(draws.integers(8))
        yield "flip", bytes(flipped)
        yield "cut", data[:place] + data[-2:]
        yield "zeroed sector", data[:place] + bytes(min(length, end - place)) + data[min(place + length, end) :]
        yield "cut and filled up", data[:place] + bytes(length * 5) + data[-2:]
    for length in range(1, 24):
        yield "cut at the end", data[: end - length] + data[-2:]
        yield "zeroed at the end", data[: end - length] + bytes(length) + data[-2:]
    for start, _ in scans[1:]:
        yield "scans missing", data[:start] + data[-2:]


def outcome(data: bytes, whole: np.ndarray) -> str:
    """refused, equal, unnoticed (libjpeg has no warning) or mended, with other pixels."""
    try:
        decoded = decode_image(data)
    except Rejected:
        return "refused"
    if np.array_equal(decoded.pixels, whole):
        return "equal"
    return "mended" if "jpeg_warning" in decoded.notes else "unnoticed"


@pytest.mark.parametrize("source", SOURCES)
def test_no_harmless_fault_hides_damage(source: str) -> None:
    """What libjpeg notices alone, and only that, can be noticed beside a harmless fault, too."""
    data = SOURCES[source]
    whole = decode_image(data).pixels
    refused = 0
    for kind, damaged in damage(data):
        if outcome(damaged, whole) != "refused":
            continue
        refused += 1
        for name, change in HARMLESS.items():
            if may_have(source, name):
                assert outcome(change(damaged), whole) != "mended", f"{kind}, {name}"
    assert refused > 40


@pytest.mark.parametrize("marker", [0xC4, 0xDB, 0xDD])
def test_a_segment_that_lost_its_marker_is_no_stray(marker: int) -> None:
    data = SOURCES["restarts"]
    place = data.index(bytes((255, marker)))
    for damaged in (b"\xfe" + bytes([marker]), b"\xff\0"):
        with pytest.raises(Rejected, match="damaged"):
            decode_image(data[:place] + damaged + data[place + 2 :])


def test_a_complaint_about_pixels_ends_it() -> None:
    with pytest.raises(ValueError, match="bad Huffman code"):
        mend_jpeg(SOURCES["baseline"], "Corrupt JPEG data: bad Huffman code")


def test_mending_takes_one_pass() -> None:
    """20 MB of what a search could stumble over."""
    data = SOURCES["baseline"]
    for filler in (b"\xff\0" * 10**7, b"\0" * 2 * 10**7, b"\xff\xd0" * 10**7):
        started = time.process_time()
        mend_jpeg(data[:20] + b"x" + filler + data[20:], "Premature end of JPEG file")
        assert time.process_time() - started < 1
    with pytest.raises(TooManyParts):
        mend_jpeg(data[:2] + b"\xff\xfe\0\2" * 20_000, "Premature end of JPEG file")


def png(pixels: np.ndarray = PIXELS[:20, :30]) -> bytes:
    return encode(pixels, "PNG")


def in_parts(data: bytes, size: int = 50) -> bytes:
    """A PNG with its pixels in many chunks, and text behind them."""
    place = data.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", data, place)
    pixels = data[place + 8 : place + 8 + length]
    chunks = b"".join(chunk(b"IDAT", pixels[start : start + size]) for start in range(0, length, size))
    return data[:place] + chunks + chunk(b"tEXt", b"a\0b") + chunk(b"IEND", b"")


@pytest.mark.parametrize(("data", "after"), [(png(), 12), (in_parts(png()), 12 + 15)], ids=["one chunk", "many"])
def test_png_cut_anywhere(data: bytes, after: int) -> None:
    """With all pixels it is read, and with one byte less it is not."""
    for length in range(8, len(data)):
        if length < len(data) - after:
            with pytest.raises(Rejected, match="damaged"):
                decode_image(data[:length])
        else:
            decoded = decode_image(data[:length])
            assert np.array_equal(decoded.pixels, PIXELS[:20, :30])
            assert decoded.notes == ("png_warning",)


@pytest.mark.parametrize("name", [b"tEXt", b"iTXt", b"gAMA", b"eXIf", b"prVt", b"iCCP"])
@pytest.mark.parametrize("after_pixels", [False, True])
def test_a_wrong_checksum_beside_the_pixels(name: bytes, after_pixels: bool) -> None:
    damaged = add_chunk(png(), name, exif(6), after_pixels=after_pixels, damage=1)
    decoded = decode_image(damaged)
    assert np.array_equal(decoded.pixels, PIXELS[:20, :30])
    assert decoded.notes == ("png_warning",)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"])
def test_a_wrong_checksum_of_pixels_is_damage(name: bytes) -> None:
    colours = encode(PIXELS, "PNG", "P", transparency=3)
    place = colours.index(name) - 4
    end = place + 12 + struct.unpack_from(">I", colours, place)[0]
    damaged = bytearray(colours)
    damaged[end - 1] ^= 1
    with pytest.raises(Rejected, match="damaged"):
        decode_image(bytes(damaged))


def test_every_flipped_bit_of_a_png_is_found() -> None:
    """But for those of the end's length, after which nothing comes."""
    data = encode(PIXELS[:9, :11], "PNG")
    assert mend_png(data) is data
    for place in range(8 * 8, 8 * len(data)):  # not in the signature, which makes it a PNG
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        if place // 8 in range(len(data) - 12, len(data) - 8):
            assert outcome(bytes(damaged), PIXELS[:9, :11]) in ("equal", "refused")
        else:
            with pytest.raises((ValueError, struct.error)):
                mend_png(bytes(damaged))


def test_bytes_behind_a_png_are_no_fault() -> None:
    assert decode_image(png() + b"tail").notes == ()


def test_too_many_chunks() -> None:
    with pytest.raises(TooManyParts):
        mend_png(b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"") * 200_000)
