"""What a decoder with a hole costs: the file that went through it, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from charm.images import quarantine
from charm.images.limits import Limits
from charm.images.quarantine import Bounds, inspect_in_child
from charm.images.reasons import PASSING, REASONS
from tests.faults.conftest import Gate
from tests.faults.hostile_child import ORDERS, image

ROOT = Path(__file__).parents[2]
BOUNDS = Bounds(cpu_seconds=0.3, wall_seconds=2, megabytes=250)
REASON = {
    "segfault": "crashed",
    "abort": "crashed",
    "exit": "crashed",
    "spin": "timeout",
    "sleep": "timeout",
    "eat": "memory",
    "lie": "crashed",
    "babble": "crashed",
    "print": "",
    "wear": "",
}


@pytest.fixture(autouse=True)
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_COMMAND", (sys.executable, "-m", "tests.faults.hostile_child"))


def look(root: Path, *contents: bytes) -> list[dict[str, Any]]:
    for index, content in enumerate(contents):
        (root / f"{index}").write_bytes(content)
    return inspect_in_child(root, [f"{index}" for index in range(len(contents))], Limits(), BOUNDS)


def test_every_order_is_tried() -> None:
    assert REASON.keys() == ORDERS.keys()
    assert set(REASON.values()) - {""} <= PASSING & REASONS.keys()


def test_a_poison_file_costs_exactly_itself(tmp_path: Path, gate: Gate, capfd: pytest.CaptureFixture[str]) -> None:
    """Between good files, as the first, as the last, and several in a row."""
    files = [
        (image(index), "") if index % 2 else (order.encode(), REASON[order]) for order in REASON for index in (0, 1)
    ]
    files += [(order.encode(), REASON[order]) for order in ("segfault", "exit", "eat", "abort")]
    found = [facts["reason"] for facts in look(tmp_path, *(content for content, _ in files))]
    wrong = [(file[1], reason) for file, reason in zip(files, found, strict=True) if file[1] != reason]
    gate(
        "G6",
        "a file that crashes, hangs, floods or exhausts its decoder costs exactly one rejected row",
        cases=sum(reason != "" for _, reason in files),
        files=len(files),
        failures=len(wrong),
    )
    assert capfd.readouterr() == ("", "")


def test_a_file_is_not_blamed_for_what_came_before(tmp_path: Path) -> None:
    found = look(tmp_path, b"wear", b"wear", b"wear", image())
    assert [facts["reason"] for facts in found] == [""] * 4


def test_the_child_inherits_neither_secrets_nor_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with (tmp_path / "opened").open("wb") as file:
        os.set_inheritable(file.fileno(), True)
        (facts,) = look(tmp_path, b"look around")
    seen = set(facts["notes"])
    assert "PATH" in seen
    assert seen.isdisjoint({"AWS_SECRET_ACCESS_KEY", str(tmp_path / "opened")})
    assert {one.split(":")[0] for one in seen if one.startswith(("/", "pipe", "socket"))} <= {"pipe", "/dev/null"}


def test_not_a_byte_is_written(tmp_path: Path) -> None:
    look(tmp_path, f"write {tmp_path}/written".encode())
    assert (tmp_path / "written").read_bytes() == b""


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""  # empty when it only waits to be buried
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("order", ["spin", "sleep"])
def test_the_child_dies_with_its_parent(order: str, tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(order.encode())
    code = (
        "import sys; from pathlib import Path; from charm.images import quarantine as q; "
        "q._COMMAND = (sys.executable, '-m', 'tests.faults.hostile_child'); "
        f"child = q.Quarantine(Path({str(tmp_path)!r}), q.Limits(), q.Bounds(cpu_seconds=1, wall_seconds=2)); "
        "print(child._start().pid, flush=True); child.inspect_file('0')"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.3)  # it has got the file
        parent.send_signal(signal.SIGKILL)
    assert Path(f"/proc/{child}").exists()
    patience = time.monotonic() + 60
    while is_running(child):
        assert time.monotonic() < patience, "the child outlived its parent"
        time.sleep(0.05)
