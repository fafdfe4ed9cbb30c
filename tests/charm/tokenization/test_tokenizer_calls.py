"""CharmTokenizer: masks, batches, settings, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from charm.tokenization.augment import Symmetry, apply_symmetry
from charm.tokenization.geometry import fit_to_grid
from charm.tokenization.tokenizer import CharmTokenizer
from tests.charm.tokenization.test_tokenizer import NOISE, SYMMETRIES, shown, shown_cells


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=str)
def test_salient_patches_are_shown_in_detail(symmetry: Symmetry) -> None:
    tokenizer = CharmTokenizer(8, max_seq_len=800, selection="saliency")
    mask = np.zeros((323, 355), bool)
    mask[:80, :168] = True  # after cropping a pixel or two: 5 x 10 whole coarse patches, and some by a part
    before = mask.copy()
    tokens = tokenizer(NOISE[:323, :355], saliency_mask=mask, symmetry=symmetry, key="photo-1")
    np.testing.assert_array_equal(mask, before)
    salient = fit_to_grid(mask.astype(np.uint8), 16).reshape(20, 16, 22, 16).mean(axis=(1, 3)) >= 0.5
    assert salient.sum() == 50
    native = shown_cells(tokens, tokenizer.sides)[-1] == 4
    assert native.sum() == 64
    assert native[apply_symmetry(salient, symmetry)].all()


def test_dropped_places_are_filled() -> None:
    tokenizer = CharmTokenizer(8, max_seq_len=12, budget="fill")
    tokens = tokenizer(NOISE[:64, :64], key="photo-1")
    view, dropped = tokens.to_image(fill=9), shown(tokens, 0) == 0
    assert dropped.sum() == 4
    large = dropped.repeat(16, axis=0).repeat(16, axis=1)
    assert (view[large] == 9).all()
    for (y, x), patch in zip(tokens.patch_coord, tokens.patches, strict=True):
        np.testing.assert_array_equal(view[y * 16 : y * 16 + 16 : 2, x * 16 : x * 16 + 16 : 2], patch)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"selection": "sobel"}, "selection='sobel': 'sobel' is not known; known: random, frequency"),
        ({"budget": "all"}, "budget='all': 'all' is not known; known: fixed, fill, share"),
        ({"drop": "high_first"}, "drop='high_first': 'high_first' is not known; did you mean 'low_first'?"),
        ({"fit": "crop"}, "fit='crop': 'crop' is not known; known: nearest, pad"),
        ({"redraw": True}, "redraw=True: True is not known; known: epoch, once"),
        ({"threshold": 0.99}, "threshold=0.99: expected a number from 1 to"),
        ({"threshold": float("nan")}, "threshold=nan: expected a finite number"),
        ({"threshold": float("inf")}, "threshold=inf: expected a finite number"),
        ({"max_seq_len": 0}, "max_seq_len=0: expected a number from 1"),
        ({"max_seq_len": 100.5}, "max_seq_len=100.5: expected int, got 100.5"),
        ({"patch_size": 0}, "patch_size=0: expected a number from 1"),
        ({"patch_size": "14"}, "patch_size='14': expected int"),
        ({"native_share": 1.1}, "native_share=1.1: expected a number from 1e-06 to 1"),
        ({"saliency_coverage": 0.0}, "saliency_coverage=0.0: expected"),
        ({"coarse_ratio": 5}, "coarse_ratio=5: expected a number from 2 to 4"),
        ({"num_scales": 1}, "num_scales=1: expected a number from 2"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CharmTokenizer(**setting)


GRID = (22, 22)  # of NOISE in coarse patches of 28 pixels is (23, 23)


@pytest.mark.parametrize(
    ("selection", "arrays", "message"),
    [
        ("random", {"image": NOISE.astype(np.float32)}, r"image is float32 \(641, 641, 3\): expected .*uint8"),
        ("random", {"image": NOISE[..., :2]}, r"image is uint8 \(641, 641, 2\)"),
        ("gradient", {"importance": np.pad([[np.nan]], (0, 22))}, "importance has values that are not finite"),
        ("gradient", {"importance": np.pad([[np.inf]], (0, 22))}, "importance has values that are not finite"),
        ("gradient", {"importance": np.zeros(GRID)}, r"\(22, 22\): expected \(23, 23\), .* coarse patch of 28 pixels"),
        ("gradient", {"importance": [[0.0]]}, "importance is list: expected a numpy array"),
        ("saliency", {}, "needs saliency_mask"),
        ("saliency", {"saliency_mask": np.zeros(GRID, bool)}, r"bool \(22, 22\): expected bool \(641, 641\)"),
        ("saliency", {"saliency_mask": NOISE[..., 0]}, r"saliency_mask is uint8 \(641, 641\): expected bool"),
        ("saliency", {"saliency_mask": [[True]]}, "saliency_mask is list: expected a numpy array"),
    ],
    ids=["float", "channels", "nan", "inf", "other patch size", "importance list", "no mask", "size", "dtype", "list"],
)
def test_bad_input_is_refused(selection: str, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CharmTokenizer(selection=selection)(**{"image": NOISE, **arrays})


SIZES = [(300, 200), (120, 400), (30, 50)]


@pytest.fixture
def images() -> list[np.ndarray]:
    return [NOISE[:height, :width] for height, width in SIZES]


def test_a_list_gives_a_batch_of_what_each_image_gives_alone(images: list[np.ndarray]) -> None:
    tokenizer = CharmTokenizer(max_seq_len=60, selection="gradient", budget="fill")
    turns = [Symmetry(turns=turn) for turn in range(3)]
    batch = tokenizer(images, key=["a", "b", "c"], symmetry=turns, seed=5, epoch=2)
    assert batch.patches.shape == (3, 60, 14, 14, 3)
    for index, (image, key, symmetry) in enumerate(zip(images, "abc", turns, strict=True)):
        alone = tokenizer(image, key=key, symmetry=symmetry, seed=5, epoch=2)
        assert batch.grids[index] == alone.grids
        for name in ("patches", "patch_coord", "scale_id", "patch_valid"):
            np.testing.assert_array_equal(getattr(batch, name)[index], getattr(alone, name))


def test_a_batch_without_keys_numbers_its_images(images: list[np.ndarray]) -> None:
    tokenizer = CharmTokenizer(max_seq_len=60)
    batch = tokenizer(tuple(images))
    for index, image in enumerate(images):
        np.testing.assert_array_equal(batch.patch_coord[index], tokenizer(image, key=str(index)).patch_coord)


def test_a_batch_takes_importance_and_masks_as_lists(images: list[np.ndarray]) -> None:
    tokenizer = CharmTokenizer(max_seq_len=60, selection="saliency")
    masks = [np.zeros(image.shape[:2], bool) for image in images]
    assert tokenizer(images, saliency_mask=masks).patch_valid.shape == (3, 60)
    with pytest.raises(ValueError, match="saliency_mask: expected a list of 3, one for each image"):
        tokenizer(images, saliency_mask=masks[0])
    with pytest.raises(ValueError, match="key: expected a list of 3"):
        tokenizer(images, key="a")
    with pytest.raises(ValueError, match="at least one image"):
        tokenizer([])


def test_settings_are_what_it_was_called_with() -> None:
    tokenizer = CharmTokenizer(16, 3, 2, 77, "entropy", 1.5, "share", 0.3, "low_first", "pad", 0.2, "once")
    assert CharmTokenizer(**tokenizer.settings) == tokenizer
    assert CharmTokenizer(**tokenizer.settings) != replace(tokenizer, threshold=2.0)
    assert "selection='entropy'" in repr(tokenizer)


@pytest.mark.parametrize(
    ("salient", "found"),
    [(slice(0, 0), "empty"), (slice(10, 20), "small"), (slice(0, 28), "object")],
    ids=["nothing", "10 pixels", "a coarse patch"],
)
def test_masks_are_judged_by_the_coarse_patches_that_they_cover(salient: slice, found: str) -> None:
    mask = np.zeros((100, 120), bool)
    mask[salient, salient] = True
    assert CharmTokenizer(patch_size=14, selection="saliency").judge_mask(mask) == found
