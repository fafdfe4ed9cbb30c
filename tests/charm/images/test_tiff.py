"""TIFF by its tags: every combination comes out exactly as it went in, or is refused for a clear reason."""

import io
import itertools
import struct
import warnings
from collections import Counter

import numpy as np
import pytest

from charm.images.decode import decode_image
from tests.charm.images.files import CODINGS, Tags, encode, exif, orientation_in_xmp, outcome, tiff, two_directories
from tests.conftest import draw_image

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tifffile  # scikit-image reads TIFFs with it

HW = (11, 13)  # neither whole strips, nor tiles, nor bytes
EXTRAS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (2,), (0, 0), (2, 0))
WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8


def to_eight(samples: np.ndarray, bits: int) -> np.ndarray:
    return samples >> (bits - 8) if bits >= 8 else samples * 255 // (2**bits - 1)


def expect(samples: np.ndarray, bits: int, photometric: int, extra: tuple[int, ...], palette: np.ndarray) -> np.ndarray:
    """(h, w, 3): what the samples stand for, on white."""
    colours = 3 if photometric == RGB else 1
    if photometric == PALETTE:
        pixels = palette[samples[..., 0]]
    else:
        pixels = to_eight(samples[..., :colours], bits)
        pixels = np.repeat(255 - pixels if photometric == WHITE_IS_ZERO else pixels, 3 // colours, axis=2)
    if extra[:1] in ((1,), (2,)):
        alpha = to_eight(samples[..., colours : colours + 1], bits)
        pixels = pixels + 255 - alpha if extra[0] == 1 else np.round((pixels * alpha + 255 * (255 - alpha)) / 255)
    return pixels


@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, GREY, RGB, PALETTE])
def test_sweep(photometric: int) -> None:
    draws = np.random.default_rng(photometric)
    outcomes: Counter[str] = Counter()
    for bits, extra in itertools.product((1, 2, 4, 8, 12, 16, 32), EXTRAS):
        if photometric == PALETTE and bits > 8:
            continue
        colours = 3 if photometric == RGB else 1
        samples = draws.integers(0, 2**bits, (*HW, colours + len(extra)))
        if extra == (1,):
            samples[..., :colours] = np.minimum(samples[..., :colours], samples[..., colours:])
        palette = draws.integers(0, 256, (2 ** min(bits, 8), 3))
        more: Tags = {338: (3, extra), 320: (3, (palette.T.ravel() * 257).tolist() if photometric == PALETTE else ())}
        expected = expect(samples, bits, photometric, extra, palette)
        for planes, compression, order, layout in itertools.product((1, 2), CODINGS, "<>", ("one", "strips", "tiles")):
            data = tiff(samples, bits, photometric, planes, compression, order, layout, more)
            found = outcome(data)
            name = f"{photometric=} {bits=} {extra=} {planes=} {compression=} {order=} {layout=}"
            if isinstance(found, str):
                outcomes[found] += 1
                assert found == "mode", name
                # Nothing common is among the refused.
                assert bits not in (8, 16) or planes == 2 or extra or (bits, photometric) == (16, WHITE_IS_ZERO), name
            else:
                outcomes["right"] += 1
                assert np.abs(found - expected).max() <= (extra[:1] in ((1,), (2,))), name
    assert outcomes["right"] >= 24


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["one", "strips", "tiles"])
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("compression", [1, 8])
def test_sixteen_bits_of_colour_as_another_reader_has_them(
    planes: int, layout: str, order: str, compression: int
) -> None:
    samples = np.random.default_rng(0).integers(0, 2**16, (*HW, 3))
    data = tiff(samples, 16, RGB, planes, compression, order, layout)
    read = tifffile.imread(io.BytesIO(data))
    assert np.array_equal(read if planes == 1 else read.transpose(1, 2, 0), samples)
    assert np.array_equal(decode_image(data).pixels, samples >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("planes", [1, 2])
def test_planes_of_sixteen_bits_are_turned_as_others(planes: int, orientation: int) -> None:
    samples = np.random.default_rng(0).integers(0, 2**8, (*HW, 3))
    turned = decode_image(tiff(samples << 8, 16, RGB, planes, more={274: (3, [orientation])}))
    assert np.array_equal(turned.pixels, decode_image(tiff(samples, more={274: (3, [orientation])})).pixels)
    assert ("exif_orientation" in turned.notes) == (orientation > 1)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("compression", [1, 8])
def test_inks(planes: int, bits: int, compression: int) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (*HW, 4))
    found = outcome(tiff(samples << (bits - 8), bits, CMYK, planes, compression))
    paper = 255 - samples
    expected = paper[..., :3] * paper[..., 3:] / 255
    assert found == "mode" if isinstance(found, str) else np.abs(found - expected).max() <= 1
    assert planes == 2 or not isinstance(found, str)


def test_lab_is_converted_from_its_own_white() -> None:
    """CIELAB of TIFF is under D50: adapted to the white of sRGB (D65) by Bradford's matrix."""
    from skimage import color

    light, a, b = np.meshgrid(np.arange(40, 230, 10), np.arange(-24, 25, 8), np.arange(-24, 25, 8), indexing="ij")
    samples = np.stack([light, a % 256, b % 256], axis=-1).reshape(-1, 1, 3)
    lab = np.stack([light * 100 / 255, a, b], axis=-1).reshape(-1, 1, 3)
    bradford = np.array(
        [[0.9555766, -0.0230393, 0.0631636], [-0.0282895, 1.0099416, 0.0210077], [0.0122982, -0.0204830, 1.3299098]]
    )
    expected = color.xyz2rgb(color.lab2xyz(lab, illuminant="D50") @ bradford.T) * 255
    inside = ((expected > 16) & (expected < 250)).all(axis=-1)
    decoded = decode_image(tiff(samples, photometric=LAB))
    differences = np.abs(decoded.pixels - expected)[inside]
    assert len(differences) > 800
    assert differences.mean() < 0.4  # rounding alone: 0.25; littleCMS interpolates in a table
    assert differences.max() < 6
    assert decoded.notes == ("lab",)


def test_a_palette_of_bytes_in_words() -> None:
    palette = np.random.default_rng(0).integers(0, 256, (16, 3))
    samples = np.random.default_rng(1).integers(0, 16, (*HW, 1))
    data = tiff(samples, 4, PALETTE, more={320: (3, palette.T.ravel().tolist())})
    assert np.array_equal(decode_image(data).pixels, palette[samples[..., 0]])


def test_xmp_turns_nothing() -> None:
    samples = draw_image(*HW).astype(int)
    data = tiff(samples, more={700: (1, orientation_in_xmp(6))})
    assert np.array_equal(decode_image(data).pixels, samples)
    assert decode_image(data).notes == ()


@pytest.mark.parametrize("coding", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd", "group3", "group4"])
def test_codings_without_loss(coding: str) -> None:
    pixels = draw_image(*HW)
    mode = "1" if coding.startswith("group") else None
    whole = decode_image(encode(pixels, "PNG", mode)).pixels
    assert np.array_equal(decode_image(encode(pixels, "TIFF", mode, compression=coding)).pixels, whole)


SAMPLES = np.random.default_rng(0).integers(0, 256, (*HW, 3))


FOUR = np.dstack([SAMPLES, SAMPLES[..., 0]])
VIDEO = [15, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1]  # fractions
REFUSED: dict[str, tuple[np.ndarray, int, int, Tags]] = {
    "8 bits with a sign": (SAMPLES[..., :1], GREY, 1, {339: (3, [2])}),
    "colours with a sign": (SAMPLES, RGB, 1, {339: (3, [2, 2, 2])}),
    "colours that should be subsampled": (SAMPLES, YCBCR, 1, {}),
    "range of video": (SAMPLES, YCBCR, 1, {530: (3, [1, 1]), 532: (5, VIDEO)}),
    "spot inks": (FOUR, CMYK, 1, {332: (3, [2])}),
    "a fourth channel of unknown meaning": (FOUR, RGB, 1, {}),
    "a mask alone": (SAMPLES[..., :1], 4, 1, {}),
    "no photometric interpretation": (SAMPLES, RGB, 1, {262: (3, [])}),
    "old JPEG": (SAMPLES, RGB, 1, {259: (3, [6])}),
    "reversed bits in planes": (SAMPLES, RGB, 2, {266: (3, [2])}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_kinds_that_are_refused(name: str) -> None:
    samples, photometric, planes, more = REFUSED[name]
    assert outcome(tiff(samples, 8, photometric, planes, more=more)) == "mode"


def test_colours_that_are_not_subsampled() -> None:
    data = tiff(np.broadcast_to([100, 128, 128], (4, 4, 3)), photometric=YCBCR, more={530: (3, [1, 1])})
    assert np.array_equal(decode_image(data).pixels, np.full((4, 4, 3), 100))


def test_a_fourth_channel_that_is_opaque_whatever_it_means() -> None:
    data = tiff(np.dstack([SAMPLES, np.full(HW, 255)]))
    assert np.array_equal(decode_image(data).pixels, SAMPLES)


SMALL: Tags = {254: (4, [1])}
OLD_SMALL: Tags = {255: (3, [2])}
MASK: Tags = {254: (4, [4])}
SENSOR: Tags = {262: (3, [32803])}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(two_directories(SMALL, {}, sub=True), "raw", id="DNG, NEF, ARW: a thumbnail and SubIFDs"),
        pytest.param(two_directories(SMALL, SENSOR, sub=True), "raw", id="with a sensor's data"),
        pytest.param(two_directories({}, SENSOR, sub=True), "raw", id="a thumbnail without a word"),
        pytest.param(two_directories({}, SENSOR, sub=False), "raw", id="a sensor's data in the next directory"),
        pytest.param(two_directories({}, {}, sub=True), "raw", id="a SubIFD that is larger"),
        pytest.param(two_directories({50706: (1, [1, 4, 0, 0])}, {}, (16, 24), (8, 12), sub=True), "raw", id="DNG"),
        pytest.param(two_directories({}, {259: (3, [34713])}, (16, 24), (8, 12), sub=True), "raw", id="NEF's coding"),
        pytest.param(two_directories(SMALL, {}, sub=False), "thumbnail", id="a thumbnail, then the image"),
        pytest.param(two_directories(OLD_SMALL, {}, sub=False), "thumbnail", id="so in the old way"),
        pytest.param(two_directories(MASK, {}, sub=False), "thumbnail", id="a mask, then the image"),
        pytest.param(two_directories({}, SMALL, (16, 24), (8, 12), sub=False), 40, id="the image, then a thumbnail"),
        pytest.param(two_directories({}, SMALL, (16, 24), (8, 12), sub=True), 40, id="the image with smaller versions"),
        pytest.param(two_directories({254: (4, [2])}, {254: (4, [2])}, sub=False), 40, id="pages"),
        pytest.param(tiff(SAMPLES // 999 + 40, more=SMALL), 40, id="an image that calls itself small"),
    ],
)
def test_the_first_image_is_the_image(data: bytes, expected: str | int) -> None:
    found = outcome(data)
    assert found == expected if isinstance(found, str) else bool((found == expected).all())


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"II*\0\x10\0\0\0CR\x02\0", id="CR2"),
        pytest.param(b"\0\0\0\x18ftypcrx \0\0\0\x01", id="CR3"),
        pytest.param(b"II\x1a\0\0\0HEAPCCDR", id="CRW"),
        pytest.param(b"IIRO\x08\0\0\0", id="ORF"),
        pytest.param(b"IIRS\x08\0\0\0", id="ORF, older"),
        pytest.param(b"MMOR\0\0\0\x08", id="ORF, big-endian"),
        pytest.param(b"IIU\0\x18\0\0\0", id="RW2"),
        pytest.param(b"FUJIFILMCCD-RAW 0201", id="RAF"),
        pytest.param(b"FOVb\0\0\x02\0", id="X3F"),
        pytest.param(b"\0MRM\0\x01\0\0", id="MRW"),
    ],
)
def test_raw_files_by_their_first_bytes(start: bytes) -> None:
    assert outcome(start + bytes(400)) == "raw"


def test_directories_that_lead_round_in_circles() -> None:
    data = bytearray(two_directories({}, {}, (16, 24), (8, 12), sub=False))
    place = struct.unpack_from("<I", data, 4)[0]
    (count,) = struct.unpack_from("<H", data, place)
    struct.pack_into("<I", data, place + 2 + 12 * count, place)
    found = outcome(bytes(data))
    assert not isinstance(found, str)
    assert (found == 40).all()


def test_big_tiff_of_a_raw_converter() -> None:
    tags = [(254, 4, 1), (256, 4, 8), (257, 4, 8), (330, 16, 200)]
    entries = b"".join(struct.pack("<HHQQ", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(tags)) + entries + bytes(200)
    assert outcome(data) == "raw"


def test_exif_helper_is_what_pillow_writes() -> None:
    pixels = draw_image(*HW)
    assert np.array_equal(decode_image(encode(pixels, "TIFF", exif=exif(3))).pixels, pixels[::-1, ::-1])
