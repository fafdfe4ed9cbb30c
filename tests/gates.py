"""Numbers of the fault suite: what was tried, how often, and how often it went wrong.

A test of a gate states its numbers once, at its end:

    def test_bombs(gate: Gate) -> None:
        ...
        gate("G6", "rejected within 1 s and 200 MB", cases=7, worst_seconds=0.4, worst_megabytes=93, failures=0)

They are shown after the run. `pytest tests/faults --reliability FOLDER` tries more cases (ten times the flipped bits),
and also writes the numbers to FOLDER/reliability.json:

    {"gates": [{"gate": "G6", "what": "rejected within ...", "test": "tests/faults/...", "cases": 7, ...}, ...]}

A test that breaks before its end leaves no record, but fails the run.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Gate = Callable[..., None]
_GATE = "gate"  # name of the property of a test's report that carries a record, also between processes
_records: list[dict[str, Any]] = []  # of the process that reports


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", metavar="FOLDER", help="write the gates' numbers to FOLDER/reliability.json")


@pytest.fixture
def gate(request: pytest.FixtureRequest) -> Gate:
    """Called as gate("G1", "what was shown", cases=..., failures=..., other numbers); failures > 0 fail the test."""

    def record(name: str, what: str, *, cases: int, failures: int, **numbers: Any) -> None:
        entry = {"gate": name, "what": what, "test": request.node.nodeid, "cases": cases, "failures": failures}
        request.node.user_properties.append((_GATE, json.dumps(entry | numbers, default=str)))
        assert cases > 0, f"{name}: {what}: nothing was tried"
        assert failures == 0, f"{name}: {what}: {failures} of {cases} failed"

    return record


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        _records.extend(json.loads(value) for name, value in report.user_properties if name == _GATE)


def _in_order() -> list[dict[str, Any]]:
    """By number of the gate: G2 before G11."""
    return sorted(_records, key=lambda one: (int(one["gate"][1:]), one["what"], one["test"]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    records = _in_order()
    if records:
        terminalreporter.section("gates")
    for one in records:
        numbers = ", ".join(f"{name} {one[name]}" for name in one if name not in ("gate", "what", "test"))
        terminalreporter.line(f"{one['gate']:<4}{one['what']}: {numbers}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    folder = session.config.getoption("--reliability")
    if folder is not None and not hasattr(session.config, "workerinput"):  # a worker's tests report to its parent
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "reliability.json").write_text(json.dumps({"gates": _in_order()}, indent=1) + "\n")
