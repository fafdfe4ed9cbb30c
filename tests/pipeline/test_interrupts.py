import os
import signal

import pytest

from pipeline.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_not_more(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        interrupts.check()
        for _ in range(2):
            os.kill(os.getpid(), number)
        assert interrupts.came
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert signal.getsignal(number) == before
