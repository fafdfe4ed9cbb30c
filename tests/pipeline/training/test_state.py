"""What training keeps of itself: all of it comes back, and the best epoch is the best."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.training.state import TrainState, average_model
from pipeline.training.steps import clip_gradients, optimizer_step


def build(ema: float = 0.0, scaled: bool = False) -> TrainState:
    torch.manual_seed(3)
    model: Any = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, growth_interval=2)
    return TrainState(model, optimizer, scaler, average_model(model, ema))


def train(progress: TrainState, steps: int) -> None:
    """Each step's input is a function of the step."""
    for step in range(progress.step, steps):
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        loss = (progress.model(inputs) - inputs.sum(1, keepdim=True)).square().mean()  # type: ignore[call-arg]
        progress.scaler.scale(loss).backward()
        clip_gradients(progress, 1.0)
        optimizer_step(progress, loss.item())


def record(value: float, mae: float = 0.1) -> dict[str, float]:
    return {"val_srcc": value, "val_plcc": 0.5, "val_mae": mae}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"ema": 0.5}, id="averaged"),
        pytest.param({"scaled": True}, id="scaled"),
    ],
)
def test_training_that_is_stopped_after_any_two_steps_is_bit_equal(settings: dict[str, Any], tmp_path: Path) -> None:
    uninterrupted = build(**settings)
    train(uninterrupted, 4)
    for first in range(4):
        for second in range(first, 4):
            folder = tmp_path / f"{first}-{second}"
            for stop in (first, second, 4):
                progress = build(**settings)
                assert progress.load(folder) == (stop != first or (first == second and folder.exists()))
                train(progress, stop)
                progress.save(folder)
            assert progress.losses == uninterrupted.losses
            for found, expected in ((progress.model, uninterrupted.model), (progress.averaged, uninterrupted.averaged)):
                for name, value in (expected.state_dict() if expected else {}).items():
                    assert found is not None
                    assert torch.equal(found.state_dict()[name], value), name
            assert progress.scaler.state_dict() == uninterrupted.scaler.state_dict()


def test_history_and_best_model_come_back(tmp_path: Path) -> None:
    progress = build()
    train(progress, 1)
    progress.add_epoch(record(0.3))
    train(progress, 2)
    progress.add_epoch(record(0.1))
    progress.save(tmp_path)
    other = build()
    assert other.load(tmp_path)
    assert (other.history, other.best_epoch, other.step) == ([record(0.3), record(0.1)], 1, 2)
    assert progress.best.keys() == other.best.keys() == progress.model.state_dict().keys()
    assert all(torch.equal(other.best[name], progress.best[name]) for name in other.best)
    assert not torch.equal(other.best["0.weight"], other.model.state_dict()["0.weight"])


@pytest.mark.parametrize(
    ("values", "best"),
    [
        pytest.param([0.1, 0.3, 0.2], 2, id="highest"),
        pytest.param([0.1, 0.3, 0.3], 3, id="latest of equals"),
        pytest.param([math.nan, -0.9, math.nan], 2, id="undefined is lowest"),
        pytest.param([math.nan, math.nan], 2, id="all undefined"),
    ],
)
def test_best_epoch(values: list[float], best: int) -> None:
    progress = build()
    for epoch, value in enumerate(values, start=1):
        with torch.no_grad():
            next(iter(progress.model.parameters())).fill_(epoch)
        progress.add_epoch(record(value))
    assert progress.best_epoch == best
    assert (progress.best["0.weight"] == best).all()


@pytest.mark.parametrize(
    ("records", "best", "stale"),
    [
        pytest.param([], None, 0, id="none"),
        pytest.param([record(0.1), record(0.3), record(0.2)], 2, 1, id="one after the best"),
        pytest.param([record(0.1), record(0.3), record(0.3)], 3, 1, id="a second of equals is no better"),
        pytest.param([record(0.3, 0.2), record(0.3, 0.1), record(0.3, 0.4)], 2, 1, id="of equals the lower MAE"),
        pytest.param([record(math.nan, 0.3), record(math.nan, 0.1), record(math.nan, 0.2)], 2, 1, id="undefined: MAE"),
        pytest.param([record(math.nan, 0.1), record(-0.9, 0.5)], 2, 0, id="whatever is defined is better"),
        pytest.param([record(math.nan)] * 4, 4, 3, id="undefined, and nothing moves"),
    ],
)
def test_patience_counts_from_the_first_of_equals(
    records: list[dict[str, float]], best: int | None, stale: int
) -> None:
    progress = build()
    progress.history = records
    assert progress.stale_epochs == stale
    assert best is None or progress.best_epoch == best


def test_the_average_is_scored_and_kept() -> None:
    progress = build(ema=0.75)
    weight = next(iter(progress.model.parameters()))
    for value in (1.0, 5.0, 9.0):  # the first is taken over, then a quarter of each
        with torch.no_grad():
            weight.fill_(value)
        assert progress.averaged is not None
        progress.averaged.update_parameters(progress.model)
    progress.add_epoch(record(0.1))
    assert progress.scored_model.state_dict()["0.weight"].unique().tolist() == [(1 * 0.75 + 5 * 0.25) * 0.75 + 9 * 0.25]
    assert (progress.best["0.weight"] == 3.75).all()
    assert build().scored_model is not None
    assert average_model(progress.model, 0.0) is None


def test_precision_may_change_on_the_way(tmp_path: Path) -> None:
    for number, (before, after) in enumerate(((False, True), (True, False))):
        folder = tmp_path / str(number)
        build(scaled=before).save(folder)
        assert build(scaled=after).load(folder)
