"""The FlexiViT input: one crop, and in training a grid for each step."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from charm.inputs.flexi import FlexiInput
from charm.inputs.registry import build_input
from charm.inputs.settings import FlexiSettings, StandardSettings
from charm.inputs.standard import StandardInput
from charm.tokenization.tokenizer import CharmTokenizer
from tests.conftest import draw_image

GRIDS = [5, 6, 8, 10, 12, 15, 16, 20, 24, 30]
IMAGE = draw_image(300, 420)
TRAINING = FlexiInput.build(FlexiSettings(), CharmTokenizer(16), True)
EVALUATION = FlexiInput.build(FlexiSettings(), CharmTokenizer(16), False)


def side(made: FlexiInput) -> int:
    ((height, width),) = made.grids((300, 420))
    assert height == width
    return height


def test_a_step_of_training_draws_one_of_the_grids_for_all_of_its_images() -> None:
    drawn = [side(TRAINING.of_step(3, 0, step)) for step in range(2000)]
    assert drawn == [side(TRAINING.of_step(3, 0, step)) for step in range(2000)]
    counts = Counter(drawn)
    assert sorted(counts) == GRIDS
    assert min(counts.values()) > 150  # of 200
    assert drawn != [side(TRAINING.of_step(4, 0, step)) for step in range(2000)]
    assert drawn != [side(TRAINING.of_step(3, 1, step)) for step in range(2000)]


@pytest.mark.parametrize("grid", GRIDS)
def test_patches_are_as_wide_as_the_grid_wants_and_show_the_same_crop(grid: int) -> None:
    of_step = next(made for step in range(200) if side(made := TRAINING.of_step(3, 0, step)) == grid)
    tokens, other = (made(IMAGE, seed=3, epoch=2, key="a") for made in (of_step, TRAINING))
    assert tokens.patches.shape == (grid**2, 240 // grid, 240 // grid, 3)
    assert tokens.patch_valid.all()
    np.testing.assert_array_equal(tokens.to_image(), other.to_image())


def test_in_evaluation_the_grid_is_fixed() -> None:
    assert [EVALUATION.of_step(3, 0, step) for step in range(9)] == [EVALUATION] * 9
    assert (EVALUATION.grids((9, 9)), EVALUATION.patch_size, EVALUATION.max_seq_len) == (((15, 15),), 16, 225)
    standard = StandardInput(16, StandardSettings(240, 240), training=False)(IMAGE)
    np.testing.assert_array_equal(EVALUATION(IMAGE).patches, standard.patches)


def test_it_needs_room_for_the_finest_grid_whatever_the_backbones_patches() -> None:
    for patch_size in (14, 16, 32):
        assert FlexiSettings().length(patch_size) == 900
        with pytest.raises(ValueError, match=r"flexi .* needs max_seq_len >= 900"):
            build_input("flexi", FlexiSettings(), CharmTokenizer(patch_size, max_seq_len=899))
    assert replace(FlexiSettings(), grids=[5], grid=15).length(16) == 225


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"grids": [5, 7]}, "crop=240: expected a multiple of each grid, and 7 does not", id="training"),
        pytest.param({"grid": 9}, "crop=240: expected a multiple of each grid, and 9 does not", id="evaluation"),
        pytest.param({"edge": 200}, "edge=200: expected at least crop, 240", id="edge"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlexiSettings(**settings)
