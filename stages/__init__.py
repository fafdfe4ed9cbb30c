"""One script per stage of dvc.yaml, run as `python -m stages.<word>`."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from charm.runtime.interrupts import reporting
from charm.runtime.streams import run_command
from pipeline.settings.params import Params, load_params

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while a stage imports its modules: no traceback


def run_stage(main: Callable[[Params], None]) -> NoReturn:
    """Checks params.yaml, runs the stage and exits. A mistake of the user is one line and exit code 2, no traceback."""
    run_command(lambda: _run(main))


def _run(main: Callable[[Params], None]) -> int:
    with reporting("what is made is kept, and the same command goes on from here"):
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main(load_params())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the outputs are whole: DVC must not hear of a failure and drop them
    return 0
