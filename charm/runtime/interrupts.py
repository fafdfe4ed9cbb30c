"""SIGTERM and SIGINT as something to ask for, so that what is under way is finished and saved."""

import signal
from types import FrameType
from typing import Any


class Interrupts:
    """While it is entered, the two signals only set `came`; in the main thread alone. A signal that is ignored, as
    Ctrl-C is where a script's job runs in the background, stays so."""

    def __init__(self) -> None:
        self.came = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        self._before = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGTERM, signal.SIGINT)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True

    def check(self) -> None:
        """KeyboardInterrupt if one came."""
        if self.came:
            raise KeyboardInterrupt
