"""Progress of a long job: a bar on a terminal, a line every half minute in a log."""

import sys
import time

_LOG_EVERY = 30.0  # seconds


class Progress:
    """Shows on stderr how much of a job is done.

    Args:
        label: name of the job.
        total: number of units.
        unit: name of a unit, for example "shard".
        done: number of units that were done before.
        silent: whether nothing is shown, for example because the results themselves appear on the terminal.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0, silent: bool = False) -> None:
        self._label, self._total, self._unit, self._done = label, total, unit, done
        self._silent = silent
        self._shown = time.monotonic()
        self._bar = None
        if sys.stderr.isatty() and not silent:
            from tqdm import tqdm

            self._bar = tqdm(desc=label, total=total, initial=done, unit=unit)

    def move(self, count: int = 1) -> None:
        """Counts `count` more units as done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif not self._silent and time.monotonic() - self._shown >= _LOG_EVERY:
            self._shown = time.monotonic()
            print(f"{self._label}: {self._done} of {self._total} {self._unit}s done", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
