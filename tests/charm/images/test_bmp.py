"""BMP by its header: right, or refused."""

import itertools
import struct

import cv2
import numpy as np
import pytest

from charm.images.decode import decode_image
from charm.images.reasons import Rejected
from tests.charm.images.files import bmp, encode, outcome
from tests.conftest import draw_image

HEADERS = (40, 52, 56, 64, 108, 124)  # BITMAPINFOHEADER, V2, V3, OS/2, V4, V5
PLAIN = {
    "uint32": (0xFF0000, 0xFF00, 0xFF, 0),
    "uint64": (0xFF0000, 0xFF00, 0xFF, 0),
    "uint16": (0x7C00, 0x3E0, 0x1F, 0),
}
MASKS: dict[str, list[tuple[int, ...]]] = {
    "uint32": [
        (),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF0000, 0xFF00, 0xFF, 0),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        (0xFF000000, 0xFF0000, 0xFF00, 0),
        (0x3FF00000, 0xFFC00, 0x3FF, 0),
        (0, 0, 0, 0),
    ],
    "uint64": [(), (0xFF0000, 0xFF00, 0xFF, 0), (0xFF, 0xFF00, 0xFF0000, 0)],  # of 24 bits
    "uint16": [
        (),
        (0xF800, 0x7E0, 0x1F, 0),
        (0x7C00, 0x3E0, 0x1F, 0),
        (0x7C00, 0x3E0, 0x1F, 0x8000),
        (0xF00, 0xF0, 0xF, 0),
    ],
}


def place(values: np.ndarray, mask: int) -> np.ndarray:
    """Values of 0..1 in the bits of a mask."""
    most = mask >> ((mask & -mask).bit_length() - 1) if mask else 0
    return np.round(values * most).astype(np.uint64) * np.uint64(mask & -mask)


def read(pixels: np.ndarray, mask: int) -> np.ndarray:
    """0..255."""
    return (pixels & np.uint64(mask)).astype(float) * 255 / mask if mask else np.zeros(pixels.shape)


@pytest.mark.parametrize("kind", MASKS)
def test_sweep(kind: str) -> None:
    draws = np.random.default_rng(0)
    right = 0
    alphas = {"zero": np.zeros((5, 7)), "full": np.ones((5, 7)), "some": draws.random((5, 7))}
    for header, masks, top_down, (name, alpha) in itertools.product(
        HEADERS, MASKS[kind], (False, True), alphas.items()
    ):
        used = masks or PLAIN[kind]
        has_alpha = bool(masks) and header >= 56 and used[3] != 0
        pixels = np.sum([place(draws.random((5, 7)), mask) for mask in used[:3]], axis=0).astype(np.uint64)
        unused = np.uint64((2**32 - 1) & ~(used[0] | used[1] | used[2])) if kind == "uint32" else np.uint64(0)
        filling = place(alpha, used[3]) if used[3] else place(alpha, 0xFF000000) & unused
        pixels |= filling
        expected = np.stack([read(pixels, mask) for mask in used[:3]], axis=-1)
        if has_alpha and filling.any():
            opaque = read(pixels, used[3])[..., None] / 255
            expected = expected * opaque + 255 * (1 - opaque)
        data = bmp(pixels.astype(kind), header, masks, top_down)
        what = f"{kind} {header=} {[hex(mask) for mask in masks]} {top_down=} {name=}"
        found = outcome(data)
        if isinstance(found, str):
            assert (found, bool(masks)) == ("mode", True), what
        else:
            right += 1
            assert np.abs(found - expected).max() <= 1, what
    assert right >= 50


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_as_another_reader_has_them(mode: str) -> None:
    data = encode(draw_image(9, 13), "BMP", mode)
    other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(decode_image(data).pixels, other)


def test_unused_alpha_is_opaque() -> None:
    colours = draw_image(9, 13).astype(np.uint32)
    pixels = colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]
    decoded = decode_image(bmp(pixels, 124, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)))
    assert np.array_equal(decoded.pixels, colours)
    assert decoded.notes == ()


def indexed(bits: int, palette: list[int], rows: bytes) -> bytes:
    colours = b"".join(bytes([value] * 3 + [0]) for value in palette)
    info = struct.pack("<IiiHHIIiiII", 40, 8, 1, 1, bits, 0, len(rows), 0, 0, len(palette), 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + len(colours)) + info + colours + rows


def test_few_greys_in_many_bits_are_refused() -> None:
    """Of which Pillow reads one bit each, or eight."""
    for data in (indexed(8, [0, 255], bytes([0, 1] * 4)), indexed(4, list(range(16)), bytes(4))):
        with pytest.raises(Rejected, match="kind of pixels"):
            decode_image(data)
    assert decode_image(indexed(8, [9, 255], bytes([0, 1] * 4))).pixels[0, :, 0].tolist() == [9, 255] * 4
