"""Draws: literal words, so that every machine, process and version gives the same, and no two uses share numbers."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charm.tokenization.draws import DRAWS_VERSION, draw_order, draw_random_bits, draw_subset, draw_uniform

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WHERE: dict[str, Any] = {"seed": 0, "epoch": 0, "key": "photo-1", "stream": "select"}


@pytest.mark.parametrize(
    ("where", "random_bits"),
    [
        pytest.param(
            (0, 0, "photo-1", "select"),
            [0xB7C790AC518D33B3, 0x7C5E3CB707E6CE6C, 0x1A8AE5AC2EA8EAAB, 0xF78E4DC24B220D91],
            id="plain",
        ),
        pytest.param(
            (-3, 7, "fotó/2.jpg", "drop"),
            [0x70FFE72AB3A75FAE, 0x5636EC75E7A37DC4, 0x6C241EE8AC9E882A],
            id="negative seed, key beyond ASCII",
        ),
    ],
)
def test_golden_words(where: tuple[int, int, str, str], random_bits: list[int]) -> None:
    drawn = draw_random_bits(*where, len(random_bits))
    assert drawn.dtype == np.uint64
    assert drawn.tolist() == random_bits


def test_golden_order() -> None:
    assert draw_order(**WHERE, size=10).tolist() == [8, 2, 7, 6, 4, 1, 0, 5, 9, 3]


@pytest.mark.parametrize(
    ("where", "places"),
    [
        pytest.param((0, 0, "photo-1", "select 0"), [9, 10, 12, 13, 15, 16], id="plain"),
        pytest.param((-3, 7, "fotó/2.jpg", "drop"), [3, 4, 5, 7, 13, 16], id="negative seed, key beyond ASCII"),
    ],
)
def test_golden_subset(where: tuple[int, int, str, str], places: list[int]) -> None:
    assert np.flatnonzero(draw_subset(*where, 20, 6)).tolist() == places


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 0), (1, 1), (5, 0), (5, 4), (5, 5), (2000, 999)])
def test_a_subset_has_the_wanted_size(size: int, count: int) -> None:
    drawn = draw_subset(**WHERE, size=size, count=count)
    assert (drawn.dtype, drawn.shape, drawn.sum()) == (bool, (size,), count)


def test_a_subset_holds_the_lowest_words() -> None:
    random_bits = draw_random_bits(**WHERE | {"stream": f"select {DRAWS_VERSION}"}, size=300)
    drawn = draw_subset(**WHERE, size=300, count=100)
    assert random_bits[drawn].max() < random_bits[~drawn].min()


def test_golden_uniform_numbers() -> None:
    assert draw_uniform(**WHERE, size=3).tolist() == [0.7178888722133265, 0.4858129450657557, 0.1036819024435861]


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"seed": -1}, {"epoch": 1}, {"key": "photo-2"}, {"key": ""}, {"stream": "drop"}],
    ids=str,
)
def test_every_argument_counts(other: dict[str, Any]) -> None:
    random_bits, others = draw_random_bits(**WHERE, size=100), draw_random_bits(**{**WHERE, **other}, size=100)
    assert not np.isin(random_bits, others).any()


def test_arguments_do_not_run_into_each_other() -> None:
    drawn = [draw_random_bits(*where, 1)[0] for where in [(1, 11, "a", "b"), (11, 1, "a", "b"), (1, 1, "1a", "b")]]
    assert len(set(drawn)) == 3


@SETTINGS
@given(st.integers(-(2**70), 2**70), st.integers(0, 2**40), KEYS, st.integers(0, 50), st.integers(0, 50))
def test_fewer_words_are_the_first_of_more(seed: int, epoch: int, key: str, size: int, more: int) -> None:
    random_bits = draw_random_bits(seed, epoch, key, "select", size)
    assert random_bits.shape == (size,)
    np.testing.assert_array_equal(random_bits, draw_random_bits(seed, epoch, key, "select", size + more)[:size])


@SETTINGS
@given(st.integers(), st.integers(0, 100), KEYS, st.integers(0, 200))
def test_order_is_a_permutation(seed: int, epoch: int, key: str, size: int) -> None:
    order = draw_order(seed, epoch, key, "select", size)
    assert sorted(order.tolist()) == list(range(size))


def test_the_state_of_numpys_generator_is_neither_read_nor_changed() -> None:
    np.random.seed(1)  # noqa: NPY002
    first = draw_random_bits(**WHERE, size=5)
    after = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert np.random.random() == after  # noqa: NPY002
    np.testing.assert_array_equal(draw_random_bits(**WHERE, size=5), first)


def test_uniform_numbers_are_uniform() -> None:
    drawn = draw_uniform(**WHERE, size=20000)
    assert drawn.dtype == np.float64
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=10, range=(0, 1))
    assert np.abs(counts - 2000).max() < 200  # sigma 42


def test_every_order_is_as_likely() -> None:
    counts = Counter(tuple(draw_order(0, 0, f"photo-{i}", "select", 3).tolist()) for i in range(3000))
    assert len(counts) == 6
    assert all(abs(count - 500) < 100 for count in counts.values()), counts  # sigma 20
