"""SIGTERM and SIGINT: recorded so that a loop can stop between two steps, told in one line when they end a command.

A second signal ends a command at once, whatever it waits for.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from charm.runtime.errors import EXTRAS, UserError, escape_controls, name_extra

MISTAKE, STOPPED = 2, 130  # exit codes
_TOGETHER = 0.5  # seconds within which signals are one request: terminal and launcher may both send one
_watched: list[socket.socket] = []  # that C's handler writes signals into
_SILENCE = 10  # seconds after which a command that is still ending says so


class Interrupts:
    """Records SIGTERM and SIGINT while it is entered, in the main thread alone.

    A signal that is ignored, as Ctrl-C is where a script's job runs in the background, stays ignored. `came` tells
    whether one has come.
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
def _ended_by_a_second_signal() -> Iterator[None]:
    """Ends this process and its children at a second SIGTERM or SIGINT, while entered.

    A handler of Python's runs between two bytecodes of the main thread, which a call into a library may never reach.
    What C's own handler writes for each signal is read by a thread, which needs no more than that the call lets other
    threads run.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_count_signals, args=(reader,), daemon=True).start()
    _watched.append(writer)
    try:
        yield
    finally:
        _watched.remove(writer)
        signal.set_wakeup_fd(before)
        writer.close()


def _count_signals(reader: socket.socket) -> None:
    first = 0.0
    with reader:
        while True:
            try:
                numbers = reader.recv(64)
            except TimeoutError:
                print("stopping as soon as what is under way is finished; a second signal ends it", file=sys.stderr)
                reader.settimeout(None)
                continue
            if not numbers:  # left
                return
            if not {signal.SIGTERM, signal.SIGINT} & set(numbers):
                continue
            if first and time.monotonic() - first > _TOGETHER:
                os.write(2, b"stopped at once\n")
                for child in _list_descendants(os.getpid()):
                    with contextlib.suppress(OSError):  # it ended meanwhile
                        os.kill(child, signal.SIGKILL)
                os._exit(STOPPED)
            if not first:
                first = time.monotonic()
                reader.settimeout(_SILENCE)


def _list_descendants(process: int) -> list[int]:
    """Lists the processes that a process has started, and those that they have; none where there is no /proc."""
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *_list_descendants(child)]
    return found


def _leave_the_socket() -> None:
    """Keeps a forked process from writing its own signals into the socket of this one."""
    if _watched:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_the_socket)


@contextlib.contextmanager
def reporting(when_stopped: str = "") -> Iterator[None]:
    """Ends the process with one line, not a traceback, after a signal or an error that a user can put right.

    Exit codes are STOPPED (`when_stopped` is printed after "stopped") and MISTAKE. SIGTERM is handled like Ctrl-C. A
    second signal ends the process at once.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with _ended_by_a_second_signal():
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
