"""Sizes: an image keeps its pixels when it is fitted, each axis by itself, and the grids follow from its size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charm.tokenization.geometry import cell_sides, fit_to_grid, fitted_hw, limit_edge, plan_layout

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))
MULTIPLES = st.integers(1, 40)
FITS = st.sampled_from(["nearest", "pad"])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("num_scales", "coarse_ratio", "sides"), [(2, 2, (1, 2)), (2, 3, (1, 3)), (2, 4, (1, 4)), (3, 2, (2, 3, 4))]
)
def test_cell_sides(num_scales: int, coarse_ratio: int, sides: tuple[int, ...]) -> None:
    assert cell_sides(num_scales, coarse_ratio) == sides


@pytest.mark.parametrize(("num_scales", "coarse_ratio"), [(1, 2), (2, 1), (2, 5), (3, 3), (4, 2)])
def test_unknown_scales_are_refused(num_scales: int, coarse_ratio: int) -> None:
    with pytest.raises(ValueError, match=f"num_scales={num_scales} with coarse_ratio={coarse_ratio}: expected 2 "):
        cell_sides(num_scales, coarse_ratio)


@pytest.mark.parametrize(
    ("image_hw", "fit", "fitted"),
    [
        pytest.param((587, 561), "nearest", (588, 560), id="one axis padded by 1, the other cropped by 1"),
        pytest.param((560, 573), "nearest", (560, 560), id="an exact multiple stays"),
        pytest.param((574, 573), "nearest", (588, 560), id="a half is padded"),
        pytest.param((1, 13), "nearest", (28, 28), id="smaller than half a cell"),
        pytest.param((29, 27), "nearest", (28, 28), id="one off"),
        pytest.param((587, 561), "pad", (588, 588), id="never cropped"),
        pytest.param((1, 28), "pad", (28, 28), id="padded from one pixel"),
    ],
)
def test_fitted_size_at_28_pixels(image_hw: tuple[int, int], fit: str, fitted: tuple[int, int]) -> None:
    assert fitted_hw(image_hw, 28, fit) == fitted
    assert fit_to_grid(noise(*image_hw, 3), 28, fit).shape == (*fitted, 3)


def test_unknown_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="fit='crop': expected one of nearest, pad"):
        fitted_hw((28, 28), 28, "crop")


@SETTINGS
@given(SIZES, MULTIPLES)
def test_nearest_is_the_nearest_multiple(image_hw: tuple[int, int], multiple: int) -> None:
    for side, fitted in zip(image_hw, fitted_hw(image_hw, multiple), strict=True):
        assert fitted % multiple == 0
        assert fitted > 0
        assert 2 * abs(fitted - side) <= multiple or (side < multiple and fitted == multiple)


@SETTINGS
@given(SIZES, MULTIPLES, FITS, st.sampled_from([(), (3,)]))
def test_fitting_takes_the_middle_or_repeats_the_edge(
    image_hw: tuple[int, int], multiple: int, fit: str, channels: tuple[int, ...]
) -> None:
    image = noise(*image_hw, *channels)
    before = image.copy()
    fitted = fit_to_grid(image, multiple, fit)
    target = fitted_hw(image_hw, multiple, fit)
    # int() rounds towards zero: of an odd change the bottom or right side takes one pixel more.
    rows, columns = (
        np.clip(np.arange(new) + int((old - new) / 2), 0, old - 1) for old, new in zip(image_hw, target, strict=True)
    )
    np.testing.assert_array_equal(fitted, image[rows][:, columns])
    np.testing.assert_array_equal(fit_to_grid(fitted, multiple, fit), fitted)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("image_hw", [(28, 56), (30, 57)], ids=["nothing to do", "cropped"])
def test_without_padding_no_pixel_is_copied(image_hw: tuple[int, int]) -> None:
    image = noise(*image_hw, 3)
    assert np.shares_memory(fit_to_grid(image, 28), image)


def test_a_single_channel_stays_an_axis() -> None:
    assert fit_to_grid(noise(5, 9, 1), 7).shape == (7, 7, 1)


@pytest.mark.parametrize(
    ("image_hw", "patch_size", "sides", "max_seq_len", "fitted", "grids"),
    [
        pytest.param((768, 1024), 14, (1, 2), 512, (756, 1036), ((27, 37), (54, 74)), id="two scales"),
        pytest.param((768, 1024), 14, (1, 3), 512, (756, 1008), ((18, 24), (54, 72)), id="ratio 3"),
        pytest.param((768, 1024), 16, (1, 4), 512, (768, 1024), ((12, 16), (48, 64)), id="ratio 4"),
        pytest.param((768, 1024), 14, (2, 3, 4), 512, (784, 1008), ((28, 36), (42, 54), (56, 72)), id="three scales"),
        pytest.param((224, 448), 14, (1, 2), 512, (224, 448), ((16, 32),), id="s = l is single-scale"),
        pytest.param((224, 448), 14, (1, 2), 511, (224, 448), ((8, 16), (16, 32)), id="s = l + 1 is not"),
        pytest.param((1, 1), 14, (1, 2), 1, (14, 14), ((1, 1),), id="one pixel"),
        pytest.param((1, 20000), 14, (1, 2), 512, (28, 19992), ((1, 714), (2, 1428)), id="a thin strip"),
        pytest.param((20000, 1), 32, (1, 2), 1024, (20000, 32), ((625, 1),), id="a thin strip that fits"),
    ],
)
def test_layout(
    image_hw: tuple[int, int],
    patch_size: int,
    sides: tuple[int, ...],
    max_seq_len: int,
    fitted: tuple[int, int],
    grids: tuple[tuple[int, int], ...],
) -> None:
    layout = plan_layout(image_hw, patch_size, sides, max_seq_len)
    assert layout.image_hw == image_hw
    assert layout.fitted_hw == fitted
    assert layout.grids == grids


@SETTINGS
@given(
    SIZES, st.sampled_from([1, 3, 8]), st.sampled_from([(1, 2), (1, 3), (1, 4), (2, 3, 4)]), st.integers(1, 300), FITS
)
def test_grids_cover_the_fitted_image(
    image_hw: tuple[int, int], patch_size: int, sides: tuple[int, ...], max_seq_len: int, fit: str
) -> None:
    layout = plan_layout(image_hw, patch_size, sides, max_seq_len, fit)
    height, width = fitted_hw(image_hw, patch_size, fit)
    single = height // patch_size * (width // patch_size) <= max_seq_len
    assert layout.cell_sides == ((1,) if single else sides)
    assert layout.fitted_hw == fitted_hw(image_hw, layout.cell_sides[-1] * patch_size, fit)
    assert layout.fitted_hw == tuple(side * patch_size for side in layout.grids[-1])
    assert layout.num_coarse * layout.cell_sides[0] ** 2 == layout.grids[0][0] * layout.grids[0][1]


@pytest.mark.parametrize(
    ("image_hw", "max_edge", "expected"),
    [
        pytest.param((600, 800), None, (600, 800), id="no limit"),
        pytest.param((600, 800), 800, (600, 800), id="at the limit"),
        pytest.param((600, 800), 1024, (600, 800), id="never enlarged"),
        pytest.param((1500, 2000), 1024, (768, 1024), id="lying"),
        pytest.param((2000, 1500), 1024, (1024, 768), id="upright"),
        pytest.param((1001, 999), 500, (500, 499), id="rounded"),
        pytest.param((1, 5000), 32, (1, 32), id="a line keeps a pixel"),
    ],
)
def test_longest_edge_is_limited(image_hw: tuple[int, int], max_edge: int | None, expected: tuple[int, int]) -> None:
    assert limit_edge(image_hw, max_edge) == expected
