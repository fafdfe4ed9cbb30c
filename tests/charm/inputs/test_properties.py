"""What holds for every input of the registry, in evaluation; a new input is tested by being there."""

import hashlib

import numpy as np
import pytest

from charm.inputs.protocol import Input
from charm.inputs.registry import INPUTS, build_input
from charm.inputs.settings import SETTINGS
from charm.tokenization.augment import apply_symmetry
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens
from tests.charm.tokenization.test_tokenizer import SYMMETRIES
from tests.untrained import SMALL

SIZES = [(1, 1), (1, 5000), (5000, 1), (50, 60), (427, 640), (768, 1024)]
TURNED_FIRST = {
    "anyres",
    "muller",
    "musiq",
    "published",
}  # resized or padded after that: the halves of an odd rest change sides
NATIVE = {"charm", "square", "naflex", "quadtree"}  # show every pixel of the frame exactly once, if nothing is dropped


def make(name: str, max_seq_len: int = 512, small: bool = False) -> Input:
    settings = SMALL.get(name) if small else None
    cutter = CharmTokenizer(max_seq_len=max_seq_len if SETTINGS[name].has_budget else 2**16, budget="fill")
    return build_input(name, settings or SETTINGS[name](), cutter)


def coded(height: int, width: int) -> np.ndarray:
    """A smooth image in which every place has another colour."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 128 + 127 * np.sin(y / 9 + x / 7)], axis=2).astype(np.uint8)


def paint(tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """The frame rebuilt by a loop, coarse tokens first, and how often each of its pixels is shown by the last scale."""
    p = tokens.patches.shape[1]
    height, width = (side * p for side in tokens.grids[-1])
    image, count = np.zeros((height, width, 3)), np.zeros((height, width), int)
    order = np.argsort(tokens.scale_id, kind="stable")
    for token in order[tokens.patch_valid[order]]:
        grid_h, grid_w = tokens.grids[tokens.scale_id[token]]
        times_y, times_x = height // (grid_h * p), width // (grid_w * p)
        y, x = tokens.patch_coord[token] * (p * times_y, p * times_x)
        window = np.s_[y : y + p * times_y, x : x + p * times_x]
        image[window] = tokens.patches[token].repeat(times_y, axis=0).repeat(times_x, axis=1)
        count[window] += 1
    return image, count


@pytest.mark.parametrize("image_hw", SIZES, ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_length_grids_and_frame_are_known_beforehand(name: str, image_hw: tuple[int, int]) -> None:
    made, image = make(name), coded(*image_hw)
    tokens = made(image, key="a")
    assert made.length(image_hw) == tokens.seq_len <= made.max_seq_len == len(tokens.patch_valid)
    assert made.grids(image_hw) == tokens.grids
    assert made.frame(image).shape == (*(side * made.patch_size for side in tokens.grids[-1]), 3)
    assert made.frame(image[..., 0]).shape == made.frame(image).shape[:2]
    cutter = made.cutter(image_hw)
    assert (cutter is not None) == (made.draws and sum(grid != (0, 0) for grid in tokens.grids) > 1)


@pytest.mark.parametrize("image_hw", [(50, 60), (427, 640), (640, 427)], ids=str)
@pytest.mark.parametrize("name", [name for name in INPUTS if name not in ("anyres", "musiq")])
def test_tokens_tile_the_frame_and_show_what_it_holds(name: str, image_hw: tuple[int, int]) -> None:
    """AnyRes and MUSIQ show the whole image at other sizes besides: see their own tests."""
    made, image = make(name, 1024), coded(*image_hw)
    shown, count = paint(made(image, key="a"))
    assert count.min() >= 1
    if name in NATIVE:
        assert count.max() == 1 or name in ("charm", "square")  # `fill` shows a few native patches of a coarse one
    assert np.abs(shown - made.frame(image).astype(float)).mean() < 4


@pytest.mark.parametrize("name", INPUTS)
def test_tokens_are_a_function_of_image_and_keys(name: str) -> None:
    def digest(made: Input, **keys: object) -> str:
        tokens = made(coded(200, 300), **keys)
        arrays = (tokens.patches, tokens.patch_coord, tokens.scale_id, tokens.patch_valid)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    made = make(name, 96, small=True)
    first = digest(made, seed=1, epoch=2, key="a")
    assert digest(make(name, 96, small=True), seed=1, epoch=2, key="a") == first
    others = {digest(made, seed=1, epoch=epoch, key="a") for epoch in range(3, 8)}
    assert (len({first, *others}) > 1) == made.draws


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_a_turned_image_has_the_turned_tokens(name: str, symmetry: object) -> None:
    image, made = coded(210, 330), make(name, 96, small=True)
    turned = made(image, key="a", symmetry=symmetry)
    if name in TURNED_FIRST:
        expected = made(apply_symmetry(image, symmetry), key="a")  # type: ignore[arg-type]
        assert turned.grids == expected.grids
        np.testing.assert_array_equal(turned.patches, expected.patches)
        np.testing.assert_array_equal(turned.patch_coord, expected.patch_coord)
    else:
        plain = made(image, key="a")
        np.testing.assert_array_equal(turned.to_image(), apply_symmetry(plain.to_image(), symmetry))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in INPUTS if not SETTINGS[name].has_budget])
def test_too_few_tokens_for_an_inputs_own_size_are_an_error(name: str) -> None:
    """It would silently be another input."""
    needed = SETTINGS[name]().length(14)
    build_input(name, SETTINGS[name](), CharmTokenizer(max_seq_len=needed))
    with pytest.raises(ValueError, match=f"{name} .* needs max_seq_len >= {needed} for patches of 14 pixels"):
        build_input(name, SETTINGS[name](), CharmTokenizer(max_seq_len=needed - 1))


@pytest.mark.parametrize("name", [name for name in INPUTS if name not in ("charm", "square")])
def test_an_input_that_reads_no_map_refuses_one(name: str) -> None:
    made = make(name)
    assert made.reads is None
    with pytest.raises(ValueError, match="takes no saliency_mask"):
        made(coded(50, 60), saliency_mask=np.zeros((50, 60), bool))


def test_what_is_whole_is_the_frame() -> None:
    """Of inputs that show all patches of one grid an image is put together again, exactly."""
    for name in INPUTS:
        made, image = make(name), coded(300, 410)
        if SETTINGS[name]().whole_edge:
            tokens = made(image)
            (grid_h, grid_w), p = tokens.grids[0], made.patch_size
            joined = tokens.patches.reshape(grid_h, grid_w, p, p, 3).swapaxes(1, 2).reshape(grid_h * p, grid_w * p, 3)
            np.testing.assert_array_equal(joined, made.frame(image))
    assert {name for name in INPUTS if SETTINGS[name]().whole_edge} == {"standard", "flexi", "padding"}


def test_settings_of_one_input_are_not_those_of_another() -> None:
    with pytest.raises(ValueError, match="unknown key crop"):
        build_input("padding", {"crop": 3}, CharmTokenizer())
