"""Augmentation: flips and quarter turns form a group, and are drawn as often as the paper says."""

from collections import Counter

import numpy as np
import pytest

from charm.tokenization.augment import IDENTITY, Symmetry, apply_symmetry, draw_symmetry

ALL = [Symmetry(flip, turns) for flip in (False, True) for turns in range(4)]
KEYS = [f"photo-{i}" for i in range(2000)]
IMAGES = {
    "uint8 image": np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8),
    "float32 map": np.random.default_rng(1).random((4, 6), dtype=np.float32),
    "float64 map": np.random.default_rng(2).random((4, 1)),
    "bool mask": np.random.default_rng(3).random((5, 3)) < 0.5,
    "one pixel": np.full((1, 1, 3), 7, np.uint8),
    "one channel": np.arange(12, dtype=np.uint8).reshape(3, 4, 1),
    "part of a larger image": np.arange(600, dtype=np.uint16).reshape(10, 20, 3)[2:9:2, 3:9],
}


def named(symmetry: Symmetry) -> str:
    return f"{'flip and ' if symmetry.flip else ''}{symmetry.turns} turns"


@pytest.fixture(params=IMAGES.values(), ids=list(IMAGES))
def array(request: pytest.FixtureRequest) -> np.ndarray:
    found: np.ndarray = request.param
    return found


@pytest.mark.parametrize("symmetry", ALL, ids=named)
def test_is_a_flip_and_then_turns_counterclockwise(array: np.ndarray, symmetry: Symmetry) -> None:
    before = array.copy()
    turned = apply_symmetry(array, symmetry)
    flipped = array[:, ::-1] if symmetry.flip else array
    np.testing.assert_array_equal(turned, np.rot90(flipped, symmetry.turns), strict=True)
    assert symmetry.transposes == (turned.shape[:2] == array.shape[1::-1] and symmetry.turns in (1, 3))
    np.testing.assert_array_equal(array, before)


def test_literal_turns() -> None:
    array = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    assert apply_symmetry(array, Symmetry(turns=1)).tolist() == [[3, 6], [2, 5], [1, 4]]
    assert apply_symmetry(array, Symmetry(flip=True)).tolist() == [[3, 2, 1], [6, 5, 4]]
    assert apply_symmetry(array, Symmetry(flip=True, turns=1)).tolist() == [[1, 4], [2, 5], [3, 6]]


@pytest.mark.parametrize(
    ("symmetry", "times"), [(Symmetry(flip=True), 2), (Symmetry(turns=1), 4), (Symmetry(turns=2), 2)], ids=str
)
def test_repeated_it_is_nothing(array: np.ndarray, symmetry: Symmetry, times: int) -> None:
    turned = array
    for _ in range(times):
        turned = apply_symmetry(turned, symmetry)
    np.testing.assert_array_equal(turned, array, strict=True)


@pytest.mark.parametrize("symmetry", ALL, ids=named)
def test_a_mirrored_turn_undoes_itself(array: np.ndarray, symmetry: Symmetry) -> None:
    undo = symmetry if symmetry.flip else Symmetry(turns=-symmetry.turns)
    np.testing.assert_array_equal(apply_symmetry(apply_symmetry(array, symmetry), undo), array, strict=True)


def test_identity_copies_nothing() -> None:
    array = IMAGES["uint8 image"]
    assert np.shares_memory(apply_symmetry(array, IDENTITY), array)
    assert Symmetry() == IDENTITY


def test_a_type_that_opencv_narrows_is_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        apply_symmetry(np.arange(6, dtype=np.int64).reshape(2, 3), Symmetry(flip=True))


def test_half_are_flipped_and_half_are_turned() -> None:
    drawn = Counter(draw_symmetry(0, 0, key) for key in KEYS)
    assert set(drawn) == set(ALL)
    assert abs(sum(n for symmetry, n in drawn.items() if symmetry.flip) - 1000) < 90  # sigma 22
    for turns, expected in ((0, 1000), (1, 1000 / 3), (2, 1000 / 3), (3, 1000 / 3)):
        count = drawn[Symmetry(False, turns)] + drawn[Symmetry(True, turns)]
        assert abs(count - expected) < 90, turns
    flipped_and_turned = sum(n for symmetry, n in drawn.items() if symmetry.flip and symmetry.turns)
    assert abs(flipped_and_turned - 500) < 80  # the two are independent


@pytest.mark.parametrize(
    ("flip", "rotate", "allowed"),
    [
        pytest.param(0.0, 0.0, {IDENTITY}, id="never"),
        pytest.param(1.0, 0.0, {Symmetry(True, 0)}, id="always flipped"),
        pytest.param(0.0, 1.0, {Symmetry(False, turns) for turns in (1, 2, 3)}, id="always turned"),
    ],
)
def test_certain_draws(flip: float, rotate: float, allowed: set[Symmetry]) -> None:
    assert {draw_symmetry(0, 0, key, flip, rotate) for key in KEYS[:300]} == allowed


def test_draws_depend_on_seed_epoch_and_key_alone() -> None:
    drawn = [draw_symmetry(0, 0, key) for key in KEYS[:50]]
    assert drawn == [draw_symmetry(0, 0, key) for key in KEYS[:50][::-1]][::-1]
    assert drawn != [draw_symmetry(1, 0, key) for key in KEYS[:50]]
    assert drawn != [draw_symmetry(0, 1, key) for key in KEYS[:50]]
    assert len(set(drawn)) > 1
