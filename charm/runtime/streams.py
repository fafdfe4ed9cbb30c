"""Standard output and standard error that may be closed or full: told in one line, with an exit code, no traceback."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from charm.runtime.errors import UserError
from charm.runtime.interrupts import MISTAKE


class _Stream(io.FileIO):
    """Standard output or error, given up after its first failure.

    Python itself would write what is left once more at its end, fail again, and change the exit code.
    """

    _is_lost = False

    def write(self, data: Any) -> int:
        if not self._is_lost:
            try:
                return super().write(data)
            except OSError as error:
                self._is_lost = True
                if isinstance(error, BrokenPipeError) and self.fileno() == 1:
                    raise  # the reader of the output, `head` for example, has closed it
                if self.fileno() == 1:  # else there is nowhere to say it
                    says = f"standard output cannot be written ({error.strerror}): direct it to a file or a terminal"
                    raise UserError(says) from error
        return memoryview(data).nbytes


def open_streams() -> None:
    """Replaces sys.stdout and sys.stderr; characters that their encoding lacks are written as \\xff or \\u1234."""
    if os.name == "nt":  # whose consoles are no files
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return
    # The next file that is opened would become the output where that was closed, a journal for example.
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        if before is not getattr(sys, f"__{name}__"):  # somebody who runs a command in this process collects its output
            continue
        buffer = io.BufferedWriter(_Stream(descriptor, "wb", closefd=False))
        is_by_line = descriptor == 2 or os.isatty(descriptor)
        text = io.TextIOWrapper(buffer, before and before.encoding, "backslashreplace", line_buffering=is_by_line)
        setattr(sys, name, text)


def run_command(command: Callable[[], int]) -> NoReturn:
    """Runs a command on streams that may be closed or full, and exits with its code."""
    open_streams()
    try:
        try:
            code = command()
        finally:
            sys.stdout.flush()
    except UserError as error:  # of the output, where no command is at work any more
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(MISTAKE) from error
    except BrokenPipeError:
        raise SystemExit(1) from None
    raise SystemExit(code)
