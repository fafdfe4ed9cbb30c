"""Importance maps: literal values on patches that can be worked out, and the symmetries that columns rely on."""

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charm.tokenization.importance import IMPORTANCE, score_patches

P = 16  # 256 pixels: each grey level can occur once
Y, X = np.mgrid[:P, :P]
MAPS = sorted(IMPORTANCE)
SYMMETRIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "left-right": lambda plane: plane[:, ::-1],
    "up-down": lambda plane: plane[::-1],
    "quarter turn": lambda plane: np.rot90(plane, 1),
    "half turn": lambda plane: np.rot90(plane, 2),
    "three quarter turns": lambda plane: np.rot90(plane, 3),
}


def grey(plane: np.ndarray) -> np.ndarray:
    """An image whose luminance is the plane."""
    return np.repeat(np.asarray(plane, np.uint8)[:, :, None], 3, axis=2)


def side_by_side(*patches: np.ndarray) -> np.ndarray:
    return grey(np.concatenate(patches, axis=1))


def noise(height: int, width: int, seed: int = 0, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8)


def smooth_and_noisy(grid_h: int, grid_w: int) -> np.ndarray:
    """An image whose patches differ much in detail: noise that grows along the diagonal, on a shaded ground."""
    y, x = np.mgrid[: grid_h * P, : grid_w * P]
    spread = (y + x) / (grid_h + grid_w) / P
    plane = 128 + 40 * np.sin(x / 23) * np.cos(y / 31)
    return grey(np.clip(plane + 60 * spread * np.random.default_rng(1).normal(size=y.shape), 0, 255))


FLAT = np.full((P, P), 90)
CHECKERBOARD = (Y + X) % 2 * 255


@pytest.mark.parametrize(
    ("patch", "bits"),
    [
        pytest.param(FLAT, 0.0, id="flat"),
        pytest.param(np.where(X < P // 2, 10, 200), 1.0, id="two equally frequent values"),
        pytest.param(np.where(X < P // 4, 10, 200), 0.811278, id="a quarter and three quarters"),
        pytest.param(Y * P + X, 8.0, id="every level once"),
        pytest.param((Y * P + X) // 4, 6.0, id="every fourth level four times"),
    ],
)
def test_entropy_in_bits(patch: np.ndarray, bits: float) -> None:
    assert IMPORTANCE["entropy"](grey(patch), P)[0, 0] == pytest.approx(bits, abs=1e-6)


def test_entropy_of_a_flat_saturated_colour_is_zero() -> None:
    image = np.empty((P, P, 3), np.uint8)
    image[:] = (250, 120, 10)
    assert IMPORTANCE["entropy"](image, P).tolist() == [[0.0]]


def test_entropy_ignores_where_the_pixels_are() -> None:
    patch = noise(P, P)
    shuffled = np.random.default_rng(1).permutation(patch.reshape(-1, 3)).reshape(patch.shape)
    np.testing.assert_array_equal(IMPORTANCE["entropy"](patch, P), IMPORTANCE["entropy"](shuffled, P))


@pytest.mark.parametrize("p", [14, 15, 16])
def test_frequency_is_the_weighted_power_of_the_full_spectrum(p: int) -> None:
    image = grey(noise(2 * p, 3 * p)[:, :, 0])
    window = np.outer(*[0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(p) + 0.5) / p)] * 2)
    k = np.minimum(np.arange(p), p - np.arange(p)) / p
    r = np.sqrt((k[:, None] ** 2 + k[None] ** 2) / 0.5)
    expected = np.empty((2, 3))
    for i, j in np.ndindex(2, 3):
        patch = image[i * p : (i + 1) * p, j * p : (j + 1) * p, 0].astype(float)
        spectrum = np.fft.fft2((patch - patch.mean()) * window)
        expected[i, j] = np.log1p(np.sum(r**4 * np.abs(spectrum) ** 2) / (p**2 * np.sum(window**2)))
    np.testing.assert_allclose(IMPORTANCE["frequency"](image, p), expected, rtol=1e-5)


def test_frequency_of_a_checkerboard_is_its_contrast() -> None:
    # All power, 127.5^2 per pixel, lies near the corner of the spectrum, where the weight is 1.
    score = IMPORTANCE["frequency"](grey(CHECKERBOARD), P)[0, 0]
    assert np.log(127.5**2) - 0.2 < score < np.log(127.5**2)


@pytest.mark.parametrize("p", [14, 28, 32, 64])
def test_frequency_ranks_a_checkerboard_first(p: int) -> None:
    y, x = np.mgrid[:p, :p]
    others = {
        "flat": np.full((p, p), 255),
        "ramp": x * 255 // (p - 1),
        "diagonal ramp": (y + x) * 255 // (2 * p - 2),
        "wave": 127 + 127 * np.sin(2 * np.pi * x / p),
        "blob": 255 * np.exp(-((y - p / 2) ** 2 + (x - p / 2) ** 2) / (p / 4) ** 2),
        "edge": (x >= p // 2) * 255,
        "diagonal edge": (x > y) * 255,
        "stripes": x % 2 * 255,
        "coarser checkerboard": (y // 2 + x // 2) % 2 * 255,
        "faint noise": noise(p, p, 0, 120, 137)[:, :, 0],
        "noise of full range": noise(p, p)[:, :, 0],
    }
    scores = IMPORTANCE["frequency"](side_by_side(*others.values(), (y + x) % 2 * 255), p)[0]
    beaten = dict(zip(others, scores[:-1] < scores[-1], strict=True))
    assert all(beaten.values()), beaten
    assert scores[0] == 0
    assert scores[list(others).index("ramp")] < scores[list(others).index("edge")]


def test_gradient_is_sobel_on_the_whole_image() -> None:
    image = grey(noise(2 * P, 3 * P)[:, :, 0])
    padded = np.pad(image[:, :, 0].astype(float), 1, mode="edge")
    smooth_y = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_x = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    magnitude = np.hypot(smooth_y[:, 2:] - smooth_y[:, :-2], smooth_x[2:] - smooth_x[:-2])
    expected = magnitude.reshape(2, P, 3, P).mean(axis=(1, 3))
    np.testing.assert_allclose(IMPORTANCE["gradient"](image, P), expected, rtol=1e-5)
    # Bit for bit, if every magnitude is the float that is nearest to it: then no processor or address has a say.
    rounded = magnitude.astype(np.float32).reshape(2, P, 3, P).sum(axis=1).sum(axis=2) / P**2
    np.testing.assert_array_equal(IMPORTANCE["gradient"](image, P), rounded.astype(np.float32))


def test_gradient_of_a_ramp() -> None:
    # 3 levels a pixel: 8 * 3, and half of it in the two columns whose neighbour is padding.
    ramp = np.tile(3 * np.arange(3 * P), (P, 1))
    expected = [24 * (P - 0.5) / P, 24, 24 * (P - 0.5) / P]
    np.testing.assert_allclose(IMPORTANCE["gradient"](grey(ramp), P)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("level", [0, 1, 90, 254, 255])
def test_a_flat_image_scores_zero_however_bright(name: str, level: int) -> None:
    assert not IMPORTANCE[name](np.full((2 * P, 3 * P, 3), level, np.uint8), P).any()


def test_gradient_does_not_see_brightness() -> None:
    texture = noise(P, P, 0, 0, 40)[:, :, 0]
    levels = [0, 70, 140, 210]
    scores = [IMPORTANCE["gradient"](grey(texture + level), P)[0, 0] for level in levels]
    assert len(set(scores)) == 1
    # Flat patches of any brightness within flat areas: only the patches beside the step score, on both sides the same.
    steps = np.repeat([10, 10, 10, 240, 240, 240], P)
    row = IMPORTANCE["gradient"](grey(np.tile(steps, (P, 1))), P)[0]
    assert row[[0, 1, 4, 5]].tolist() == [0, 0, 0, 0]
    assert row[2] == row[3] == 4 * 230 / P


@pytest.mark.parametrize("name", MAPS)
def test_halving_the_contrast_keeps_the_order(name: str) -> None:
    # Even values, so that halving rounds nothing; entropy keeps its very values, as levels stay apart.
    image = smooth_and_noisy(5, 6) & 0xFE
    full, half = (IMPORTANCE[name](image, P).ravel() for image in (image, image // 2))
    np.testing.assert_array_equal(np.argsort(full, kind="stable"), np.argsort(half, kind="stable"))
    if name == "entropy":
        np.testing.assert_array_equal(full, half)


@pytest.mark.parametrize("name", MAPS)
def test_noisier_patches_score_higher(name: str) -> None:
    scores = IMPORTANCE[name](smooth_and_noisy(1, 6), P)[0]
    assert (np.diff(scores) > 0).all()


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("p", [14, 15, 16])
def test_commutes_with_flips_and_turns(name: str, symmetry: str, p: int) -> None:
    turn = SYMMETRIES[symmetry]
    image = smooth_and_noisy(5, 7)[: 4 * p, : 6 * p]
    actual, expected = IMPORTANCE[name](turn(image), p), turn(IMPORTANCE[name](image, p))
    np.testing.assert_allclose(actual, expected, rtol=0 if name == "entropy" else 1e-5)


@pytest.mark.parametrize("name", MAPS)
@given(p=st.integers(2, 33), grid_h=st.integers(1, 4), grid_w=st.integers(1, 4), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_any_grid_gives_finite_float32(name: str, p: int, grid_h: int, grid_w: int, seed: int) -> None:
    image = noise(grid_h * p, grid_w * p, seed)
    before = image.copy()
    scores = IMPORTANCE[name](image, p)
    assert scores.dtype == np.float32
    assert scores.shape == (grid_h, grid_w)
    assert scores.flags.c_contiguous
    assert scores.flags.writeable
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", ["frequency", "entropy"])
def test_a_patch_does_not_see_its_neighbours(name: str) -> None:
    image = noise(3 * P, 4 * P)
    whole = IMPORTANCE[name](image, P)
    for i, j in np.ndindex(3, 4):
        alone = IMPORTANCE[name](image[i * P : (i + 1) * P, j * P : (j + 1) * P], P)
        np.testing.assert_allclose(whole[i, j], alone[0, 0], rtol=1e-6)


@pytest.mark.parametrize("name", MAPS)
def test_bands_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(5 * P, 3 * P)
    whole = IMPORTANCE[name](image, P)
    for band_rows in (1, 2, 3):
        monkeypatch.setattr("charm.tokenization.importance.BAND_PIXELS", band_rows * P * 3 * P)
        np.testing.assert_allclose(IMPORTANCE[name](image, P), whole, rtol=1e-6)


VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cropped": lambda image: image[3 : 3 + 2 * P, 5 : 5 + 2 * P],
    "mirrored": lambda image: image[: 2 * P, 2 * P - 1 :: -1],
    "every second pixel": lambda image: image[: 4 * P : 2, : 4 * P : 2],
    "turned": lambda image: np.rot90(image[: 2 * P, : 2 * P]),
    "BGR read backwards": lambda image: image[: 2 * P, : 2 * P, ::-1],
    "read-only": lambda image: np.frombuffer(image[: 2 * P, : 2 * P].tobytes(), np.uint8).reshape(2 * P, 2 * P, 3),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", MAPS)
def test_views_score_as_their_copies(name: str, view: str) -> None:
    image = VIEWS[view](noise(4 * P, 4 * P))
    np.testing.assert_array_equal(IMPORTANCE[name](image, P), IMPORTANCE[name](image.copy(), P))


def test_equal_images_score_equal_bits_in_processes_with_one_and_two_threads() -> None:
    program = (
        "import hashlib, numpy as np; from charm.tokenization.importance import IMPORTANCE\n"
        "image = np.random.default_rng(0).integers(0, 256, (448, 672, 3), dtype=np.uint8)\n"
        "scores = [score(image, p) for p in (28, 32, 56) for score in IMPORTANCE.values()]\n"
        "print(hashlib.sha256(b''.join(map(bytes, scores))).hexdigest())\n"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert len(digests[0].strip()) == 64
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("p", [28, 42])
def test_where_an_image_lies_in_memory_does_not_matter(name: str, p: int) -> None:
    """Libraries treat the head and the tail of an array apart from what their vectors hold, by its address."""
    image = smooth_and_noisy(6, 16)[:84, :252]  # its planes of floats are small enough to share pages with others
    random = np.random.default_rng(0)
    expected = IMPORTANCE[name](image, p).tobytes()
    others = []
    for offset in range(200):
        buffer = np.empty(image.size + 64, np.uint8)
        moved = buffer[offset % 64 :][: image.size].reshape(image.shape)
        moved[:] = image
        # What else is allocated moves the output and the planes between.
        others.append(np.empty(16 * random.integers(1, 2000), np.uint8))
        assert IMPORTANCE[name](moved, p).tobytes() == expected, offset


GOLDEN = {  # float32 (3, 4)
    "frequency": [
        [0.016460927, 0.023150554, 0.031192809, 0.97032297],
        [2.8187912, 2.6322951, 3.2047417, 3.5367155],
        [3.7890158, 3.8865283, 4.1944413, 4.2569246],
    ],
    "gradient": [
        [30.560432, 39.623116, 50.759495, 76.591469],
        [145.40891, 157.64896, 173.45744, 165.20808],
        [203.75122, 217.21574, 222.82899, 224.04445],
    ],
    "entropy": [
        [6.690855, 7.0912328, 7.4665022, 7.2662911],
        [7.3235722, 7.4757609, 7.6406307, 7.5568209],
        [7.4310102, 7.4443641, 7.5510263, 7.4134202],
    ],
}


@pytest.mark.parametrize("name", MAPS)
def test_golden_maps(name: str) -> None:
    """Of integers alone, so that no generator or decoder is in the way; the order holds on any machine."""
    y, x = np.mgrid[: 3 * 28, : 4 * 28]
    image = np.stack([y * x // 9, y * y // 5 + x, (x * x * y) // 700], axis=2).astype(np.uint8)
    found = IMPORTANCE[name](image, 28)
    np.testing.assert_allclose(found, GOLDEN[name], rtol=1e-6)
    np.testing.assert_array_equal(np.argsort(found, axis=None), np.argsort(GOLDEN[name], axis=None))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("image_hw", "grid_hw"),
    [
        pytest.param((2 * P, 3 * P), (2, 3), id="fits"),
        pytest.param((2 * P + 5, 3 * P + 3), (2, 3), id="cropped"),
        pytest.param((2 * P - 5, 3 * P - 3), (2, 3), id="padded"),
        pytest.param((1, 1), (1, 1), id="one pixel"),
    ],
)
def test_score_patches_fits_the_image(name: str, image_hw: tuple[int, int], grid_hw: tuple[int, int]) -> None:
    scores = score_patches(noise(*image_hw), name, coarse_patch_size=P)
    assert scores.shape == grid_hw
    assert scores.dtype == np.float32


@pytest.mark.parametrize("name", MAPS)
def test_score_patches_of_a_fitted_image_is_the_map(name: str) -> None:
    image = noise(2 * P, 3 * P)
    np.testing.assert_array_equal(score_patches(image, name, P), IMPORTANCE[name](image, P))
    assert score_patches(image[:-1], name, P, fit="pad").shape == (2, 3)


@pytest.mark.parametrize(
    ("image", "name", "p", "message"),
    [
        pytest.param(noise(P, P), "saliency", P, "'saliency': expected one of frequency, gradient, entropy", id="map"),
        pytest.param(noise(P, P).astype(np.float32), "entropy", P, r"float32 \(16, 16, 3\): expected", id="dtype"),
        pytest.param(noise(P, P)[:, :, 0], "entropy", P, r"uint8 \(16, 16\): expected", id="grey"),
        pytest.param(np.zeros((P, P, 4), np.uint8), "entropy", P, r"uint8 \(16, 16, 4\): expected", id="RGBA"),
        pytest.param(np.zeros((0, P, 3), np.uint8), "entropy", P, r"\(0, 16, 3\): expected", id="empty"),
        pytest.param(noise(P, P), "entropy", 0, "coarse_patch_size=0: expected at least 2", id="no patch size"),
    ],
)
def test_score_patches_says_what_is_wrong(image: np.ndarray, name: str, p: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_patches(image, name, p)


@pytest.mark.parametrize("name", MAPS)
def test_a_image_off_the_grid_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="33 x 32 pixels: expected multiples of 16"):
        IMPORTANCE[name](noise(2 * P + 1, 2 * P), P)
