"""Progress of a long job: a bar on a terminal, a line every half minute in a log."""

import sys
import time

_LOG_EVERY = 30.0  # seconds


class Progress:
    """Shows on stderr how much of a job is done, how fast it goes and how long it will take.

    Args:
        label: name of the job.
        total, done: numbers of units, and of those that were done before; `done` counts on.
        unit: name of a unit, for example "shard".
        silent: whether nothing is shown, for example because the results themselves appear on the terminal.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0, silent: bool = False) -> None:
        self._label, self._total, self._unit = label, total, unit
        self.done = done
        self._silent = silent
        self._first, self._began = done, time.monotonic()
        self._shown = self._began
        self._bar = None
        if sys.stderr.isatty() and not silent:
            from tqdm import tqdm

            self._bar = tqdm(desc=label, total=total, initial=done, unit=unit, leave=False)

    def move(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more units as done, which may be 0; `note` is shown beside the count."""
        self.done += count
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif not self._silent and time.monotonic() - self._shown >= _LOG_EVERY:
            self._shown = time.monotonic()
            parts = [f"{self.done} of {self._total} {self._unit}s done", *self._pace(), *([note] if note else [])]
            print(f"{self._label}: {', '.join(parts)}", file=sys.stderr, flush=True)

    def _pace(self) -> list[str]:
        """Says how many units a second takes, and how long the rest will; nothing before the first unit is done."""
        done = self.done - self._first
        if done <= 0:
            return []
        seconds = (time.monotonic() - self._began) / done
        return [f"{1 / seconds:.3g} per second", f"{format_time(seconds * (self._total - self.done))} left"]

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def format_time(seconds: float) -> str:
    """Formats a duration as people say it: "40 s", "12 min" or "6 h 10 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
