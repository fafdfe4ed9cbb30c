"""MUSIQ's input: sizes, padding, counts of tokens, and what is left out of a large image."""

import numpy as np
import pytest

from charm.inputs.musiq import MusiqInput


def draw(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image_hw", "grids", "count"),
    [((480, 640), ((6, 7), (9, 12), (15, 20)), 450), ((768, 1024), ((6, 7), (9, 12), (24, 32)), 918)],
    ids=str,
)
def test_counts_are_those_of_the_specification(
    image_hw: tuple[int, int], grids: tuple[tuple[int, int], ...], count: int
) -> None:
    tokens = MusiqInput()(draw(*image_hw))
    assert (tokens.grids, tokens.seq_len, len(tokens.patch_valid)) == (grids, count, 1024)
    assert np.bincount(tokens.scale_id[tokens.patch_valid]).tolist() == [h * w for h, w in grids]


@pytest.mark.parametrize("image_hw", [(65, 100), (31, 33), (1, 700)], ids=str)
def test_padding_is_shared_by_both_sides_and_grey(image_hw: tuple[int, int]) -> None:
    image, made = draw(*image_hw), MusiqInput()
    frame = made.frame(image)
    assert all(side % 32 == 0 and side - own < 32 for side, own in zip(frame.shape, image_hw, strict=False))
    top, left = ((side - own) // 2 for side, own in zip(frame.shape, image_hw, strict=False))
    inside = np.s_[top : top + image_hw[0], left : left + image_hw[1]]
    np.testing.assert_array_equal(frame[inside], image)
    frame = frame.copy()
    frame[inside] = 127
    assert (frame == 127).all()


def test_native_patches_are_the_image() -> None:
    image = draw(96, 128)
    tokens = MusiqInput()(image)
    native = np.flatnonzero(tokens.patch_valid & (tokens.scale_id == 2))
    assert native.tolist() == list(range(12))  # and first
    for token in native:
        y, x = 32 * tokens.patch_coord[token]
        np.testing.assert_array_equal(tokens.patches[token], image[y : y + 32, x : x + 32])


def test_what_is_left_out_of_a_large_image_is_native_and_everywhere() -> None:
    """Not its bottom, as the published code does."""
    tokens = MusiqInput(32, 512)(draw(1600, 1600))
    counts = np.bincount(tokens.scale_id[tokens.patch_valid])
    assert (tokens.seq_len, counts[0], counts[1]) == (512, 49, 144)
    rows = tokens.patch_coord[tokens.scale_id == 2][:, 0]
    assert set(rows.tolist()) == set(range(50))
