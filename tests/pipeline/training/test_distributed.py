"""Processes of one training: what goes between them, and that none is left behind."""

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from charm.runtime.errors import UserError
from pipeline.training import distributed
from pipeline.training.distributed import all_gather_rows, all_reduce_sum, join_process_group, launch_processes
from tests.silent import serve
from tests.warm_python import WarmPython

ROOT = Path(__file__).parents[3]
START = """
import os, sys, time, signal
from pathlib import Path
rank = int(os.environ["RANK"])
"""
TOGETHER = (
    START
    + """
import torch
from charm.runtime.errors import UserError
from pipeline.training.distributed import all_gather_rows, join_process_group, all_reduce_sum
from stages import run_stage
"""
)


@pytest.fixture
def job(tmp_path: Path, warm: WarmPython, monkeypatch: pytest.MonkeyPatch) -> Path:
    """job.py, which `launch_processes` is to run, in the working folder."""
    monkeypatch.setattr(subprocess, "Popen", warm.popen)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path / "job.py"


def test_sums_and_rows_of_all_ranks(job: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Once with rows on both, once on one; rank 0 alone is heard."""
    job.write_text(
        TOGETHER
        + """
with join_process_group() as ranks:
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.first) == (rank, 2, rank, rank == 0)
    assert all_reduce_sum(0.1 + rank, True) == [0.1 + 1.1, 2.0]
    for shares in ([[3, 0], [2, 4, 1]], [[], [1, 0]]):
        own = [f"{i:08d}" for i in shares[rank]]
        keys, rows = all_gather_rows(own, torch.tensor([[float(key), -float(key)] for key in own]).reshape(-1, 2))
        assert keys == [f"{i:08d}" for i in range(sum(map(len, shares)))]
        assert rows.tolist() == [[i, -i] for i in range(len(keys))]
    print("done", flush=True)
Path(f"{rank}.done").touch()
"""
    )
    launch_processes(2, "job")
    assert len(list(job.parent.glob("*.done"))) == 2
    assert capfd.readouterr().out == "done\n"


def test_a_mistake_of_one_rank_ends_all_with_its_message(job: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job.write_text(
        TOGETHER
        + """
def main(params):
    with join_process_group():
        all_reduce_sum(1.0)
        if rank == 1:
            raise UserError("that cannot be")
        all_reduce_sum(1.0)
import stages
stages.load_params = lambda: None
run_stage(main)
"""
    )
    started = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        launch_processes(2, "job")
    assert stopped.value.code == 2
    assert capfd.readouterr().err.count("error: that cannot be\n") == 1
    assert time.monotonic() - started < 60


def test_a_mistake_that_all_ranks_make_is_said_once(job: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Though rank 1 is seen to fail first."""
    job.write_text(
        START
        + """
if rank == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("ready").touch()
    time.sleep(1)
while not Path("ready").exists():
    time.sleep(0.05)
print("error: that cannot be", file=sys.stderr)
sys.exit(2)
"""
    )
    with pytest.raises(SystemExit):
        launch_processes(2, "job")
    assert capfd.readouterr().err == "error: that cannot be\n"


def test_a_rank_that_is_killed_is_named(job: Path) -> None:
    job.write_text(START + "os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(600)")
    with pytest.raises(UserError, match="rank 1 was killed by signal 9"):
        launch_processes(2, "job")


def test_a_signal_to_the_one_that_started_them_reaches_all(job: Path) -> None:
    job.write_text(
        START
        + """
def stop(number, frame):
    Path(f"{rank}.stopped").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
Path(f"{rank}.started").touch()
time.sleep(600)
"""
    )
    (job.parent / "start.py").write_text(
        "import stages\nfrom pipeline.training.distributed import launch_processes\n"
        "stages.load_params = lambda: None\nstages.run_stage(lambda _: launch_processes(2, 'job'))"
    )
    with subprocess.Popen([sys.executable, "start.py"], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while len(list(job.parent.glob("*.started"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.terminate()
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed.startswith("stopped; ")
    assert len(list(job.parent.glob("*.stopped"))) == 2


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "RANK and WORLD_SIZE are set, as by torchrun: .*MASTER_ADDR expected, but not set"),
        ({"RANK": "first"}, "RANK and WORLD_SIZE are set, as by torchrun: .*'first'"),
        (
            {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{free}"},
            r"rank 0: not all of 2 processes came to 127\.0\.0\.1:",
        ),
        (
            {"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{silent}"},
            r"rank 1: not all of 2 processes came to 127\.0\.0\.1:\d+ within 1 s",
        ),
    ],
    ids=["no address", "no number", "nobody comes", "another server"],
)
def test_ranks_that_do_not_meet_are_told(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_MEETING", timedelta(seconds=1))
    with serve() as unused:
        pass
    with serve() as silent:
        ports = {"free": unused.rpartition(":")[2], "silent": silent.rpartition(":")[2]}
        for name, value in ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"} | environment).items():
            monkeypatch.setenv(name, value.format(**ports))
        started = time.monotonic()
        with pytest.raises(UserError, match=message), join_process_group():
            pass
        assert time.monotonic() - started < 15
    assert not torch.distributed.is_initialized()


def test_alone_there_is_nothing_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with join_process_group() as ranks:
        assert (ranks.rank, ranks.world_size, ranks.first) == (0, 1, True)
        assert all_reduce_sum(2.0, False) == [2.0, 0.0]
        rows = torch.ones(2, 3)
        assert all_gather_rows(["b", "a"], rows) == (["b", "a"], rows)
    assert not torch.distributed.is_initialized()
