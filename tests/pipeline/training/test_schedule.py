"""The learning rate, by hand."""

from dataclasses import replace

import pytest

from pipeline.settings.params import Params
from pipeline.training.optimizers import scheduled_rate


@pytest.mark.parametrize(
    ("warmup_epochs", "step", "rate"),
    [
        pytest.param(2.0, 0, 0.1 / 21, id="first step of the warm-up"),
        pytest.param(2.0, 19, 0.1 * 20 / 21, id="last step of the warm-up"),
        pytest.param(2.0, 20, 0.1, id="full rate after it"),
        pytest.param(2.0, 99, 0.001, id="least rate at the end"),
        pytest.param(0.0, 0, 0.1, id="full rate at once without a warm-up"),
        pytest.param(0.0, 33, 0.001 + 0.099 * 0.75, id="three quarters of the way down after a third of the steps"),
    ],
)
def test_learning_rate(shipped_params: Params, warmup_epochs: float, step: int, rate: float) -> None:
    settings = replace(
        shipped_params.train,
        epochs=10,
        warmup_epochs=warmup_epochs,
        learning_rate=0.1,
        min_learning_rate=0.001,
    )
    assert scheduled_rate(settings, step, steps_per_epoch=10) == pytest.approx(rate)
