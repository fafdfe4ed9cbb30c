"""How far a long job is: a bar on a terminal, a line every half minute in a log."""

import sys
import time

_LOG_EVERY = 30.0  # seconds


class Progress:
    """Shows on stderr how much of something is done.

    Args:
        label: what is under way.
        total: how much there is.
        unit: of what, for example "shard".
        done: how much of it was done before.
        silent: whether nothing is shown, as where the results themselves appear on the terminal.
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
        """Notes that so much more is done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif not self._silent and time.monotonic() - self._shown >= _LOG_EVERY:
            self._shown = time.monotonic()
            print(f"{self._label}: {self._done} of {self._total} {self._unit}s done", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
