"""The barrier distance against a brute-force reference; the saliency mask on discs, photographs and odd sizes."""

from itertools import pairwise

import numpy as np
import pytest
import skimage.data
from scipy import ndimage

from charm.saliency.mbd import barrier_distance, border_contrast, detect, saliency_map, smooth_regions

GROUND, OBJECT = (40, 50, 60), (210, 200, 160)


def draw_disc(center: tuple[int, int], radius: int, image_hw: tuple[int, int] = (150, 200)) -> np.ndarray:
    y, x = np.ogrid[: image_hw[0], : image_hw[1]]
    return (y - center[0]) ** 2 + (x - center[1]) ** 2 <= radius**2


def paint(disc: np.ndarray, ground: tuple[int, int, int] = GROUND, colour: tuple[int, int, int] = OBJECT) -> np.ndarray:
    return np.where(disc[..., None], colour, ground).astype(np.uint8)


def overlap(found: np.ndarray, truth: np.ndarray) -> float:
    return float((found & truth).sum() / (found | truth).sum())


def exact_barrier_distance(channel: np.ndarray) -> np.ndarray:
    """Every range of values: what is connected to the border inside it has a barrier of at most its width."""
    border = np.ones(channel.shape, bool)
    border[1:-1, 1:-1] = False
    distance = np.full(channel.shape, 255)
    values = [int(value) for value in np.unique(channel)]
    for least in values:
        for greatest in (value for value in values if value >= least):
            regions, _ = ndimage.label((channel >= least) & (channel <= greatest))
            reached = np.isin(regions, np.setdiff1d(regions[border], 0))
            distance[reached] = np.minimum(distance[reached], greatest - least)
    return distance


# Barrier distance


def test_barrier_of_nested_squares_is_the_span_from_the_border() -> None:
    channel = np.array(
        [
            [5, 5, 5, 5, 5],
            [5, 9, 9, 9, 5],
            [5, 9, 2, 9, 5],
            [5, 9, 9, 9, 5],
            [5, 5, 5, 5, 5],
        ],
        np.uint8,
    )
    expected = [[0, 0, 0, 0, 0], [0, 4, 4, 4, 0], [0, 4, 7, 4, 0], [0, 4, 4, 4, 0], [0, 0, 0, 0, 0]]
    assert barrier_distance(channel[..., None])[..., 0].tolist() == expected


def test_barrier_follows_a_bent_corridor() -> None:
    channel = np.full((6, 6), 200, np.uint8)
    channel[0:4, 2] = channel[3, 2:5] = 10  # from the top border down, then right: one turn
    distance = barrier_distance(channel[..., None])[..., 0]
    assert distance[0:4, 2].tolist() == [0, 0, 0, 0]
    assert distance[3, 2:5].tolist() == [0, 0, 0]
    assert distance[2, 4] == 0  # the ground is connected to the border by itself


def test_more_rounds_follow_more_turns() -> None:
    channel = np.full((11, 11), 200, np.uint8)
    spiral = [(np.s_[0:9], 2), (8, np.s_[2:9]), (np.s_[3:9], 8), (3, np.s_[4:9]), (np.s_[3:7], 4), (6, np.s_[4:7])]
    for rows, columns in spiral:
        channel[rows, columns] = 10
    inner_end = [int(barrier_distance(channel[..., None], rounds)[6, 6, 0]) for rounds in (1, 2, 3)]
    assert inner_end == [190, 190, 0]


@pytest.mark.parametrize("seed", range(8))
def test_barrier_is_an_upper_bound_close_to_the_exact_distance(seed: int) -> None:
    channel = np.random.default_rng(seed).integers(0, 10, (6, 6), dtype=np.uint8)
    swept = barrier_distance(channel[..., None], rounds=6)[..., 0].astype(int)
    exact = exact_barrier_distance(channel)
    assert (swept >= exact).all()
    assert (swept == exact).mean() >= 0.8


@pytest.mark.parametrize("seed", range(3))
def test_more_rounds_never_lengthen_a_barrier(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    distances = [barrier_distance(image, rounds).astype(int) for rounds in (0, 1, 2, 4)]
    assert all((fewer >= more).all() for fewer, more in pairwise(distances))


def test_channels_are_measured_apart() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    apart = [barrier_distance(image[..., channel : channel + 1]) for channel in range(3)]
    assert np.array_equal(barrier_distance(image), np.concatenate(apart, axis=2))


def test_barrier_is_mirrored_with_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    assert np.array_equal(barrier_distance(image[:, ::-1]), barrier_distance(image)[:, ::-1])
    assert np.array_equal(barrier_distance(image[::-1]), barrier_distance(image)[::-1])


# Border contrast and smoothing


def test_contrast_leaves_out_the_strip_the_object_lies_on() -> None:
    image = paint(draw_disc((75, 0), 30))
    contrast = border_contrast(image)
    assert contrast[75, 10] == pytest.approx(3, abs=0.2)  # unlike the other three strips
    assert contrast[75, 150] < 0.1


def test_contrast_of_one_colour_is_zero() -> None:
    assert (border_contrast(np.full((10, 10, 3), 77, np.uint8)) == 0).all()


def test_smoothing_keeps_the_disc_and_drops_the_speck() -> None:
    disc, speck = draw_disc((75, 100), 40), draw_disc((10, 10), 2)
    assert np.array_equal(smooth_regions(((disc | speck) * 255).astype(np.uint8)) > 127, disc)


# The saliency mask


@pytest.mark.parametrize("radius", [8, 20, 45])
@pytest.mark.parametrize("place", ["centre", "left", "top", "corner"])
def test_disc_is_found_wherever_it_is_off_the_border(radius: int, place: str) -> None:
    near = radius + 3
    center = {"centre": (75, 100), "left": (75, near), "top": (near, 100), "corner": (149 - near, 199 - near)}[place]
    disc = draw_disc(center, radius)
    assert overlap(detect(paint(disc)), disc) > 0.8


def test_dark_disc_on_a_bright_ground_is_found() -> None:
    disc = draw_disc((70, 110), 25)
    assert overlap(detect(paint(disc, OBJECT, GROUND)), disc) > 0.8


def test_disc_of_a_image_larger_than_the_working_size_is_found() -> None:
    disc = draw_disc((300, 500), 120, (600, 900))
    assert overlap(detect(paint(disc)), disc) > 0.95


@pytest.mark.parametrize("level", [0, 127, 255])
def test_flat_image_has_no_salient_pixel(level: int) -> None:
    assert not detect(np.full((48, 64, 3), level, np.uint8)).any()


@pytest.mark.parametrize("deviation", [1, 2, 5, 10])
def test_noise_alone_has_no_salient_pixel(deviation: int) -> None:
    noise = np.random.default_rng(0).normal(120, deviation, (240, 320, 3))
    assert not detect(noise.clip(0, 255).astype(np.uint8)).any()


def test_gradient_alone_has_no_salient_pixel() -> None:
    ramp = np.linspace(0, 255, 200).astype(np.uint8)
    assert not detect(np.broadcast_to(ramp[None, :, None], (150, 200, 3))).any()


@pytest.mark.parametrize("image_hw", [(1, 1), (1, 2), (1, 500), (500, 1), (2, 2), (2, 700), (1, 20000), (20000, 1)])
def test_image_without_interior_has_no_salient_pixel(image_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    saliency_mask = detect(image)
    assert saliency_mask.shape == image_hw
    assert saliency_mask.dtype == np.bool_
    assert not saliency_mask.any()


@pytest.mark.parametrize("image_hw", [(3, 3), (3, 500), (7, 5), (301, 299), (40, 900)])
def test_random_image_of_any_size_works(image_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    assert detect(image).shape == image_hw
    saliency = saliency_map(image)
    assert saliency.dtype == np.float32
    assert max(saliency.shape) <= 300
    assert 0 <= saliency.min() <= saliency.max() <= 1


def test_the_interior_of_three_by_three_can_be_salient() -> None:
    image = np.full((3, 3, 3), 20, np.uint8)
    image[1, 1] = 240
    assert detect(image).tolist() == [[False] * 3, [False, True, False], [False] * 3]


@pytest.mark.parametrize("image_file", ["astronaut", "coffee"])
def test_mirrored_image_has_the_mirrored_mask(image_file: str) -> None:
    image = getattr(skimage.data, image_file)()
    assert (detect(image[:, ::-1])[:, ::-1] != detect(image)).mean() < 0.02


@pytest.mark.parametrize("image_file", ["astronaut", "chelsea", "coffee", "rocket"])
def test_coverage_of_photographs_is_sane(image_file: str) -> None:
    image = getattr(skimage.data, image_file)()
    saliency_mask = detect(image)
    assert 0.1 < saliency_mask.mean() < 0.6
    height, width = saliency_mask.shape
    middle = saliency_mask[height // 5 : -height // 5, width // 5 : -width // 5]
    assert middle.mean() > 1.3 * saliency_mask.mean()  # these four subjects are in the middle


def test_detection_repeats_and_leaves_the_image_alone() -> None:
    image = skimage.data.chelsea()
    before = image.copy()
    assert np.array_equal(detect(image), detect(image))
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)],
    ids=["grey", "alpha", "float", "empty"],
)
def test_other_arrays_are_refused_with_what_came(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected a uint8 RGB image.*got"):
        detect(image)
