"""How the benchmarks time: medians of calls, and ways that take turns so that all share what else the machine does."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def time_call(call: Callable[[], Any]) -> float:
    """Returns the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def median_ms(call: Callable[[], Any], repeats: int = 15) -> float:
    """Returns the median milliseconds of a call; the first two do not count."""
    return 1e3 * statistics.median([time_call(call) for _ in range(repeats + 2)][2:])


def take_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each way; they take turns in a drawn order, and the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in np.random.default_rng(turn).permutation(list(ways)):
            seconds[name].append(time_call(ways[name]))
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}
