"""Numbers of the fault suite: what was tried, how often, and how often it went wrong.

A test of a gate states its numbers once, at its end:

    def test_bombs(gate: Gate) -> None:
        ...
        gate("G6", "rejected within 1 s and 200 MB", cases=7, worst_seconds=0.4, worst_megabytes=93, failures=0)

They are shown after the run. `pytest tests/faults --reliability FOLDER` also writes them to FOLDER/reliability.json:

    {"gates": [{"gate": "G6", "what": "rejected within ...", "test": "tests/faults/...", "cases": 7, ...}, ...]}

A test that breaks before its end leaves no record, but fails the run.
"""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Gate = Callable[..., None]
_RECORDS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", metavar="FOLDER", help="write the gates' numbers to FOLDER/reliability.json")


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A stage that is run in this process leaves its own handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def gate(request: pytest.FixtureRequest) -> Gate:
    """Called as gate("G1", "what was shown", cases=..., failures=..., other numbers); failures > 0 fail the test."""

    def record(name: str, what: str, *, cases: int, failures: int, **numbers: Any) -> None:
        entry = {"gate": name, "what": what, "test": request.node.nodeid, "cases": cases, "failures": failures}
        request.config.stash.setdefault(_RECORDS, []).append(entry | numbers)
        assert cases > 0, f"{name}: {what}: nothing was tried"
        assert failures == 0, f"{name}: {what}: {failures} of {cases} failed"

    return record


def _in_order(config: pytest.Config) -> list[dict[str, Any]]:
    """By number of the gate: G2 before G11."""
    return sorted(config.stash.get(_RECORDS, []), key=lambda one: (int(one["gate"][1:]), one["what"], one["test"]))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    records = _in_order(config)
    if records:
        terminalreporter.section("gates")
    for one in records:
        numbers = ", ".join(f"{name} {one[name]}" for name in one if name not in ("gate", "what", "test"))
        terminalreporter.line(f"{one['gate']:<4}{one['what']}: {numbers}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Unknown where pytest was started on another folder: this file is then read after the command line.
    folder = session.config.getoption("--reliability", default=None)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"gates": _in_order(session.config)}, indent=1)
        (Path(folder) / "reliability.json").write_text(text + "\n")
