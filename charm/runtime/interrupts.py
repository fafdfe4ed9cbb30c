"""SIGTERM and SIGINT: recorded so that a loop can stop between two steps, told in one line when they end a command."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from charm.runtime.errors import EXTRAS, UserError, escape_controls, name_extra

MISTAKE, STOPPED = 2, 130  # exit codes


class Interrupts:
    """Records SIGTERM and SIGINT while it is entered, in the main thread alone.

    A signal that is ignored, as Ctrl-C is where a script's job runs in the background, stays ignored.

    Attributes:
        came: whether a signal has come.
    """

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
        """Raises KeyboardInterrupt if a signal has come."""
        if self.came:
            raise KeyboardInterrupt


@contextlib.contextmanager
def reporting(when_stopped: str = "") -> Iterator[None]:
    """Ends the process with one line, not a traceback, after a signal or an error that a user can put right.

    Exit codes are STOPPED and MISTAKE. SIGTERM is handled like Ctrl-C.

    Args:
        when_stopped: printed after "stopped".
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except (UserError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError):
            if (error.name or "").split(".")[0] not in EXTRAS:
                raise
            error = UserError(name_extra(error))
        if isinstance(error, OSError) and error.errno is None:  # raised by a library, not by the operating system
            raise
        if isinstance(error, BrokenPipeError):
            raise  # the reader of the output, `head` for example, has closed it
        said = "\n".join(map(escape_controls, f"error: {error}".split("\n")))
        print(said, file=sys.stderr)
        raise SystemExit(MISTAKE) from error
    except KeyboardInterrupt:
        print("; ".join(filter(None, ["stopped", when_stopped])), file=sys.stderr)
        raise SystemExit(STOPPED) from None
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:  # a handler that was set meanwhile stays
            signal.signal(signal.SIGTERM, before)
