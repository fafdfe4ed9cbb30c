"""What the report shows of an image is what the tokenizer did to it."""

import base64

import cv2
import numpy as np
import pytest

from charm.drawing import encode_heat, encode_shade, mark_cells, shrink, trace_cells
from charm.inputs.settings import StandardSettings
from charm.inputs.standard import StandardInput
from charm.tokenization.geometry import fit_to_grid
from charm.tokenization.selection import SELECTIONS
from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.report.gallery import SHOWN_EDGE, Scored, choose_images, choose_window, show_image

ROW = Scored("00000001", "a.jpg", 0.5, 0.5, 0.5)


def make_noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def decode(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.split(",", 1)[1])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("selection", list(SELECTIONS))
@pytest.mark.parametrize(
    "settings",
    [
        {"budget": "fill"},
        {"budget": "share", "coarse_ratio": 3},
        {"budget": "fixed", "max_seq_len": 90},
        {"budget": "fill", "num_scales": 3},
    ],
    ids=["fill", "share", "dropped", "three scales"],
)
def test_marked_patches_are_exactly_those_whose_pixels_reach_the_model(selection: str, settings: dict) -> None:
    tokenizer = CharmTokenizer(**{"patch_size": 4, "max_seq_len": 150, "selection": selection, **settings})
    image = make_noise(64, 101)
    saliency_mask = np.zeros((64, 101), bool)
    saliency_mask[10:30, 40:90] = True
    tokens = tokenizer(image, saliency_mask=saliency_mask, key="a")

    # In noise no downscaled patch looks like the image, so the tokens' own pixels tell which patches are native.
    same = (tokens.to_image() == fit_to_grid(image, tokenizer.coarse_patch_size)).all(axis=2)
    height, width = same.shape
    native = same.reshape(height // 4, 4, width // 4, 4).all(axis=(1, 3))
    side = tokenizer.sides[-1]
    outlined = native.reshape(height // 4 // side, side, width // 4 // side, side).any(axis=(1, 3))

    assert native.any()
    assert not native.all()
    np.testing.assert_array_equal(mark_cells(tokens, tokenizer.num_scales - 1), native)
    np.testing.assert_array_equal(mark_cells(tokens, tokenizer.num_scales - 1, side), outlined)


def test_trace_cells_puts_squares_at_x_y_in_pixels() -> None:
    marked = np.array([[False, True], [False, False], [True, False]])
    assert trace_cells(marked, 28) == "M28 0h28v28h-28zM0 56h28v28h-28z"


def test_shade_is_clear_where_native() -> None:
    native = np.array([[True, False, False], [False, False, True]])
    np.testing.assert_array_equal(decode(encode_shade(native))[..., 3] == 0, native)


def test_heat_is_upright_and_brightest_at_the_highest_score() -> None:
    heat = decode(encode_heat(np.array([[0.0, 1.0, 2.0], [3.0, 9.0, 4.0]], np.float32))).astype(int).sum(axis=2)
    assert heat.shape == (2, 3)
    assert np.unravel_index(heat.argmax(), heat.shape) == (1, 1)


def test_heat_of_a_flat_map_is_one_colour() -> None:
    assert len(np.unique(decode(encode_heat(np.full((2, 3), 7.0))).reshape(-1, 3), axis=0)) == 1


def test_window_shows_marked_and_other_patches() -> None:
    marked = np.zeros((30, 40), bool)
    marked[:, 20:] = True
    y, x, height, width = choose_window(marked, 28)
    assert (height, width) == (12 * 28, 16 * 28)
    shown = marked[y // 28 : (y + height) // 28, x // 28 : (x + width) // 28]
    assert shown.sum() == 96


def test_window_is_no_larger_than_the_image() -> None:
    assert choose_window(np.ones((2, 3), bool), 28) == (0, 0, 56, 84)


def test_shrink_keeps_the_aspect_and_never_enlarges() -> None:
    assert shrink(make_noise(2 * SHOWN_EDGE, SHOWN_EDGE)).shape == (SHOWN_EDGE, SHOWN_EDGE // 2, 3)
    assert shrink(make_noise(5, 7)).shape == (5, 7, 3)


SIZES = {"small": (56, 56), "large": (280, 280)}


@pytest.mark.parametrize(
    ("sizes", "count", "chosen"),
    [
        (["large"] * 7, 3, ["6", "3", "0"]),
        (["large"] * 7, 1, ["6"]),
        (["large", "small", "small", "large", "small", "large", "small"], 2, ["5", "0"]),
        (["small"] * 7, 2, ["6", "0"]),
        (["large"] * 2, 5, ["1", "0"]),
    ],
    ids=["evenly spaced", "one", "large ones only", "no large ones", "fewer than wanted"],
)
def test_choose_images(sizes: list[str], count: int, chosen: list[str]) -> None:
    scored = [Scored(str(i), "", 1 - i / 10, 0.0, 0.0) for i in range(len(sizes))]
    scenes = [row.key for row in scored]
    found = choose_images(scored, [SIZES[size] for size in sizes], scenes, CharmTokenizer(max_seq_len=128), count)
    assert [row.key for row in found] == chosen


@pytest.mark.parametrize(
    ("scenes", "chosen"),
    [("aaaaaaa", "6420"), ("abababa", "6521"), ("aaaabcd", "6420"), ("abcdefg", "6420"), ("baaaaaa", "6420")],
)
def test_neighbours_of_another_scene_are_preferred(scenes: str, chosen: str) -> None:
    scored = [Scored(str(i), "", 1 - i / 10, 0.0, 0.0) for i in range(len(scenes))]
    found = choose_images(scored, [SIZES["large"]] * len(scenes), scenes, CharmTokenizer(max_seq_len=128), 4)
    assert "".join(row.key for row in found) == chosen


def test_every_strategy_is_shown_and_only_chance_has_no_map() -> None:
    shown = show_image(ROW, make_noise(84, 112), CharmTokenizer(max_seq_len=40, budget="fill"), seed=0)
    assert [view.selection for view in shown.views] == list(SELECTIONS)
    assert [view.selection for view in shown.views if not view.importance] == ["random"]
    assert (shown.fitted_hw, shown.num_coarse, shown.window) == ((84, 112), 12, None)
    assert not any(view.detail for view in shown.views)
    for view in shown.views:
        assert decode(view.seen).shape == (84, 112, 3)
        assert view.outlines[0].count("z") == view.num_outlined
        assert view.num_tokens == 40


def test_the_view_of_a_strategy_does_not_depend_on_the_one_in_use() -> None:
    first, second = (
        show_image(ROW, make_noise(84, 112), CharmTokenizer(max_seq_len=40, selection=selection), seed=0).views
        for selection in ("random", "entropy")
    )
    assert first == second


def test_a_large_image_has_a_window_at_native_size() -> None:
    shown = show_image(ROW, make_noise(560, 700), CharmTokenizer(max_seq_len=512, budget="fill"), seed=0)
    assert shown.window is not None
    for view in shown.views:
        assert max(decode(view.seen).shape) == SHOWN_EDGE
        assert decode(view.detail).shape == (*shown.window[2:], 3)


@pytest.mark.parametrize(
    ("tokenizer", "seen_hw"),
    [
        (CharmTokenizer(max_seq_len=128), (84, 112)),
        (StandardInput(14, StandardSettings(128, 112), training=False), (112, 112)),
    ],
    ids=["small image", "standard input"],
)
def test_where_nothing_is_selected_there_is_one_view(
    tokenizer: CharmTokenizer | StandardInput, seen_hw: tuple[int, int]
) -> None:
    shown = show_image(ROW, make_noise(80, 110), tokenizer, seed=0)
    (view,) = shown.views
    assert (view.selection, view.outlines, view.importance) == ("", (), "")
    assert shown.image_hw == (80, 110)
    assert shown.seen_hw == decode(view.seen).shape[:2] == seen_hw
