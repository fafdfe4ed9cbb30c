"""Tests of the fault suite leave the process as they found it. tests/gates.py keeps their numbers."""

import signal
from collections.abc import Iterator

import pytest

from tests.gates import Gate as Gate


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """A stage that is run in this process leaves its own handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
