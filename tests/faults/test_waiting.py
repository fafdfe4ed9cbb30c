"""G12: a first signal ends a wait between two steps, a second one at once, in every state; nothing is left running."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.faults.conftest import Gate
from tests.silent import serve
from tests.warm_python import WarmPython

# What a command waits for; the last line is where it waits.
STATES = {
    "a loop that only notes signals": """
        import threading
        from charm.runtime.interrupts import Interrupts
        with Interrupts():
            ready()
            threading.Event().wait()
    """,
    "a step that never ends, with processes of its own": """
        import multiprocessing, subprocess, sys, time
        from charm.runtime.interrupts import Interrupts
        context = multiprocessing.get_context("fork")
        def ignore():
            import signal
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])
        with Interrupts():
            context.Process(target=ignore).start()
            time.sleep(0.5)
            ready()
            while True:
                time.sleep(600)
    """,
    "a call into C, which no handler of Python's reaches": """
        import ctypes
        mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
        lock(mutex)
        ready()
        lock(mutex)
    """,
    "another process that makes the same": """
        import fcntl, pathlib
        from pipeline.work.store import locked
        folder = pathlib.Path(sys.argv[1])
        other = open(folder / ".lock", "a+")
        fcntl.flock(other, fcntl.LOCK_EX)
        ready()
        with locked(folder):
            pass
    """,
    "a Dask scheduler that is none": """
        from pipeline.settings.params import DaskParams
        from pipeline.work import executor
        executor._PATIENCE = 600
        with executor._stopped_between_jobs() as check:
            ready()
            with executor.connect(DaskParams(sys.argv[2], None, "auto"), 1, check):
                pass
    """,
    "the other processes of a training": """
        import os
        os.environ.update(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[3])
        from pipeline.training.distributed import join_process_group
        ready()
        with join_process_group():
            pass
    """,
    "a folder far away": """
        from pipeline.shards.read import ShardReader
        ready()
        ShardReader(f"http://{sys.argv[2]}/shards")
    """,
    "the hub": """
        import os
        os.environ["HF_ENDPOINT"] = f"http://{sys.argv[2]}"
        from charm.runtime import waiting
        waiting._HUB_PATIENCE = 600
        ready()
        with waiting.reaching_hub():
            pass
    """,
}
RUN = """
import sys
from charm.runtime.interrupts import reporting
def ready():
    print("ready", flush=True)
with reporting():
"""


@pytest.fixture
def silent() -> Iterator[str]:
    with serve() as address:
        yield address


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_wait_ends_at_the_second_signal_at_the_latest(
    number: signal.Signals, silent: str, tmp_path: Path, warm: WarmPython, gate: Gate
) -> None:
    """All states at once, to save time: each in a process of its own."""
    with serve() as free:  # a port that nobody listens at when it is used
        port = free.rpartition(":")[2]
    processes = {}
    for state, code in STATES.items():
        folder = tmp_path / state
        folder.mkdir()
        processes[state] = warm.popen(
            [sys.executable, "-c", RUN + textwrap.indent(textwrap.dedent(code), "    "), folder, silent, port],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if not key.startswith(("CHARM_", "DASK_", "HF_"))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    for process in processes.values():
        assert process.stdout
        assert process.stdout.readline() == "ready\n", process.communicate()
    time.sleep(1)
    descendants = {state: psutil.Process(process.pid).children(recursive=True) for state, process in processes.items()}
    for process in processes.values():
        process.send_signal(number)
    time.sleep(1.5)
    second = [state for state, process in processes.items() if process.poll() is None]
    for state in second:
        processes[state].send_signal(number)
    started, failures = time.monotonic(), 0
    for state, process in processes.items():
        _, error = process.communicate(timeout=30)
        _, alive = psutil.wait_procs(descendants[state], timeout=5)
        told = process.returncode == 130 and error in ("stopped\n", "stopped at once\n")
        ending = process.returncode == -number and error == "stopped\n"  # the second came while it was about to exit
        good = (told or ending) and not alive
        failures += not good
        if not good:
            print(state, process.returncode, error, alive)
    seconds = round(time.monotonic() - started, 2)
    when = {"at_the_first": len(STATES) - len(second), "at_the_second": len(second), "seconds_from_there": seconds}
    gate("G12", f"{number.name} in a wait", cases=len(STATES), failures=failures, **when)
    assert seconds < 5


def test_signals_that_come_together_are_one_request() -> None:
    """A terminal and torchrun both tell a rank to stop: it goes on to the end of its step."""
    code = """
        import os, signal, time
        from charm.runtime.interrupts import Interrupts
        with Interrupts() as interrupts:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
                os.kill(os.getpid(), number)
            time.sleep(1)
            print("the step is whole", flush=True)
            interrupts.check()
    """
    ended = subprocess.run(
        [sys.executable, "-c", RUN + textwrap.indent(textwrap.dedent(code), "    ")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "the step is whole\n", "stopped\n")


def test_a_forked_worker_keeps_its_signals_to_itself() -> None:
    """Slurm sends SIGTERM to loader workers, too; it must not count twice for the trainer."""
    code = """
        import multiprocessing, os, signal, time
        from charm.runtime.interrupts import Interrupts
        def work():
            signal.signal(signal.SIGTERM, lambda *_: None)
            for _ in range(4):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.3)
        with Interrupts() as interrupts:
            worker = multiprocessing.get_context("fork").Process(target=work)
            worker.start()
            worker.join()
            print(interrupts.came, flush=True)
    """
    ended = subprocess.run(
        [sys.executable, "-c", RUN + textwrap.indent(textwrap.dedent(code), "    ")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "False\n", "")
