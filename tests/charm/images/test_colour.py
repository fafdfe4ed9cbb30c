"""Colours of other spaces: those of known spaces against their published matrices, all others as they are."""

import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from charm.images.arrays import as_array
from charm.images.colour import _make_profile, find_conversion
from charm.images.convert import array_to_srgb
from charm.images.decode import decode_image
from charm.images.reasons import Rejected
from tests.charm.images.files import add_chunk, add_segment, directory, encode, jp2_with_profile, retag, tiff

CASES = Path(__file__).parent / "cases"
SHADES = np.linspace(0, 255, 12).round().astype(np.uint8)
# Every mixture of 12 shades of red, green and blue, (48, 36, 3).
CUBE = np.stack(np.meshgrid(SHADES, SHADES, SHADES), axis=-1).reshape(48, 36, 3)
D65 = (0.3127, 0.329)
SRGB = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06), D65)
# Primaries and white, gamma (None: the curve of sRGB), and the published matrix from linear colours to those of sRGB.
SPACES: dict[str, tuple[Any, float | None, Any]] = {
    "Display P3": (
        ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), D65),
        None,
        [[1.2249, -0.2249, 0], [-0.0421, 1.0421, 0], [-0.0196, -0.0786, 1.0982]],
    ),
    "Adobe RGB": (
        ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65),
        563 / 256,
        [[1.3984, -0.3984, 0], [0, 1, 0], [0, -0.0429, 1.0429]],
    ),
    "ProPhoto": (
        ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.3457, 0.3585)),
        1.8,
        [[2.0343, -0.7274, -0.3069], [-0.2288, 1.2317, -0.0029], [-0.0086, -0.1533, 1.1618]],
    ),
}
PROFILES = {name: _make_profile(points, gamma) for name, (points, gamma, _) in SPACES.items()}
P3 = PROFILES["Display P3"]
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
LOSSY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "HEIF": {"quality": 100, "chroma": 444},
}


def to_srgb(pixels: np.ndarray, space: str) -> np.ndarray:
    """The colours of pixels in sRGB by the published numbers, float64."""
    _, gamma, matrix = SPACES[space]
    shares = pixels / 255
    linear = shares**gamma if gamma else np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(matrix).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_wide_colours_become_those_of_srgb(kind: str, space: str) -> None:
    decoded = decode_image(encode(CUBE, kind, icc_profile=PROFILES[space], **LOSSLESS[kind]))
    wrong = np.abs(decoded.pixels - to_srgb(CUBE, space))
    # Near black the curve of sRGB is steep, and littleCMS counts in 1/32,768 of linear light.
    assert np.percentile(wrong, 99) <= 1.5
    assert wrong.max() <= 5
    assert decoded.notes == ("icc",)


@pytest.mark.parametrize("kind", LOSSY)
def test_wide_colours_of_lossy_formats(kind: str) -> None:
    flat = np.full((64, 64, 3), (200, 60, 80), np.uint8)  # without loss worth mentioning
    decoded = decode_image(encode(flat, kind, icc_profile=P3, **LOSSY[kind]))
    assert np.abs(decoded.pixels - to_srgb(flat, "Display P3")).max() <= 3
    assert decoded.notes == ("icc",)


def test_what_phones_write() -> None:
    """The cases icc_p3.*: a scene in Display P3 with Apple's kind of profile; exactly what littleCMS makes of it."""
    scene = np.asarray(Image.open(CASES / "scene.png").convert("RGB"))
    for name in ("icc_p3.png", "icc_p3.jpg"):
        image = Image.open(CASES / name)
        profiles = io.BytesIO(image.info["icc_profile"]), ImageCms.createProfile("sRGB")
        expected = ImageCms.profileToProfile(image.convert("RGB"), *profiles)
        decoded = decode_image((CASES / name).read_bytes())
        assert np.array_equal(decoded.pixels, np.asarray(expected)), name
        assert decoded.notes == ("icc",)
        wrong = np.abs(decoded.pixels.astype(int) - scene)
        assert wrong.max() <= 2 if name.endswith("png") else wrong.mean() <= 3, name


def exif_of(colour_space: int, index: bytes) -> bytes:
    """EXIF with a colour space and an index of interoperability, as cameras write Adobe RGB without a profile."""
    first = {0x8769: (4, [26])}
    inner = {0xA001: (3, [colour_space]), 0xA005: (4, [26 + 30])}
    entry = struct.pack("<HHHI4s", 1, 1, 2, 4, index) + bytes(4)
    return b"Exif\0\0II*\0\x08\0\0\0" + directory(first, 8) + directory(inner, 26) + entry


FLAT = np.full((64, 64, 3), (200, 60, 80), np.uint8)
PNG, JPEG = encode(CUBE, "PNG"), encode(FLAT, "JPEG", **LOSSY["JPEG"])
CHRM_P3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
CHRM_SRGB = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
GAMA = struct.pack(">I", 45455)
AVIF, HEIC = (encode(FLAT, kind, **LOSSY[kind]) for kind in ("AVIF", "HEIF"))

# Tags besides ICC profiles -> the space that they name.
TAGGED: dict[str, tuple[bytes, str, np.ndarray]] = {
    "PNG, cICP": (add_chunk(PNG, b"cICP", bytes([12, 13, 0, 1])), "Display P3", CUBE),
    "PNG, cICP before iCCP": (
        add_chunk(encode(CUBE, "PNG", icc_profile=PROFILES["ProPhoto"]), b"cICP", bytes([12, 13, 0, 1])),
        "Display P3",
        CUBE,
    ),
    "PNG, gAMA and cHRM": (add_chunk(add_chunk(PNG, b"gAMA", GAMA), b"cHRM", CHRM_P3), "Display P3", CUBE),
    "JPEG, EXIF": (add_segment(JPEG, 0xE1, exif_of(0xFFFF, b"R03\0")), "Adobe RGB", FLAT),
    "AVIF, nclx": (retag(AVIF, 12, 13), "Display P3", FLAT),
    "HEIC, nclx": (retag(HEIC, 12, 13), "Display P3", FLAT),
    "JPEG 2000, ICC": (jp2_with_profile(encode(CUBE, "JPEG2000"), P3), "Display P3", CUBE),
}


@pytest.mark.parametrize("name", TAGGED)
def test_other_tags_of_colour(name: str) -> None:
    data, space, pixels = TAGGED[name]
    decoded = decode_image(data)
    assert np.percentile(np.abs(decoded.pixels - to_srgb(pixels, space)), 99) <= 3
    assert decoded.notes == ("icc",)
    as_is = decode_image(data, colour="as_is")
    assert np.abs(as_is.pixels.astype(int) - pixels).max() <= 3
    assert as_is.notes == ()
    assert np.array_equal(as_array(data, "as_is"), as_is.pixels)


LCMS_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
UNCHANGED = {
    "no tag": (PNG, PNG),
    "littleCMS's sRGB": (encode(CUBE, "PNG", icc_profile=LCMS_SRGB), PNG),
    "another sRGB": (encode(CUBE, "PNG", icc_profile=_make_profile(SRGB, None)), PNG),
    "PNG's sRGB, which goes before cHRM": (
        add_chunk(add_chunk(add_chunk(PNG, b"sRGB", b"\0"), b"gAMA", GAMA), b"cHRM", CHRM_P3),
        PNG,
    ),
    "gAMA and cHRM of sRGB": (add_chunk(add_chunk(PNG, b"gAMA", GAMA), b"cHRM", CHRM_SRGB), PNG),
    "gAMA alone": (add_chunk(PNG, b"gAMA", struct.pack(">I", 55000)), PNG),
    "cICP of sRGB": (add_chunk(PNG, b"cICP", bytes([1, 13, 0, 1])), PNG),
    "JPEG": (add_segment(JPEG, 0xE2, b"ICC_PROFILE\0\1\1" + LCMS_SRGB), JPEG),
    "EXIF of sRGB": (add_segment(JPEG, 0xE1, exif_of(1, b"R98\0")), JPEG),
    "EXIF, uncalibrated and no more": (add_segment(JPEG, 0xE1, exif_of(0xFFFF, b"R98\0")), JPEG),
    "AVIF of BT.709": (retag(AVIF, 1, 1), AVIF),
    "HEIC of no known colours": (retag(HEIC, 2, 2), HEIC),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_colours_of_srgb_stay_bit_for_bit(name: str) -> None:
    tagged, plain = UNCHANGED[name]
    decoded = decode_image(tagged)
    assert np.array_equal(decoded.pixels, decode_image(plain, colour="as_is").pixels)
    assert decoded.notes == ()


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
def test_high_dynamic_range_is_refused_unless_read_as_it_is(transfer: int) -> None:
    for data in (
        add_chunk(PNG, b"cICP", bytes([9, transfer, 0, 1])),
        retag(AVIF, 9, transfer),
        retag(HEIC, 9, transfer),
    ):
        with pytest.raises(Rejected) as error:
            decode_image(data)
        assert error.value.reason == "mode"
        assert decode_image(data, colour="as_is").notes == ()


def table_profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"Lab ", kind: bytes = b"mntr") -> bytes:
    """A profile (version 2) of any tags."""
    place, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", place + len(content), len(data))
        content += data
    head = b"lcms\x02\x40\0\0" + kind + space + pcs + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return struct.pack(">I", 4 + len(head) + len(table + content)) + head + table + content


def lut(inputs: int, grid: int, content: bytes) -> bytes:
    """ICC's table of 8 bits, to three channels."""
    matrix = [65536, 0, 0, 0, 65536, 0, 0, 0, 65536]
    return b"mft1" + bytes(4) + bytes([inputs, 3, grid, 0]) + struct.pack(">9i", *matrix) + content


RAMP = bytes(range(256))
# Cyan alone darkens, in CIELAB: 100 without it, 0 with all of it.
GREY_INKS = table_profile(
    b"CMYK", {b"A2B0": lut(4, 2, RAMP * 4 + bytes([255, 128, 128] * 8 + [0, 128, 128] * 8) + RAMP * 3)}
)
LINEAR_GREY = table_profile(
    b"GRAY",
    {b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061), b"kTRC": b"curv" + bytes(8)},
    b"XYZ ",
)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_by_their_profile(kind: str) -> None:
    decoded = decode_image(encode(FLAT, kind, "CMYK", icc_profile=GREY_INKS))
    assert np.abs(decoded.pixels.astype(int) - 194).max() <= 3  # CIELAB 78.4, as red is 200
    assert set(decoded.notes) == {"cmyk", "icc"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("wide", [False, True], ids=["8 bits", "16 bits"])
def test_grey_by_its_profile(kind: str, wide: bool) -> None:
    if wide and kind == "JPEG":
        return
    grey = np.full((16, 16), 128 * 257 if wide else 128, np.uint16 if wide else np.uint8)
    decoded = decode_image(encode(grey, kind, icc_profile=LINEAR_GREY))
    assert np.abs(decoded.pixels.astype(int) - 188).max() <= 1  # half the light
    assert set(decoded.notes) == {"grey", "icc"} | ({"16_bit"} if wide else set())


def test_transparent_pixels_are_converted_and_then_put_on_white() -> None:
    rgba = np.dstack([FLAT, np.full(FLAT.shape[:2], 128, np.uint8)])
    decoded = decode_image(encode(rgba, "PNG", icc_profile=P3))
    expected = to_srgb(FLAT, "Display P3") * 128 / 255 + 255 * 127 / 255
    assert np.abs(decoded.pixels - expected).max() <= 2
    assert decoded.notes == ("alpha_on_white", "icc")


def test_sixteen_bits_and_palettes_are_converted() -> None:
    flat = np.full((8, 8, 3), (204, 51, 102), np.uint8)  # a colour of Pillow's palette
    wide = tiff(flat.astype(int) * 257, 16, more={34675: (1, P3)})
    for data in (wide, encode(flat, "PNG", "P", icc_profile=P3)):
        decoded = decode_image(data)
        assert "icc" in decoded.notes
        assert np.abs(decoded.pixels - to_srgb(flat, "Display P3")).max() <= 2


def test_an_image_of_several_strips_is_one_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2100, 2001, 3), dtype=np.uint8)
    conversion, _ = find_conversion({"icc_profile": P3}, "RGB")
    assert conversion is not None
    whole = np.asarray(conversion.apply(Image.fromarray(pixels)))
    assert np.array_equal(array_to_srgb(pixels, conversion), whole)


XYZ = {name: b"XYZ " + bytes(4) + struct.pack(">3i", 20000, 20000, 20000) for name in (b"rXYZ", b"gXYZ", b"bXYZ")}
HOSTILE = {
    "no profile": b"\0\1\2",
    "zeros": bytes(1000),
    "cut": P3[:200],
    "header alone": P3[:128],
    "a size beyond its end": b"\xff\xff\xff\xff" + P3[4:],
    "4 billion tags": P3[:128] + b"\xff\xff\xff\xff" + P3[132:],
    "tags beyond its end": P3[:132] + b"".join(P3[at : at + 4] + b"\xff" * 8 for at in range(132, 216, 12)) + P3[216:],
    "16 MB": struct.pack(">I", 15_000_000) + P3[4:] + bytes(15_000_000 - len(P3)),
    "a link of two spaces": P3[:12] + b"link" + P3[16:],
    "named colours": P3[:12] + b"nmcl" + P3[16:],
    "of inks": GREY_INKS,
    "of grey": LINEAR_GREY,
    "no inverse": table_profile(b"RGB ", XYZ | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv" + bytes(8)), b"XYZ "),
    "a table of 255 x 255 x 255 that is not there": table_profile(b"RGB ", {b"A2B0": lut(3, 255, RAMP * 3)}),
    "a table of 15 inputs": table_profile(b"RGB ", {b"A2B0": lut(15, 255, RAMP * 15)}),
    "curves of 4 billion points": table_profile(
        b"RGB ", XYZ | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv" + bytes(4) + b"\xff" * 4), b"XYZ "
    ),
}


def with_profile(profile: bytes) -> bytes:
    """A JPEG with a profile of any length, in the parts that it takes."""
    data = JPEG
    parts = [profile[start : start + 65_000] for start in range(0, len(profile), 65_000)]
    for index, part in reversed(list(enumerate(parts))):
        data = add_segment(data, 0xE2, b"ICC_PROFILE\0" + bytes([index + 1, len(parts)]) + part)
    return data


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_profile_is_ignored_and_noted(name: str) -> None:
    data = with_profile(HOSTILE[name])
    started = time.process_time()
    decoded = decode_image(data)
    assert time.process_time() - started < 1
    if name != "no inverse":  # a profile that is singular, but whole
        assert decoded.notes == ("icc_ignored",)
        assert np.array_equal(decoded.pixels, decode_image(JPEG).pixels)


def test_a_damaged_profile_never_costs_the_image() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(P3)
        for place in random.integers(0, len(P3), 3):
            damaged[place] ^= 1 << int(random.integers(8))
        decoded = decode_image(with_profile(bytes(damaged)))
        assert decoded.notes in ((), ("icc",), ("icc_ignored",))


def test_broken_chunks_of_colour_are_ignored() -> None:
    nowhere = struct.pack(">8I", 31270, 0, 68000, 32000, 68000, 32000, 15000, 6000)
    for gamma, points in ((0, CHRM_P3), (45455, nowhere), (45455, bytes(32))):
        data = add_chunk(add_chunk(PNG, b"gAMA", struct.pack(">I", gamma)), b"cHRM", points)
        assert decode_image(data).notes == ("icc_ignored",)
    assert decode_image(add_chunk(PNG, b"cICP", bytes([77, 13, 0, 1]))).notes == ("icc_ignored",)
    bomb = add_chunk(PNG, b"iCCP", b"k\0\0" + zlib.compress(bytes(50_000_000)))
    with pytest.raises(Rejected):
        decode_image(bomb)
