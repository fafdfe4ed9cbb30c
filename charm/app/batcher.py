"""Requests -> batches: images that wait are scored together by one thread, and requests take turns at it."""

import bisect
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from charm.scores import Score
from charm.tokenization.tokens import Tokens


@dataclass
class Turns:
    """Where the images of a request stand in the queue: one that had its tokens scored lets others go first."""

    next: int = 0


@dataclass(frozen=True)
class _Job:
    """An image to score: its draws; `start` orders the queue, in tokens."""

    draws: Sequence[Tokens]
    num_tokens: int
    start: int
    done: Future[Score] = field(default_factory=Future)


@dataclass
class Served:
    """What the model has done since it started; busy_seconds is the time in which it scored."""

    batches: int = 0
    images: int = 0
    largest_batch: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0


class Batcher:
    """Owns the thread in which a model scores; any thread may hand it images."""

    def __init__(
        self,
        score: Callable[[Sequence[Sequence[Tokens]]], list[Score]],  # no result may depend on batch mates
        max_tokens: int = 8192,  # of a batch, padding not counted; an image of more goes alone
        wait_seconds: float = 0.01,  # how long the first image of a batch waits for others
    ) -> None:
        self._score, self._max_tokens, self._wait_seconds = score, max_tokens, wait_seconds
        self.served = Served()
        self._waiting: list[_Job] = []  # by start, then as they came in
        self._clock = 0  # start of the last image that was taken
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="model", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Returns how many images wait."""
        return len(self._waiting)

    def submit(self, draws: Sequence[Tokens], turns: Turns | None = None) -> Future[Score]:
        """Computes the score of an image from its tokens, once per draw.

        Images of a request share its `turns` ("start-time fair queuing").
        """
        turns = turns or Turns()
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the model has stopped")
            job = _Job(draws, sum(one.seq_len for one in draws), max(self._clock, turns.next))
            turns.next = job.start + job.num_tokens
            bisect.insort(self._waiting, job, key=lambda one: one.start)
            self._changed.notify()
        return job.done

    def close(self) -> None:
        """Does what waits, then ends the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        while batch := self._take():
            wanted = [job for job in batch if job.done.set_running_or_notify_cancel()]  # clients may have left
            if wanted:
                self._score_batch(wanted)

    def _take(self) -> list[_Job]:
        """Takes the next batch from the front of the queue; returns an empty one at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            ends = time.monotonic() + self._wait_seconds
            while not (self._is_closed or self._front()[1]) and self._changed.wait(ends - time.monotonic()):
                pass
            count = self._front()[0]
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            self._clock = batch[-1].start if batch else self._clock
            return batch

    def _front(self) -> tuple[int, bool]:
        """Returns how many jobs from the front make a batch, and whether the batch is full."""
        room = self._max_tokens
        for count, job in enumerate(self._waiting):
            if count and job.num_tokens > room:
                return count, True
            room -= job.num_tokens
        return len(self._waiting), room <= 0

    def _score_batch(self, batch: list[_Job]) -> None:
        started = time.monotonic()
        try:
            scores = self._score([job.draws for job in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].done.set_exception(error)
            else:  # one image's failure, or one of memory, is not that of the others
                for job in batch:
                    self._score_batch([job])
            return
        served = self.served
        served.busy_seconds += time.monotonic() - started
        served.batches += 1
        served.images += len(batch)
        served.largest_batch = max(served.largest_batch, len(batch))
        served.tokens += sum(job.num_tokens for job in batch)
        for job, score in zip(batch, scores, strict=True):
            job.done.set_result(score)
