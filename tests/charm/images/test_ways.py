"""One image, whichever way it comes: as a file, as bytes, as an object of Pillow, as an array."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from charm.images.arrays import as_array
from charm.images.decode import decode_image
from charm.images.reasons import Rejected
from tests.charm.images.files import (
    add_chunk,
    add_segment,
    bmp,
    encode,
    exif,
    orientation_in_xmp,
    retag,
    tiff,
    two_directories,
)
from tests.charm.images.test_colour import CHRM_P3, GAMA, GREY_INKS, P3, exif_of
from tests.conftest import draw_image

PIXELS = draw_image(24, 40)
GREY = PIXELS[..., :1].astype(int)
WIDE = PIXELS.astype(int) * 257
ALPHA = np.dstack([PIXELS, PIXELS[..., 1]])
JPEG, PNG = encode(PIXELS, "JPEG"), encode(PIXELS, "PNG")
WORDS = PIXELS[..., 0].astype(np.uint32) << 16 | PIXELS[..., 1].astype(np.uint32) << 8 | PIXELS[..., 2]
BGRA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
RAW_EXIF = b"Raw profile type exif\0\nexif\n%8d\n" % len(exif(6)) + exif(6).hex().encode() + b"\n"


def damage_scan(data: bytes) -> bytes:
    place = data.index(b"\xff\xda") + 60
    return data[:place] + bytes(40) + data[place + 40 :]


# name -> (bytes, whether the file says more than Pillow's copy: of bits, of damage, of what the image is).
KINDS: dict[str, tuple[bytes, bool]] = {
    "JPEG": (JPEG, False),
    "progressive JPEG": (encode(PIXELS, "JPEG", progressive=True), False),
    "grey JPEG": (encode(PIXELS, "JPEG", "L"), False),
    "CMYK JPEG": (encode(PIXELS, "JPEG", "CMYK"), False),
    "JPEG turned by EXIF": (encode(PIXELS, "JPEG", exif=b"Exif\0\0" + exif(6)), False),
    "JPEG with orientation in XMP": (
        add_segment(JPEG, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + orientation_in_xmp(6)),
        False,
    ),
    "JPEG without its end": (JPEG[:-2], False),
    "JPEG with zeros before its end": (JPEG[:-2] + bytes(200) + JPEG[-2:], False),
    "damaged JPEG": (damage_scan(JPEG), True),
    "MPO": (encode(PIXELS, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 24))]), False),
    "PNG": (PNG, False),
    "PNG turned by EXIF": (add_chunk(PNG, b"eXIf", exif(6)), False),
    "PNG turned by EXIF after its pixels": (add_chunk(PNG, b"eXIf", exif(6), after_pixels=True), False),
    "PNG with orientation in text": (add_chunk(PNG, b"tEXt", RAW_EXIF), False),
    "PNG with orientation in text after its pixels": (add_chunk(PNG, b"tEXt", RAW_EXIF, after_pixels=True), False),
    "PNG with orientation in XMP": (
        add_chunk(PNG, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + orientation_in_xmp(6)),
        False,
    ),
    "PNG without its end": (PNG[:-12], False),
    "PNG with a wrong checksum": (add_chunk(PNG, b"tEXt", b"a\0b", damage=1), False),
    "PNG of 16 bits of grey": (encode(WIDE[..., 0].astype(np.uint16), "PNG"), False),
    "dark PNG of 16 bits": (encode((WIDE[..., 0] // 32).astype(np.uint16), "PNG"), False),
    "transparent PNG": (encode(ALPHA, "PNG"), False),
    "PNG that is wholly transparent": (encode(np.dstack([PIXELS, PIXELS[..., 0] * 0]), "PNG"), False),
    "grey PNG with alpha": (encode(ALPHA, "PNG", "LA"), False),
    "PNG of a palette": (encode(PIXELS, "PNG", "P"), False),
    "PNG of a palette with a transparent colour": (encode(PIXELS, "PNG", "P", transparency=3), False),
    "black and white PNG": (encode(PIXELS, "PNG", "1"), False),
    "APNG": (encode(PIXELS, "PNG", save_all=True, append_images=[Image.new("RGB", (40, 24))]), False),
    "WebP": (encode(PIXELS, "WEBP"), False),
    "transparent WebP": (encode(ALPHA, "WEBP", lossless=True, exact=True), False),
    "WebP turned by EXIF": (encode(PIXELS, "WEBP", exif=exif(6)), False),
    "WebP with orientation in XMP": (encode(PIXELS, "WEBP", xmp=orientation_in_xmp(6)), False),
    "animated WebP": (encode(PIXELS, "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 24))]), False),
    "TIFF": (encode(PIXELS, "TIFF"), False),
    "TIFF turned": (encode(PIXELS, "TIFF", exif=exif(6)), False),
    "compressed TIFF turned": (encode(PIXELS, "TIFF", compression="tiff_lzw", exif=exif(6)), False),
    "TIFF with orientation in XMP": (tiff(PIXELS.astype(int), more={700: (1, orientation_in_xmp(6))}), True),
    "TIFF of inks": (encode(PIXELS, "TIFF", "CMYK"), False),
    "TIFF of CIELAB": (tiff(PIXELS.astype(int), photometric=8), False),
    "TIFF of 12 bits": (tiff(GREY * 16, 12, 1), True),
    "TIFF of 16 bits": (tiff(GREY * 257, 16, 1), False),
    "big-endian TIFF of 16 bits": (tiff(GREY * 257, 16, 1, order=">"), False),
    "TIFF of 16 bits in planes": (tiff(WIDE, 16, planes=2), True),
    "TIFF of 16 bits, white is 0": (tiff(GREY * 257, 16, 0), True),
    "TIFF with a sign": (tiff(GREY, 8, 1, more={339: (3, [2])}), True),
    "TIFF of pages": (encode(PIXELS, "TIFF", save_all=True, append_images=[Image.new("RGB", (40, 24))]), False),
    "TIFF of floating point": (encode(PIXELS[..., 0].astype(np.float32), "TIFF"), False),
    "DNG": (two_directories({254: (4, [1])}, {}, sub=True), True),
    "TIFF with a thumbnail first": (two_directories({254: (4, [1])}, {}, sub=False), True),
    "BMP": (encode(PIXELS, "BMP"), False),
    "BMP of 32 bits": (bmp(WORDS, 40), False),
    "BMP with unused alpha": (bmp(WORDS, 124, BGRA), False),
    "BMP with alpha": (bmp(WORDS | PIXELS[..., 1].astype(np.uint32) << 24, 124, BGRA), False),
    "upside-down BMP": (bmp(WORDS, 124, BGRA, top_down=True), False),
    "GIF": (encode(PIXELS, "GIF"), False),
    "animated GIF": (encode(PIXELS, "GIF", save_all=True, append_images=[Image.new("RGB", (40, 24))]), False),
    "AVIF": (encode(PIXELS, "AVIF"), False),
    "AVIF turned": (encode(PIXELS, "AVIF", exif=exif(6)), False),
    "AVIF in Display P3 by its codes": (retag(encode(PIXELS, "AVIF"), 12, 13), True),
    "HEIC": (encode(PIXELS, "HEIF"), False),
    "HEIC turned": (encode(PIXELS, "HEIF", exif=exif(6)), False),
    "grey HEIC of 10 bits": (encode(WIDE[..., 0].astype(np.uint16), "HEIF"), False),
    "HEIC in Display P3": (encode(PIXELS, "HEIF", icc_profile=P3), False),
    "JPEG 2000": (encode(PIXELS, "JPEG2000"), False),
    "grey JPEG 2000 of 16 bits": (encode(WIDE[..., 0].astype(np.uint16), "JPEG2000"), False),
    "JPEG in Display P3": (encode(PIXELS, "JPEG", icc_profile=P3), False),
    "JPEG in Adobe RGB by its EXIF": (add_segment(JPEG, 0xE1, exif_of(0xFFFF, b"R03\0")), False),
    "CMYK JPEG with a profile": (encode(PIXELS, "JPEG", "CMYK", icc_profile=GREY_INKS), False),
    "PNG in Display P3": (encode(PIXELS, "PNG", icc_profile=P3), False),
    "PNG in Display P3 by its chunks": (
        add_chunk(add_chunk(PNG, b"gAMA", GAMA), b"cHRM", CHRM_P3),
        False,
    ),
    "PNG in Display P3 by its codes": (add_chunk(PNG, b"cICP", bytes([12, 13, 0, 1])), True),
    "transparent PNG in Display P3": (encode(ALPHA, "PNG", icc_profile=P3), False),
    "TIFF in Display P3": (encode(PIXELS, "TIFF", icc_profile=P3), False),
    "WebP in Display P3": (encode(PIXELS, "WEBP", icc_profile=P3), False),
    "PNG with a damaged profile": (encode(PIXELS, "PNG", icc_profile=P3[:200]), False),
    "PPM": (encode(PIXELS, "PPM"), True),
}


def outcome(read: Callable[[], Any]) -> np.ndarray | str:
    """The pixels, or the reason of the refusal; "Pillow" where it does not open or decode a file at all."""
    try:
        array: np.ndarray = read()
    except Rejected as error:
        return error.reason
    except OSError:
        return "Pillow"
    return array


def loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


def opened(source: Any, change: Callable[[Image.Image], Image.Image] = lambda image: image) -> np.ndarray:
    with Image.open(source) as image:
        return as_array(change(image))


@pytest.mark.parametrize("name", KINDS)
def test_every_way_gives_one_image_or_one_refusal(name: str, tmp_path: Path) -> None:
    data, is_more_than_a_copy = KINDS[name]
    path = tmp_path / "file"
    path.write_bytes(data)
    expected = outcome(lambda: decode_image(data).pixels)
    ways: dict[str, Callable[[], Any]] = {
        "path": lambda: as_array(path),
        "path as text": lambda: as_array(str(path)),
        "bytes": lambda: as_array(data),
        "opened": lambda: opened(path),
        "opened from memory": lambda: opened(io.BytesIO(data)),
        "loaded": lambda: opened(path, loaded),
        "array": lambda: as_array(expected) if isinstance(expected, np.ndarray) else as_array(data),
    }
    if not is_more_than_a_copy:
        ways["loaded from memory"] = lambda: opened(io.BytesIO(data), loaded)
        ways["copied"] = lambda: opened(path, lambda image: image.copy())
    for way, read in ways.items():
        found = outcome(read)
        if isinstance(found, str) and found == "Pillow":  # no object, and so no second opinion
            assert name.startswith(("JPEG without its end", "PNG with a wrong checksum")), way
        elif isinstance(expected, str):
            assert isinstance(found, str), way
            assert found == expected, way
        else:
            assert np.array_equal(found, expected), way


def test_what_was_drawn_on_an_opened_image_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    image = Image.open(path)
    image.putpixel((3, 2), (1, 2, 3))
    changed = PIXELS.copy()
    changed[2, 3] = 1, 2, 3
    assert np.array_equal(as_array(image), changed)


def test_a_file_that_was_overwritten_is_not_the_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    image = loaded(Image.open(path))
    path.write_bytes(encode(255 - PIXELS, "PNG"))
    assert np.array_equal(as_array(image), PIXELS)
    path.unlink()
    assert np.array_equal(as_array(image), PIXELS)


def test_another_frame_and_a_draft_are_what_the_caller_chose() -> None:
    pages = encode(PIXELS, "TIFF", save_all=True, append_images=[Image.new("RGB", (40, 24), (9, 9, 9))])
    image = Image.open(io.BytesIO(pages))
    image.seek(1)
    assert (as_array(image) == 9).all()
    small = Image.open(io.BytesIO(JPEG))
    small.draft("RGB", (20, 12))
    assert as_array(small).shape == (12, 20, 3)


def test_an_object_is_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        image = Image.open(file)
        place = file.tell()
        as_array(image)
        assert file.tell() == place
        assert np.array_equal(np.asarray(image), PIXELS)


def test_turned_by_the_caller_is_not_turned_again() -> None:
    image = Image.open(io.BytesIO(encode(PIXELS, "PNG", exif=exif(6))))
    assert np.array_equal(as_array(ImageOps.exif_transpose(image)), np.rot90(PIXELS, -1))


def test_a_closed_object_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with Image.open(path) as image:
        pass
    with pytest.raises(ValueError, match="open it again"):
        as_array(image)


def test_a_copy_of_twelve_bits_is_not_guessed() -> None:
    copy = Image.open(io.BytesIO(tiff(GREY * 16, 12, 1))).copy()
    with pytest.raises(ValueError, match="12 or 16 bits"):
        as_array(copy)


def test_loaded_from_memory_by_the_rules_of_its_format() -> None:
    """The file is gone, but tags and the format's name are still there."""
    for name in ("TIFF of 12 bits", "TIFF of 16 bits, white is 0", "TIFF with a sign", "DNG", "GIF", "PPM"):
        data = KINDS[name][0]
        image = loaded(Image.open(io.BytesIO(data)))
        image.fp = image._fp = None  # type: ignore[attr-defined]
        expected, found = (
            outcome(lambda data=data: decode_image(data).pixels),
            outcome(lambda image=image: as_array(image)),
        )
        assert np.array_equal(found, expected), name


def test_a_missing_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        as_array(tmp_path / "missing.jpg")
