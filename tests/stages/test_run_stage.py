"""How a stage ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_a_signal_after_the_work_is_done_does_not_fail_the_stage() -> None:
    """DVC would drop the outputs of a stage that failed; training takes days."""
    code = (
        "import atexit, os, signal, stages\n"
        "atexit.register(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGINT, signal.SIGTERM)])\n"
        "stages.run_stage(lambda params: print('done', flush=True))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_interrupted_while_modules_are_imported(tmp_path: Path) -> None:
    (tmp_path / "pyarrow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    ended = subprocess.run(
        [sys.executable, "-m", "stages.manifest"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_a_signal_before_is_one_line() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        code = f"import os, stages; stages.run_stage(lambda params: os.kill(os.getpid(), {int(number)}))"
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert (ended.returncode, ended.stdout) == (130, "")
        assert ended.stderr == "stopped; what is made is kept, and the same command goes on from here\n"


def test_a_full_or_closed_output_is_one_line() -> None:
    code = f"{sys.executable} -c 'import stages; stages.run_stage(lambda params: print(1, flush=True))'"
    for output, expected in {
        ">/dev/full": (2, "error: standard output cannot be written (No space left on device): direct it to a file or"),
        ">&-": (2, "error: standard output cannot be written (Bad file descriptor): direct it to a file or"),
        "| true": (0, ""),  # of `true`
    }.items():
        ended = subprocess.run(["bash", "-c", f"{code} {output}"], cwd=ROOT, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr[: len(expected[1])]) == expected
        assert ended.stderr.count("\n") == bool(expected[1])
