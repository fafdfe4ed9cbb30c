"""What `charm show` and `charm tokenize` say of a photograph is what the model gets."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from charm.app.show import change_selection, cut_image, describe_tokens, draw_views, encode_tokens
from charm.drawing import paint_heat
from charm.inputs.preparation import Preparation
from charm.model.config import InputConfig
from charm.runtime.errors import UserError
from charm.saliency import mbd
from charm.scorer import CharmScorer
from charm.tokenization.geometry import fit_to_grid
from charm.tokenization.importance import score_patches
from tests.conftest import draw_image
from tests.untrained import SMALL, write_model

IMAGE = draw_image(190, 182, 3)  # fitted to 7 x 7 coarse patches, no longer than 196


@pytest.fixture(scope="module")
def scorer(model_folder: Path) -> CharmScorer:
    return CharmScorer.from_pretrained(str(model_folder))


def scorer_of(folder: Path, **tokenizer: object) -> CharmScorer:
    write_model(folder, **tokenizer)  # type: ignore[arg-type]
    return CharmScorer.from_pretrained(str(folder))


def test_tokens_are_those_of_the_score_and_survive_the_file(scorer: CharmScorer) -> None:
    tokens, mask = cut_image(scorer, IMAGE)
    assert mask is None
    (expected,) = scorer.tokenize(IMAGE, draws=1)
    loaded = np.load(io.BytesIO(encode_tokens(tokens)), allow_pickle=False)
    assert sorted(loaded) == ["grids", "patch_coord", "patch_valid", "patches", "scale_id"]
    for name in ("patches", "patch_coord", "scale_id", "patch_valid"):
        np.testing.assert_array_equal(loaded[name], getattr(expected, name))
    assert loaded["grids"].tolist() == [list(grid) for grid in expected.grids]


def test_lines_of_a_image_of_two_scales(tmp_path: Path) -> None:
    scorer = scorer_of(tmp_path, max_seq_len=60, selection="gradient")
    lines = describe_tokens(scorer, IMAGE, cut_image(scorer, IMAGE)[0])
    assert lines[:-1] == [
        "photo      190 x 182 pixels",
        "fitted     196 x 196 pixels",
        "tokenizer  charm, selection gradient, budget fill",
        "scale 1    14 tokens on a grid of 14 x 14, native",
        "scale 0    46 tokens on a grid of 7 x 7, downscaled 2 times",
        "dropped    0 tokens",
        "area seen  7 % native, 93 % downscaled, 0 % dropped",
        "padding    0 of 60 tokens",
    ]
    assert lines[-1].startswith("drawn by   190x182-")
    assert lines[-1].endswith(", seed 0")


def test_lines_of_dropped_tokens_and_padding(tmp_path: Path) -> None:
    scorer = scorer_of(tmp_path, max_seq_len=45, budget="fixed")  # 49 coarse patches, all of them native: 196 tokens
    lines = describe_tokens(scorer, IMAGE, cut_image(scorer, IMAGE)[0])
    assert "dropped    151 tokens" in lines
    assert "area seen  23 % native, 0 % downscaled, 77 % dropped" in lines
    assert "padding    0 of 45 tokens" in lines
    small = IMAGE[:60, :60]
    lines = describe_tokens(scorer, small, cut_image(scorer, small)[0])
    assert "scale 0    0 tokens on a grid of 0 x 0, not used" in lines
    assert "padding    29 of 45 tokens" in lines
    assert "dropped    0 tokens" in lines


def test_a_image_beyond_the_most_of_training_is_downscaled(tmp_path: Path) -> None:
    write_model(tmp_path)
    scorer = CharmScorer.from_pretrained(str(tmp_path))
    scorer.max_edge = 95
    tokens, mask = cut_image(scorer, IMAGE)
    lines = describe_tokens(scorer, IMAGE, tokens)
    assert lines[0] == "photo      190 x 182 pixels, downscaled to 95 x 91 as in training"
    assert draw_views(scorer, IMAGE, tokens, mask)["seen"].shape == (84, 84, 3)


@pytest.mark.parametrize("selection", ["random", "frequency", "gradient", "entropy", "saliency"])
def test_views(selection: str, scorer: CharmScorer) -> None:
    chosen = change_selection(scorer, selection)
    tokens, mask = cut_image(chosen, IMAGE)
    views = draw_views(chosen, IMAGE, tokens, mask)
    assert set(views) == {"native", "seen"} | ({"importance"} if selection != "random" else set())
    assert all(view.shape == (196, 196, 3) and view.dtype == np.uint8 for view in views.values())
    np.testing.assert_array_equal(views["seen"], tokens.to_image())
    # Inside of the outlines, native patches are as in the photograph, and all others are dark.
    fitted, native = fit_to_grid(IMAGE, 28), tokens.patch_valid & (tokens.scale_id == 1)
    shown = views["native"].reshape(14, 14, 14, 14, 3).swapaxes(1, 2)[:, :, 1:-1, 1:-1]
    original = fitted.reshape(14, 14, 14, 14, 3).swapaxes(1, 2)[:, :, 1:-1, 1:-1]
    same = np.zeros((14, 14), bool)
    same[tuple(tokens.patch_coord[native].T)] = True
    np.testing.assert_array_equal(shown[same], original[same])
    assert (shown[~same] <= original[~same] * 0.42).all()
    if selection == "saliency":
        assert mask is not None
        np.testing.assert_array_equal(mask, mbd.detect(IMAGE))
        np.testing.assert_array_equal(views["importance"], paint_heat(fit_to_grid(mask.astype(np.uint8), 28)))
    elif selection != "random":
        heat = paint_heat(score_patches(IMAGE, selection, 28))
        np.testing.assert_array_equal(views["importance"][14::28, 14::28], heat)


@pytest.mark.parametrize(("given", "edge"), [(256, 256), (0, 190)])
def test_of_a_square_native_patches_are_shown_where_they_are(given: int, edge: int, tmp_path: Path) -> None:
    base = scorer_of(tmp_path, max_seq_len=120)
    scorer = Preparation(replace(base.settings, name="square", settings={"edge": given}))
    tokens, mask = cut_image(scorer, IMAGE)
    views = draw_views(scorer, IMAGE, tokens, mask)
    assert list(views) == ["seen", "native"]
    side = (edge + 14) // 28 * 28
    assert views["native"].shape == (side, side, 3)
    native = tokens.patch_valid & (tokens.scale_id == 1)
    assert native.any()
    shown = views["native"].reshape(side // 14, 14, side // 14, 14, 3).swapaxes(1, 2)
    y, x = tokens.patch_coord[native].T
    np.testing.assert_array_equal(shown[y, x, 1:-1, 1:-1], tokens.patches[native][:, 1:-1, 1:-1])


def test_nothing_is_selected_of_a_small_image(scorer: CharmScorer) -> None:
    tokens, mask = cut_image(scorer, IMAGE[:60, :60])
    assert list(draw_views(scorer, IMAGE[:60, :60], tokens, mask)) == ["seen"]


def test_a_selection_has_to_be_known_and_of_use(scorer: CharmScorer) -> None:
    with pytest.raises(UserError, match="--selection magic: expected one of random, "):
        change_selection(scorer, "magic")
    standard = Preparation(replace(scorer.settings, name="standard", settings=SMALL["standard"]))
    with pytest.raises(UserError, match=r"--selection entropy: of this model's input \(standard\) no patches"):
        change_selection(standard, "entropy")
    tokens, mask = cut_image(standard, IMAGE)
    assert list(draw_views(standard, IMAGE, tokens, mask)) == ["seen"]
    assert describe_tokens(standard, IMAGE, tokens)[3].startswith("scale 0    36 tokens on a grid of 6 x 6, native")


def test_lines_of_the_other_inputs(tmp_path: Path) -> None:
    base = scorer_of(tmp_path, max_seq_len=60)
    for settings, expected in (
        (
            InputConfig("square", {"edge": 0}, base.settings.cutter),
            ["tokenizer  square, selection random, budget fill", "dropped    0 tokens"],
        ),
        (InputConfig("standard", SMALL["standard"], base.settings.cutter), ["tokenizer  standard"]),
    ):
        scorer = Preparation(settings)
        lines = describe_tokens(scorer, IMAGE, cut_image(scorer, IMAGE)[0])
        assert [line for line in lines if line.startswith(("tokenizer", "dropped"))] == expected
    wide = np.repeat(IMAGE, 5, axis=1)
    scorer = Preparation(InputConfig("square", {"edge": 0}, base.settings.cutter))
    tokens, _ = cut_image(scorer, wide)
    assert f"dropped    {33 * 33 - 60} tokens" in describe_tokens(scorer, wide, tokens)  # 910 pixels, all coarse
