"""What waits is scored together, in order, within bounds; one failure is not that of its batch."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager

import numpy as np
import pytest

from charm.app.batcher import Batcher, Turns
from charm.scores import Score
from charm.tokenization.tokens import Tokens

SECONDS = 20  # no test waits for so long


def make_image(number: int, num_tokens: int = 10, draws: int = 1) -> list[Tokens]:
    """Draws that carry their number in their first pixel."""
    valid = np.arange(100) < num_tokens
    patches = np.full((100, 1, 1, 3), number, np.uint8)
    coord, scale_id = np.zeros((100, 2), np.int32), np.zeros(100, np.uint8)
    return [Tokens(patches, coord, scale_id, valid, ((1, 1),))] * draws


def number_of(draws: Sequence[Tokens]) -> int:
    return int(draws[0].patches[0, 0, 0, 0])


class Model:
    """Scores each image by its number, when it may; remembers its batches."""

    def __init__(self) -> None:
        self.may_run = threading.Event()
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()

    def score(self, images: Sequence[Sequence[Tokens]]) -> list[Score]:
        assert self.may_run.wait(SECONDS)
        numbers = [number_of(draws) for draws in images]
        self.threads.add(threading.current_thread().name)
        self.batches.append(numbers)
        if 13 in numbers:
            raise ArithmeticError("13")
        return [Score(float(number), None, None, float(number)) for number in numbers]


@contextmanager
def batching(model: Model, **settings: float) -> Iterator[Batcher]:
    """A batcher whose model is busy with image 0, so that all else waits until `may_run` is set."""
    batcher = Batcher(model.score, **settings)  # type: ignore[arg-type]
    first = batcher.submit(make_image(0, 100))
    while len(batcher):
        pass
    try:
        yield batcher
        first.result(SECONDS)
    finally:
        model.may_run.set()
        batcher.close()


def test_images_that_wait_are_scored_together_in_the_order_they_came_in() -> None:
    model = Model()
    with batching(model, max_tokens=100) as batcher:
        futures = [batcher.submit(make_image(number)) for number in range(1, 8)]
        model.may_run.set()
        assert [future.result(SECONDS).score for future in futures] == [1, 2, 3, 4, 5, 6, 7]
    assert model.batches == [[0], [1, 2, 3, 4, 5, 6, 7]]
    assert model.threads == {"model"}


@pytest.mark.parametrize(
    ("images", "batches"),
    [
        pytest.param([(1, 60), (2, 60), (3, 40)], [[1], [2, 3]], id="no more tokens than a batch holds"),
        pytest.param([(1, 60), (2, 50), (3, 10)], [[1], [2, 3]], id="a small one does not overtake"),
        pytest.param([(1, 10), (2, 90), (3, 1)], [[1, 2], [3]], id="exactly full"),
    ],
)
def test_batches_are_bounded_by_tokens(images: list[tuple[int, int]], batches: list[list[int]]) -> None:
    model = Model()
    with batching(model, max_tokens=100) as batcher:
        futures = [batcher.submit(make_image(*image)) for image in images]
        model.may_run.set()
        for future in futures:
            future.result(SECONDS)
    assert model.batches == [[0], *batches]


def test_requests_take_turns_by_their_tokens() -> None:
    """A form of many images, and then two requests: each is in the next batch but one, beside some of the form's."""
    model, form = Model(), Turns()
    with batching(model, max_tokens=40) as batcher:
        futures = [batcher.submit(make_image(number), form) for number in range(1, 8)]
        other = Turns()
        futures += [batcher.submit(make_image(number), other) for number in (21, 22)]
        futures.append(batcher.submit(make_image(31, 30)))
        model.may_run.set()
        for future in futures:
            future.result(SECONDS)
    assert model.batches == [[0], [1, 21], [31, 2], [22, 3, 4, 5], [6, 7]]


def test_a_request_that_comes_later_does_not_wait_for_a_form() -> None:
    model, form = Model(), Turns()
    taken, may_go_on = threading.Event(), threading.Event()
    score = model.score

    def score_in_steps(images: Sequence[Sequence[Tokens]]) -> list[Score]:
        if number_of(images[0]) == 3:
            taken.set()
            assert may_go_on.wait(SECONDS)
        return score(images)

    model.score = score_in_steps  # type: ignore[method-assign]
    with batching(model, max_tokens=20) as batcher:
        futures = [batcher.submit(make_image(number), form) for number in range(1, 11)]
        model.may_run.set()
        assert taken.wait(SECONDS)  # [3, 4] are with the model
        futures.append(batcher.submit(make_image(21), Turns()))
        may_go_on.set()
        for future in futures:
            future.result(SECONDS)
    assert model.batches == [[0], [1, 2], [3, 4], [21, 5], [6, 7], [8, 9], [10]]


def test_a_image_of_more_tokens_than_a_batch_goes_alone() -> None:
    model = Model()
    with batching(model, max_tokens=100) as batcher:
        futures = [batcher.submit(make_image(number, 50, draws)) for number, draws in ((1, 1), (2, 4), (3, 1))]
        model.may_run.set()
        assert [future.result(SECONDS).score for future in futures] == [1, 2, 3]
    assert model.batches == [[0], [1], [2], [3]]


def test_one_failure_is_not_that_of_its_batch() -> None:
    model = Model()
    with batching(model, max_tokens=100) as batcher:
        futures = [batcher.submit(make_image(number)) for number in (12, 13, 14)]
        model.may_run.set()
        assert futures[0].result(SECONDS).score == 12
        assert futures[2].result(SECONDS).score == 14
        with pytest.raises(ArithmeticError):
            futures[1].result(SECONDS)
        assert batcher.submit(make_image(15)).result(SECONDS).score == 15


def test_what_nobody_waits_for_any_more_is_not_scored() -> None:
    model = Model()
    with batching(model) as batcher:
        left, stayed = batcher.submit(make_image(1)), batcher.submit(make_image(2))
        assert left.cancel()
        model.may_run.set()
        assert stayed.result(SECONDS).score == 2
        with pytest.raises(CancelledError):
            left.result(SECONDS)
    assert model.batches == [[0], [2]]


def test_closing_does_what_waits_and_takes_nothing_more() -> None:
    model = Model()
    with batching(model) as batcher:
        future = batcher.submit(make_image(1))
        model.may_run.set()
        batcher.close()
        assert future.result(0).score == 1
        with pytest.raises(RuntimeError, match="stopped"):
            batcher.submit(make_image(2))


def test_what_was_served_is_counted() -> None:
    model = Model()
    with batching(model, max_tokens=100) as batcher:
        futures = [batcher.submit(make_image(number, 20, draws=2)) for number in (1, 2, 3)]
        assert len(batcher) == 3
        model.may_run.set()
        for future in futures:
            future.result(SECONDS)
        assert len(batcher) == 0
        served = batcher.served
        assert (served.batches, served.images, served.largest_batch, served.tokens) == (3, 4, 2, 220)
        assert served.busy_seconds > 0


def test_a_full_batch_waits_for_nobody() -> None:
    """Or this would take 10,000 s."""
    model = Model()
    model.may_run.set()
    with batching(model, max_tokens=100, wait_seconds=10_000) as batcher:
        assert batcher.submit(make_image(1, 100)).result(SECONDS).score == 1
