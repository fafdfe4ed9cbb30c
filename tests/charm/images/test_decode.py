"""Bytes to pixels: every allowed kind of image upright in RGB, everything else refused for the right reason."""

import io
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from charm.images.decode import decode_image
from charm.images.limits import Limits
from charm.images.reasons import NOTES, Rejected
from tests.charm.images.files import encode
from tests.conftest import draw_image

ROOT = Path(__file__).parents[3]
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}
EXTENSION = {"PNG": "png", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "JPEG": "jpg"}
EXTENSION |= {"GIF": "gif", "AVIF": "avif", "HEIF": "heic", "JPEG2000": "jp2"}
# How a camera stores an image that orientation n turns upright again (EXIF 2.3, tag 274).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 1)[:, ::-1],
    8: lambda a: np.rot90(a, -1),
}


def reason_of(data: bytes, **limits: int) -> str:
    with pytest.raises(Rejected) as error:
        decode_image(data, Limits(**limits))
    return error.value.reason


def corners() -> np.ndarray:
    """(24, 40, 3), no symmetry: red, green, blue, white squares of 8 in the corners (clockwise) on black."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:8, :8], pixels[:8, -8:], pixels[-8:, -8:], pixels[-8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    return pixels


def distance(pixels: np.ndarray, expected: np.ndarray) -> float:
    assert pixels.shape == expected.shape
    return float(np.abs(pixels.astype(int) - expected).max())


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_are_exact(kind: str) -> None:
    pixels = draw_image(37, 53)
    decoded = decode_image(encode(pixels, kind, **LOSSLESS[kind]))
    assert np.array_equal(decoded.pixels, pixels)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.extension == EXTENSION[kind]


@pytest.mark.parametrize("kind", EXTENSION)
def test_every_format_in_a_fresh_process(kind: str, tmp_path: Path) -> None:
    """Pillow loads its plugins late; another test may have done so here."""
    (tmp_path / "file").write_bytes(encode(draw_image(10, 10), kind))
    code = "import sys, charm.images.decode as i; print(i.decode_image(open(sys.argv[1], 'rb').read()).extension)"
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "file"], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == EXTENSION[kind], run.stderr


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}], ids=str)
def test_jpeg(options: dict[str, Any]) -> None:
    pixels = draw_image(48, 64)
    decoded = decode_image(encode(pixels, "JPEG", quality=98, **options))
    assert np.abs(decoded.pixels.astype(int) - pixels).mean() < 8
    assert decoded.extension == "jpg"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_grey_becomes_three_equal_channels(kind: str) -> None:
    grey = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None], 16, axis=0)
    pixels = decode_image(encode(grey, kind, **LOSSLESS.get(kind, {"quality": 100}))).pixels
    assert distance(pixels, np.repeat(grey[..., None], 3, axis=2)) <= (1 if kind == "JPEG" else 0)


def test_palette() -> None:
    assert np.array_equal(decode_image(encode(corners(), "PNG", mode="P")).pixels[0, 0], [255, 0, 0])


def test_palette_with_a_transparent_colour_is_on_white() -> None:
    image = Image.fromarray(corners()).quantize(8)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=image.getpixel((20, 12)))
    pixels = decode_image(buffer.getvalue()).pixels
    assert pixels[12, 20].tolist() == [255, 255, 255]
    assert pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_put_on_white(kind: str) -> None:
    rgba = np.zeros((8, 3, 4), np.uint8)
    rgba[:, 0], rgba[:, 1], rgba[:, 2] = (10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128)
    pixels = decode_image(encode(rgba, kind, **LOSSLESS[kind])).pixels
    assert pixels[0].tolist() == [[10, 20, 30], [255, 255, 255], [127, 127, 127]]


def test_grey_with_alpha_is_put_on_white() -> None:
    grey_alpha = Image.fromarray(np.array([[[50, 255], [50, 0]]], np.uint8))
    buffer = io.BytesIO()
    grey_alpha.save(buffer, "PNG")
    assert decode_image(buffer.getvalue()).pixels.tolist() == [[[50] * 3, [255] * 3]]


def cmyk_jpeg(transform: int | None = None) -> bytes:
    """Every amount of ink; transform 2: as YCCK; None: as Pillow writes it, with an Adobe marker that says CMYK."""
    inks = np.concatenate([draw_image(64, 96), draw_image(64, 96, seed=1)[..., :1]], axis=2)
    buffer = io.BytesIO()
    Image.frombytes("CMYK", (96, 64), inks.tobytes()).save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    marker = data.index(b"Adobe") + 11
    return data if transform is None else data[:marker] + bytes([transform]) + data[marker + 1 :]


@pytest.mark.parametrize("transform", [None, 2], ids=["CMYK", "YCCK"])
def test_cmyk_jpeg_is_what_pillow_makes_of_it(transform: int | None) -> None:
    data = cmyk_jpeg(transform)
    decoded = decode_image(data)
    assert np.array_equal(decoded.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert decoded.notes == ("cmyk",)


def test_cmyk_jpeg_has_the_colours_that_went_in() -> None:
    pixels = decode_image(encode(corners(), "JPEG", mode="CMYK", quality=100, subsampling=0)).pixels
    assert distance(pixels, corners()) < 12


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"keep_rgb": True}], ids=str)
def test_jpeg_is_what_pillow_makes_of_it(options: dict[str, Any]) -> None:
    data = encode(draw_image(48, 64), "JPEG", **options)
    assert np.array_equal(decode_image(data).pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_keep_the_high_byte(kind: str) -> None:
    grey = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    assert decode_image(encode(grey, kind)).pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_sixteen_bits_of_colour() -> None:
    rows = b"\0" + struct.pack(">6H", 65535, 0, 32768, 256, 512, 1024)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert decode_image(data).pixels.tolist() == [[[255, 0, 128], [1, 2, 4]]]


@pytest.mark.parametrize(("bits", "colour"), [(2, 0), (4, 0), (16, 0), (16, 2)])
def test_a_transparent_colour_that_pillow_does_not_find_is_refused(bits: int, colour: int) -> None:
    samples = 3 if colour else 1
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1 + -(-2 * samples * bits // 8))))
    key = chunk(b"tRNS", struct.pack(f">{samples}H", *[1] * samples))
    assert reason_of(b"\x89PNG\r\n\x1a\n" + header + key + pixels + chunk(b"IEND", b"")) == "mode"


def grey_tiff(values: bytes, width: int, bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A row of grey, not compressed, as scanners and microscopes write it."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 160), (277, 1), (278, 1)]
    tags += [(279, len(values)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries).ljust(160, b"\0") + values


def test_twelve_bits_keep_the_high_byte() -> None:
    # 0x000, 0xFFF; 0x800, 0x010: two values in three bytes
    decoded = decode_image(grey_tiff(bytes.fromhex("000fff800010"), 4, 12))
    assert decoded.pixels[0, :, 0].tolist() == [0, 255, 128, 1]
    assert decoded.notes == ("grey", "16_bit")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(grey_tiff(struct.pack("<2f", 0.5, 1), 2, 32, sample_format=3), id="floating point"),
        pytest.param(grey_tiff(struct.pack("<2I", 5, 2**31), 2, 32), id="32 bits"),
        pytest.param(grey_tiff(struct.pack("<2h", -5, 5), 2, 16, sample_format=2), id="16 bits with a sign"),
        pytest.param(grey_tiff(struct.pack("<2H", 5, 5), 2, 16, photometric=0), id="16 bits, white is 0"),
        pytest.param(grey_tiff(bytes(16), 2, 64), id="64 bits"),
        pytest.param(
            b"BM" + struct.pack("<IIIIiiHHIIIIII", 70, 0, 54, 40, 2, 2, 1, 24, 4, 16, 0, 0, 0, 0), id="JPEG in BMP"
        ),
    ],
)
def test_kinds_of_pixels_that_are_not_supported(data: bytes) -> None:
    assert reason_of(data) == "mode"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        pytest.param(1, 0xC3, id="lossless"),
        pytest.param(1, 0xC9, id="arithmetic"),
        pytest.param(4, 12, id="12 bits"),
        pytest.param(11, 0x31, id="unusual subsampling"),
    ],
)
def test_kinds_of_jpeg_that_are_not_supported(place: int, value: int) -> None:
    data = bytearray(encode(corners(), "JPEG"))
    data[data.index(b"\xff\xc0") + place] = value
    assert reason_of(bytes(data)) == "mode"


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


NOTES_OF = {
    "JPEG": (encode(corners(), "JPEG"), ()),
    "PNG": (encode(corners(), "PNG"), ()),
    "grey JPEG": (encode(corners(), "JPEG", mode="L"), ("grey",)),
    "grey PNG": (encode(corners(), "PNG", mode="L"), ("grey",)),
    "1-bit TIFF": (encode(corners(), "TIFF", mode="1"), ("grey",)),
    "16-bit PNG": (encode(np.full((2, 2), 999, np.uint16), "PNG"), ("grey", "16_bit")),
    "palette": (encode(corners(), "PNG", mode="P"), ("palette",)),
    "CMYK TIFF": (encode(corners(), "TIFF", mode="CMYK"), ("cmyk",)),
    "opaque": (encode(corners(), "PNG", mode="RGBA"), ()),
    "transparent": (encode(np.full((2, 2, 4), 9, np.uint8), "PNG"), ("alpha_on_white",)),
    "turned JPEG": (encode(corners(), "JPEG", exif=with_exif(6)), ("exif_orientation",)),
    "turned PNG": (encode(corners(), "PNG", mode="L", exif=with_exif(6)), ("grey", "exif_orientation")),
    "turned TIFF": (encode(corners(), "TIFF", exif=with_exif(3)), ("exif_orientation",)),
    "upright": (encode(corners(), "WEBP", exif=with_exif(1)), ()),
}


@pytest.mark.parametrize("name", NOTES_OF)
def test_what_was_done_is_noted(name: str) -> None:
    data, notes = NOTES_OF[name]
    assert decode_image(data).notes == notes
    assert set(notes) <= NOTES.keys()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_of_several_images(kind: str) -> None:
    others = [Image.new("RGB", (40, 24), "red")]
    options = LOSSLESS.get(kind, {"quality": 100, "subsampling": 0})
    decoded = decode_image(encode(corners(), kind, save_all=True, append_images=others, **options))
    assert distance(decoded.pixels, corners()) < 12
    assert decoded.notes == ("first_frame",)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16"])
def test_a_image_of_several_strips_is_one_image(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4001, 2100), dtype=np.uint8)
    if mode == "I;16":
        data, expected = encode(pixels.astype(np.uint16) * 256, "TIFF"), np.repeat(pixels[..., None], 3, axis=2)
    else:
        image = Image.fromarray(pixels).convert(mode)
        data, expected = encode(pixels, "TIFF", mode=mode), np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(data).pixels, expected)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = LOSSLESS.get(kind, {"quality": 100, "subsampling": 0})
    pixels = decode_image(encode(STORED[orientation](corners()), kind, exif=exif, **options)).pixels
    assert distance(pixels, corners()) < 12
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_out_of_range_changes_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_image(encode(corners(), "PNG", exif=exif)).pixels, corners())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"score,path\n1,a.jpg\n", "format", id="text"),
        pytest.param(b"\0" * 5000, "format", id="zeros"),
        pytest.param(encode(corners(), "PPM"), "format", id="PPM"),
        pytest.param(encode(corners(), "ICO"), "format", id="ICO"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "format", id="SVG"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format", id="EPS, which runs Ghostscript"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


def test_unreadable_exif_leaves_the_image_as_it_is() -> None:
    data = encode(corners(), "JPEG", quality=100, subsampling=0, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert distance(decode_image(data).pixels, corners()) < 12


def test_want_of_memory_says_nothing_about_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("Insufficient memory (case 4)")  # as libjpeg says it

    monkeypatch.setattr("simplejpeg.decode_jpeg", fail)
    with pytest.raises(MemoryError):
        decode_image(encode(corners(), "JPEG"))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}], ids=str)
def test_jpeg_cut_anywhere_is_refused(options: dict[str, Any]) -> None:
    data = encode(draw_image(48, 64), "JPEG", **options)
    # The last two bytes say that the image ends; the scan before them is whole.
    assert {reason_of(data[:length]) for length in range(1, len(data) - 2, 7)} <= {"corrupt", "format"}


def flip_bits(data: bytes, places: range) -> set[tuple[int, ...] | str]:
    """What comes of each single damaged byte: the frame, or the reason of the refusal."""
    outcomes: set[tuple[int, ...] | str] = set()
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        try:
            outcomes.add(decode_image(bytes(damaged), Limits(max_pixels=10**6)).pixels.shape)
        except Rejected as error:
            outcomes.add(error.reason)
    return outcomes


@pytest.mark.parametrize("kind", EXTENSION)
def test_flipped_bits_never_change_the_frame(kind: str) -> None:
    data = encode(draw_image(40, 56), kind)
    # Pixel data; what the headers say may be another size.
    middle = range(len(data) // 3, 2 * len(data) // 3) if kind != "HEIF" else range(data.index(b"mdat") + 4, len(data))
    outcomes = flip_bits(data, middle[:: max(1, len(middle) // 150)])
    assert outcomes <= {(40, 56, 3), "corrupt"}
    if kind in ("JPEG", "PNG"):  # the others hold no redundancy that could tell
        assert "corrupt" in outcomes


@pytest.mark.parametrize("kind", EXTENSION)
def test_flipped_bits_in_the_header_never_crash(kind: str) -> None:
    outcomes = flip_bits(encode(draw_image(20, 30), kind), range(120))
    allowed = {"corrupt", "format", "mode", "raw", "too_large", "too_long"}
    assert {outcome for outcome in outcomes if isinstance(outcome, str)} <= allowed
    assert "format" in outcomes


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def lying_png(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def lying_jpeg(width: int, height: int) -> bytes:
    data = bytearray(encode(corners(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {kind: encode(draw_image(10, 11), kind) for kind in EXTENSION}
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    # This one allocates its pixels when it is opened.
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile", lambda *_: pytest.fail("opened"))
    assert {reason_of(one, max_pixels=109) for one in data.values()} == {"too_large"}


@pytest.mark.parametrize("kind", EXTENSION)
def test_every_limit_holds_for_every_format(kind: str) -> None:
    data = encode(draw_image(10, 300), kind)
    assert reason_of(data, max_side=299) == "too_long"
    assert reason_of(data, max_pixels=2999) == "too_large"
    assert reason_of(data, max_bytes=len(data) - 1) == "too_many_bytes"
    limits = Limits(max_pixels=3000, max_side=300, max_bytes=len(data))
    assert decode_image(data, limits).pixels.shape == (10, 300, 3)


def test_scans_are_limited() -> None:
    data = encode(corners(), "JPEG", progressive=True)  # 10 scans
    assert reason_of(data, max_scans=9) == "too_many_parts"
    assert decode_image(data, Limits(max_scans=10)).pixels.shape == (24, 40, 3)


def test_exactly_as_many_pixels_as_allowed() -> None:
    assert decode_image(encode(draw_image(10, 11), "PNG"), Limits(max_pixels=110)).pixels.shape == (10, 11, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(lying_png(2**31 - 1, 2**31 - 1), "too_large", id="PNG of 4 exapixels"),
        pytest.param(lying_png(9999, 9999), "corrupt", id="PNG just below the limit"),
        pytest.param(lying_png(0, 10), "corrupt", id="PNG without width"),
        pytest.param(lying_jpeg(65500, 65500), "too_large", id="JPEG of 4 gigapixels"),
        pytest.param(lying_jpeg(9000, 9000), "corrupt", id="JPEG just below the limit"),
        pytest.param(lying_jpeg(0, 0), "corrupt", id="JPEG without size"),
    ],
)
def test_a_header_that_lies_is_refused_at_once(data: bytes, reason: str) -> None:
    started = time.process_time()
    assert reason_of(data) == reason
    assert time.process_time() - started < 2
