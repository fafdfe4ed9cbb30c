"""AnyRes: its geometry is that of transformers' processor, and positions repeat from tile to tile."""

import numpy as np
import pytest

from charm.inputs.anyres import AnyResInput, choose_canvas, resized_hw
from charm.inputs.settings import AnyResSettings
from charm.tokenization.tokens import Tokens

PINPOINTS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]


def draw(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)


def tile(tokens: Tokens, row: int, column: int, side: int) -> np.ndarray:
    """The pixels of a tile, put together by a loop."""
    p = tokens.patches.shape[1]
    image = np.zeros((side * p, side * p, 3), np.uint8)
    for token in np.flatnonzero(tokens.patch_valid & (tokens.scale_id == 1)):
        y, x = tokens.patch_coord[token] - (row * side, column * side)
        if 0 <= y < side and 0 <= x < side:
            image[y * p : (y + 1) * p, x * p : (x + 1) * p] = tokens.patches[token]
    return image


def test_geometry_is_that_of_transformers() -> None:
    image_processing = pytest.importorskip("transformers.image_processing_utils")
    module = pytest.importorskip("transformers.models.llava_next.image_processing_pil_llava_next")
    canvases = [(rows * 224, columns * 224) for rows, columns in PINPOINTS]
    rng = np.random.default_rng(0)
    for _ in range(1000):
        height, width = (int(side) for side in np.exp(rng.uniform(0, np.log(4000), 2)).round())
        chosen = choose_canvas((height, width), canvases)
        assert chosen == tuple(image_processing.select_best_resolution((height, width), canvases)), (height, width)
        size = image_processing.get_patch_output_size(np.zeros((height, width, 3), np.uint8), chosen, "channels_last")
        assert resized_hw((height, width), chosen) == tuple(size), (height, width)
    assert module is not None


def test_an_image_of_a_pinpoints_size_keeps_its_pixels() -> None:
    image, made = draw(448, 224), AnyResInput()
    tokens = made(image)
    assert tokens.grids == ((16, 16), (32, 16))
    np.testing.assert_array_equal(tile(tokens, 0, 0, 16), image[:224])
    np.testing.assert_array_equal(tile(tokens, 1, 0, 16), image[224:])


@pytest.mark.parametrize(
    ("image_hw", "tiles", "window"),
    [
        pytest.param((448, 448), (2, 2), np.s_[:, :], id="a pinpoint"),
        pytest.param((300, 301), (2, 2), np.s_[:447, :], id="an odd pixel goes to the bottom"),
        pytest.param((100, 900), (1, 3), np.s_[74:149, :], id="wide"),
    ],
)
def test_the_image_lies_in_the_middle_of_black(
    image_hw: tuple[int, int], tiles: tuple[int, int], window: tuple[slice, slice]
) -> None:
    frame = AnyResInput().frame(draw(*image_hw))
    assert frame.shape == (tiles[0] * 224, tiles[1] * 224, 3)
    outside = frame.copy()
    outside[window] = 0
    assert not outside.any()
    assert frame[window].any(axis=2).mean() > 0.99


def test_each_tile_has_the_positions_of_a_whole_image() -> None:
    made = AnyResInput(14, AnyResSettings(56, [(2, 2)]))
    tokens = made(draw(112, 112))
    assert (tokens.seq_len, made.max_seq_len, tokens.pos_grids) == (80, 80, ((4, 4), (4, 4)))
    whole = [(y, x) for y in range(4) for x in range(4)]
    counts = {place: int((tokens.pos_coord == place).all(axis=1).sum()) for place in whole}
    assert set(counts.values()) == {5}
    native = tokens.scale_id == 1
    np.testing.assert_array_equal(tokens.pos_coord[native], tokens.patch_coord[native] % 4)


def test_small_images_get_padding_up_to_the_longest() -> None:
    tokens = AnyResInput()(draw(100, 200))
    assert (tokens.seq_len, len(tokens.patch_valid)) == (256 * 3, 256 * 5)
