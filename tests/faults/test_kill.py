"""G2, with real processes: what is killed, told to stop or out of room goes on where it was, to the same bytes."""

import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from charm.runtime.errors import UserError
from tests.faults.conftest import Gate
from tests.faults.processes import (
    Ended,
    finish,
    made,
    run_inline,
    start_stage,
    wait_for_shards,
    whole_shards,
    workers_of,
    write_workspace,
)
from tests.warm_python import WarmPython

IMAGES = 60
STOPPED = "stopped; what is made is kept, and the same command goes on from here\n"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the shards were made without a stop; an image each, so that there are many."""
    folder = tmp_path_factory.mktemp("reference")
    write_workspace(folder, IMAGES, samples_per_shard=1)
    run_inline(folder, "manifest", "shards")
    return folder


@pytest.fixture
def folder(reference: Path, tmp_path: Path) -> Path:
    """The same workspace, before its shards are made."""
    shutil.copytree(reference, tmp_path / "work", ignore=shutil.ignore_patterns("shards"))
    assert not whole_shards(tmp_path / "work")
    return tmp_path / "work"


Start = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture
def start(warm: WarmPython) -> Start:
    """The stage that makes shards, in a folder."""
    return lambda folder: start_stage(folder, "shards", warm.popen)


def failed(wrong: bool, *shown: object) -> bool:
    """`wrong`; printed where it is, for the gates only count."""
    if wrong:
        print(*shown)
    return wrong


def stop(process: subprocess.Popen[str], number: signal.Signals, to_group: bool) -> Ended:
    """Sends a signal to a stage; how it ended when all of its processes are gone."""
    workers = workers_of(process)
    if to_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    ended = finish(process)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "workers outlive the stage"
    return ended


def stop_at(start: Start, folder: Path, count: int, number: signal.Signals) -> tuple[Ended, dict[str, int]]:
    """Stops the stage when so many shards are there; what it left."""
    process = start(folder)
    wait_for_shards(count, folder, process)
    ended = stop(process, number, to_group=number == signal.SIGINT)  # as Ctrl-C does
    return ended, whole_shards(folder)


def test_stopped_again_and_again(start: Start, reference: Path, folder: Path, gate: Gate) -> None:
    """At moments drawn by lot; then to the end."""
    draws = np.random.default_rng(7)
    kept: dict[str, int] = {}
    failures, moments = 0, []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        ended, left = stop_at(start, folder, len(kept) + int(draws.integers(1, 9)), number)
        said = f"{len(kept)} of {IMAGES} shards are there, {IMAGES - len(kept)} to make"
        failures += failed(said not in ended.out, said, ended)
        failures += failed(not kept.items() <= left.items(), kept, left)  # nothing is lost, nothing is made twice
        failures += failed((folder / "data/shards").exists(), "data/shards")
        if number != signal.SIGKILL:
            failures += failed((ended.code, ended.err) != (130, STOPPED), ended)
        kept = left
        moments.append(len(left))
    assert 0 < moments[0] <= moments[1] <= moments[2] < IMAGES
    ended = finish(start(folder))
    failures += failed((ended.code, ended.err) != (0, ""), ended)
    failures += failed(not kept.items() <= whole_shards(folder).items(), kept)
    failures += failed(made(folder) != made(reference), made(folder), made(reference))
    gate("G2", "killed, told to stop, interrupted; then to the end", cases=4, failures=failures, shards_when=moments)


# Seconds until the signal; a worker takes about two to come, which hears one to the group, and at any moment.
@pytest.mark.parametrize(
    ("to_group", "delays"),
    [pytest.param(True, (0.1, 0.4, 0.8), id="group"), pytest.param(False, (0.4,), id="alone")],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_the_workers_start(
    start: Start, folder: Path, gate: Gate, number: signal.Signals, to_group: bool, delays: tuple[float, ...]
) -> None:
    """Slurm and terminals signal all processes of a job: workers that are half there, too."""
    failures = 0
    for delay in delays:
        process = start(folder)
        assert process.stdout
        assert process.stdout.readline().startswith("shards: ")
        time.sleep(delay)
        ended = stop(process, number, to_group)
        failures += failed((ended.code, ended.err) != (130, STOPPED), ended)
    receiver = "all processes" if to_group else "the stage"
    gate("G2", f"{number.name} to {receiver} while the workers start", cases=len(delays), failures=failures)


def test_two_makers_at_once(start: Start, reference: Path, folder: Path, gate: Gate) -> None:
    """The second waits, says for whom, and makes nothing that the first has made."""
    first = start(folder)
    wait_for_shards(1, folder, first)
    first.send_signal(signal.SIGSTOP)  # so that the second comes while it is at work
    second = start(folder)
    assert second.stdout
    said = second.stdout.readline()
    inodes = whole_shards(folder)
    first.send_signal(signal.SIGCONT)
    ends = [finish(first), finish(second)]
    failures = sum(failed(end.code != 0 or end.err != "", end) for end in ends)
    failures += failed(said != f"waiting for process {first.pid}, which makes the same artifacts\n", said)
    failures += failed(f"shards: 0 of {IMAGES} shards are there" not in ends[0].out, ends[0])
    failures += failed(f"shards: {IMAGES} of {IMAGES} shards are there, 0 to make" not in ends[1].out, ends[1])
    failures += failed(not inodes.items() <= whole_shards(folder).items(), inodes)
    failures += failed(made(folder) != made(reference), made(folder), made(reference))
    gate("G2", "two makers at once", cases=2, failures=failures)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """The kernel lets no file grow larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room(reference: Path, folder: Path, gate: Gate) -> None:
    """Said in one line for each shard; nothing half-made stays; with room it goes on."""
    with pytest.raises(UserError) as error, room_for(6000):  # the shards take 10240
        run_inline(folder, "shards")
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"shards: {IMAGES} of {IMAGES} shards failed; the others are kept")
    assert re.fullmatch(r"  shard-000000: \S+\.tar cannot be written \(File too large\): make room, then .*", lines[1])
    left = [path.name for path in (folder / ".charm/store/shards").iterdir()]
    gate("G2", "no room for any shard", cases=IMAGES, failures=len(left) - 1)
    assert left == [".lock"]
    assert not (folder / "data/shards").exists()
    run_inline(folder, "shards")
    assert made(folder) == made(reference)
