"""The table of formats in charm/images/README.md is what the decoder does, and each pixel that is read is known."""

import io
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from charm.images.arrays import as_array
from charm.images.decode import decode_image
from charm.images.limits import FORMATS, Limits, list_formats
from charm.images.quarantine import inspect_in_child
from charm.images.reasons import REASONS, Rejected
from tests.charm.images.files import (
    add_chunk,
    add_segment,
    bmp,
    box,
    encode,
    exif,
    gif,
    jp2_with,
    retag,
    tiff,
    two_directories,
)
from tests.charm.images.test_colour import GREY_INKS, P3

ROOT = Path(__file__).parents[3]
# Flat colours in blocks of 16, which lossy formats keep to rounding.
PIXELS = np.kron(np.array([[(200, 60, 80), (30, 120, 220)], [(90, 180, 40), (240, 230, 20)]]), np.ones((16, 16, 1)))
PIXELS = PIXELS.astype(np.uint8)
GREY = np.repeat(PIXELS[..., 1:2], 3, axis=2)
ALPHA = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 128, np.uint8)])
ON_WHITE = ((PIXELS.astype(int) * 128 + 255 * 127) / 255).round()
WIDE = PIXELS.astype(int) * 257


def and_another() -> dict[str, Any]:
    """Options with which Pillow writes a second image; a new one, as Pillow leaves settings in it."""
    return {"save_all": True, "append_images": [Image.new("RGB", (32, 32))]}


def changed(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + bytes([value]) + data[place + 1 :]


JPG = {"quality": 100, "subsampling": 0}
AV, HE = {"quality": 100, "subsampling": "4:4:4"}, {"quality": 100, "chroma": 444}
JPEG, JP2 = encode(PIXELS, "JPEG", **JPG), encode(PIXELS, "JPEG2000")
J2K_SAMPLES = JP2.index(b"\xff\x4f\xff\x51") + 42
AVIF, HEIC = encode(PIXELS, "AVIF", **AV), encode(PIXELS, "HEIF", **HE)


# format -> what is in the file -> its bytes, and its pixels where they are read without a conversion of colours.
FILES: dict[str, dict[str, tuple[bytes, np.ndarray | None]]] = {
    "JPEG": {
        "baseline": (JPEG, PIXELS),
        "progressive": (encode(PIXELS, "JPEG", progressive=True, **JPG), PIXELS),
        "grey": (encode(GREY, "JPEG", "L", quality=100), GREY),
        "inks": (encode(PIXELS, "JPEG", "CMYK", **JPG), PIXELS),
        "turned by EXIF": (encode(PIXELS, "JPEG", exif=b"Exif\0\0" + exif(6), **JPG), np.rot90(PIXELS, -1)),
        "without an end": (JPEG[:-2], PIXELS),
        "several images (MPO, Ultra HDR)": (encode(PIXELS, "MPO", **and_another(), **JPG), PIXELS),
        "Display P3": (encode(PIXELS, "JPEG", icc_profile=P3, **JPG), None),
        "profile that is damaged": (add_segment(JPEG, 0xE2, b"ICC_PROFILE\0\1\1" + bytes(200)), PIXELS),
        "12 bits": (changed(JPEG, JPEG.index(b"\xff\xc0") + 4, 12), None),
        "lossless, arithmetic": (changed(JPEG, JPEG.index(b"\xff\xc0") + 1, 0xC9), None),
        "cut short": (JPEG[: len(JPEG) // 2], None),
    },
    "PNG": {
        "8 bits": (encode(PIXELS, "PNG"), PIXELS),
        "16 bits of grey": (encode(WIDE[..., 1].astype(np.uint16), "PNG"), GREY),
        "palette": (encode(PIXELS, "PNG", "P"), np.asarray(Image.fromarray(PIXELS).convert("P").convert("RGB"))),
        "transparent": (encode(ALPHA, "PNG"), ON_WHITE),
        "animated": (encode(PIXELS, "PNG", **and_another()), PIXELS),
        "without an end": (encode(PIXELS, "PNG")[:-12], PIXELS),
        "Display P3 (iCCP, cICP, cHRM)": (encode(PIXELS, "PNG", icc_profile=P3), None),
        "HDR (PQ, HLG)": (add_chunk(encode(PIXELS, "PNG"), b"cICP", bytes([9, 16, 0, 1])), None),
    },
    "WebP": {
        "lossless": (encode(PIXELS, "WEBP", lossless=True), PIXELS),
        "transparent": (encode(ALPHA, "WEBP", lossless=True), ON_WHITE),
        "animated": (encode(PIXELS, "WEBP", lossless=True, **and_another()), PIXELS),
        "Display P3": (encode(PIXELS, "WEBP", icc_profile=P3, lossless=True), None),
    },
    "BMP": {
        "24 bits": (encode(PIXELS, "BMP"), PIXELS),
        "without masks of colours": (
            bmp(PIXELS[..., 0].astype(np.uint32), 124, (0, 0, 0, 0xFF000000)),
            None,
        ),
    },
    "TIFF": {
        "8 bits": (tiff(PIXELS.astype(int)), PIXELS),
        "16 bits": (tiff(WIDE, 16), PIXELS),
        "16 bits in planes": (tiff(WIDE, 16, planes=2), PIXELS),
        "12 bits of grey": (tiff(GREY[..., :1].astype(int) * 16, 12, 1), GREY),
        "inks": (encode(PIXELS, "TIFF", "CMYK"), PIXELS),
        "inks with a profile": (encode(PIXELS, "TIFF", "CMYK", icc_profile=GREY_INKS), None),
        "CIELAB": (tiff(np.full((8, 8, 3), (255, 0, 0)), photometric=8), np.full((8, 8, 3), 255)),
        "several pages": (encode(PIXELS, "TIFF", **and_another()), PIXELS),
        "Display P3": (encode(PIXELS, "TIFF", icc_profile=P3), None),
        "floating point": (encode(PIXELS[..., 0].astype(np.float32), "TIFF"), None),
        "numbers with a sign": (tiff(GREY[..., :1].astype(int), 8, 1, more={339: (3, [2])}), None),
        "a thumbnail first": (two_directories({254: (4, [1])}, {}, sub=False), None),
        "RAW of a camera (DNG, NEF, CR2, ARW)": (two_directories({254: (4, [1])}, {}, sub=True), None),
    },
    "GIF": {
        "one image": (gif(2, 2, [0, 1, 1, 0]), np.array([[[0] * 3, [255] * 3], [[255] * 3, [0] * 3]])),
        "animated": (gif(2, 2, [0, 1, 1, 0], more=True), np.array([[[0] * 3, [255] * 3], [[255] * 3, [0] * 3]])),
        "transparent": (gif(2, 2, [0, 1, 1, 0], transparent=0), np.full((2, 2, 3), 255)),
        "smaller than its canvas": (gif(2, 2, [0, 1, 1, 0], canvas=(4, 4)), None),
        "cut short": (gif(2, 2, [0, 1, 1, 0])[:-5], None),
    },
    "AVIF": {
        "8 bits": (AVIF, PIXELS),
        "transparent": (encode(ALPHA, "AVIF", **AV), ON_WHITE),
        "turned": (encode(PIXELS, "AVIF", exif=exif(6), **AV), np.rot90(PIXELS, -1)),
        "animated": (encode(PIXELS, "AVIF", **and_another(), **AV), PIXELS),
        "Display P3 (ICC, nclx)": (retag(AVIF, 12, 13), None),
        "HDR (PQ, HLG)": (retag(AVIF, 9, 16), None),
        "cut short": (AVIF[:-20], None),
    },
    "HEIC": {
        "8 bits": (HEIC, PIXELS),
        "transparent": (encode(ALPHA, "HEIF", **HE), ON_WHITE),
        "10 bits of grey": (encode(WIDE[..., 1].astype(np.uint16), "HEIF", quality=100), GREY),
        "turned": (encode(PIXELS, "HEIF", exif=exif(6), **HE), np.rot90(PIXELS, -1)),
        "several images": (encode(PIXELS, "HEIF", **and_another(), **HE), PIXELS),
        "Display P3 (ICC, nclx)": (encode(PIXELS, "HEIF", icc_profile=P3, **HE), None),
        "HDR (PQ, HLG)": (retag(HEIC, 9, 18), None),
        "cut short": (HEIC[:-20], None),
    },
    "JPEG 2000": {
        "8 bits": (JP2, PIXELS),
        "codestream alone": (encode(PIXELS, "JPEG2000", no_jp2=True), PIXELS),
        "grey": (encode(GREY, "JPEG2000", "L"), GREY),
        "16 bits of grey": (encode(WIDE[..., 1].astype(np.uint16), "JPEG2000"), GREY),
        "transparent": (encode(ALPHA, "JPEG2000"), ON_WHITE),
        "a fourth channel that nothing explains": (encode(ALPHA, "JPEG2000", no_jp2=True), None),
        "inks, CIELAB": (jp2_with(JP2, b"colr", box(b"colr", b"\1\0\0" + struct.pack(">I", 14))), None),
        "numbers with a sign": (changed(JP2, J2K_SAMPLES, 0x87), None),
        "cut short": (JP2[:-20], None),
    },
    "others": {
        "PPM": (encode(PIXELS, "PPM"), None),
        "RAW of Canon (CR3)": (struct.pack(">I", 24) + b"ftypcrx " + bytes(100), None),
        "RAW of Fujifilm": (b"FUJIFILMCCD-RAW " + bytes(100), None),
    },
}
CASES = [(name, kind) for name, kinds in FILES.items() for kind in kinds]


def describe(data: bytes) -> str:
    """What becomes of a file, as the table says it."""
    try:
        notes = decode_image(data).notes
    except Rejected as error:
        return f"refused: `{error.reason}`"
    return "read" + (f", noted {', '.join(f'`{note}`' for note in notes)}" if notes else "")


def rows() -> Iterator[str]:
    for name, kinds in FILES.items():
        outcomes: dict[str, list[str]] = {}
        for kind, (data, _) in kinds.items():
            outcomes.setdefault(describe(data), []).append(kind)
        for outcome, alike in outcomes.items():
            yield f"| {name} | {'; '.join(alike)} | {outcome} |"


def test_the_table_is_what_the_decoder_does() -> None:
    table = "\n".join(["| format | what is in the file | what becomes of it |", "|---|---|---|", *rows()])
    assert table in (ROOT / "charm" / "images" / "README.md").read_text(), table
    assert {*FILES} == {one.name for one in FORMATS.values()} | {"others"}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_pixels_are_known(name: str, kind: str) -> None:
    data, expected = FILES[name][kind]
    if expected is not None:
        assert np.abs(decode_image(data).pixels.astype(int) - expected).max() <= 3
    elif describe(data).startswith("read"):
        assert "icc" in describe(data)  # tests/charm/images/test_colour.py


@pytest.mark.parametrize("name", FILES)
def test_the_child_says_the_same(name: str, tmp_path: Path) -> None:
    """The child's limits of memory and time are enough, and its environment has every decoder."""
    for index, (data, _) in enumerate(FILES[name].values()):
        (tmp_path / f"{index}").write_bytes(data)
    for facts, (data, _) in zip(
        inspect_in_child(tmp_path, [f"{index}" for index in range(len(FILES[name]))], Limits()),
        FILES[name].values(),
        strict=True,
    ):
        reason = facts["reason"]
        assert describe(data).startswith(f"refused: `{reason}`" if reason else "read")


def test_heic_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(Rejected, match=r'pip install "charm-vit\[heif\]"'):
        as_array(HEIC)


def test_messages_name_every_format() -> None:
    assert REASONS["format"] == f"not a {list_formats('or')} file"
    assert list_formats("or") == "JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC or JPEG 2000"


def test_an_opened_image_of_every_format_is_its_file(tmp_path: Path) -> None:
    for extension, one in FORMATS.items():
        data = next(iter(FILES[one.name].values()))[0]
        image = Image.open(io.BytesIO(data))
        assert image.format in one.pillow
        assert decode_image(data).extension == extension
        assert np.array_equal(as_array(image), decode_image(data).pixels)
