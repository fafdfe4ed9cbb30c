"""A step is the same however its batch is cut, and what is not finite changes nothing."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from charm.runtime.errors import UserError
from pipeline.training.sampler import EpochSampler
from pipeline.training.state import TrainState
from pipeline.training.steps import (
    Pace,
    accumulate_gradients,
    clip_gradients,
    explaining_memory,
    is_finite_step,
    optimizer_step,
)

INPUTS = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))


def build(scaled: bool = False) -> TrainState:
    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.GELU(), torch.nn.Linear(4, 1))
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
    return TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.1), scaler)


def accumulate(progress: TrainState, *sizes: int) -> float:
    """Micro-batches of these sizes; a batch is its inputs here."""

    def mean(batch: Any) -> Tensor:
        return progress.model(batch).abs().sum() / len(INPUTS)

    batches: Iterator[Any] = iter(INPUTS.split(list(sizes)))
    return accumulate_gradients(progress, progress.model, batches, len(sizes), mean)


def gradients(progress: TrainState) -> list[Tensor]:
    return [parameter.grad for parameter in progress.model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("sizes", [(1,) * 7, (3, 3, 1), (4, 3)], ids=str)
def test_micro_batches_add_up_to_the_whole_batch(sizes: tuple[int, ...]) -> None:
    whole, cut = build(), build()
    assert accumulate(cut, *sizes) == pytest.approx(accumulate(whole, 7), rel=1e-6)
    torch.testing.assert_close(gradients(cut), gradients(whole))
    for progress in (whole, cut):
        optimizer_step(progress, 0.5)
    torch.testing.assert_close(cut.model.state_dict(), whole.model.state_dict())
    assert (cut.step, cut.losses, gradients(cut)) == (1, [0.5], [])


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_the_whole_gradient_is_clipped(scaled: bool) -> None:
    progress, free = build(scaled), build()
    norm = accumulate(free, 7) and clip_gradients(free, 0)
    expected = torch.cat([gradient.flatten() for gradient in gradients(free)])
    assert norm == pytest.approx(float(expected.norm()))
    accumulate(progress, 7)
    assert clip_gradients(progress, norm / 4) == pytest.approx(norm)
    found = torch.cat([gradient.flatten() for gradient in gradients(progress)])
    torch.testing.assert_close(found, expected / 4, rtol=1e-4, atol=1e-6)


def test_what_is_not_finite_is_no_step() -> None:
    progress = build()
    assert is_finite_step(progress, 0.5, 2.0)
    for loss, norm in ((math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)):
        assert not is_finite_step(progress, loss, norm)


def test_an_overflow_of_float16_is_left_out_until_there_is_nothing_left_to_scale() -> None:
    progress = build(scaled=True)
    before = [tensor.clone() for tensor in progress.model.parameters()]
    for scale in (512.0, 256.0):
        accumulate(progress, 7)
        gradients(progress)[0][0] = math.inf
        norm = clip_gradients(progress, 1.0)
        assert is_finite_step(progress, 1.0, norm)
        assert not is_finite_step(progress, math.nan, norm)
        optimizer_step(progress, 1.0)
        assert progress.scaler.get_scale() == scale
    assert all(torch.equal(now, then) for now, then in zip(progress.model.parameters(), before, strict=True))
    progress.scaler.update(1.0)
    assert not is_finite_step(progress, 1.0, math.inf)


def test_the_pace_of_steps_is_measured_from_the_second_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    def read() -> Iterator[Any]:
        nonlocal now
        for images in (4, 4, 2):
            now += 0.5
            yield SimpleNamespace(keys=["a"] * images)

    pace = Pace(read())
    assert (pace.step_seconds, pace.describe()) == (0.0, "data 0 %, model 100 %")
    for seconds in (7.0, 1.5, 2.5):
        next(pace)
        now += seconds
        pace.end_step()
    assert pace.step_seconds == 2.5  # (0.5 + 1.5 + 0.5 + 2.5) / 2
    assert pace.describe() == "1.2 images/s, data 12 %, model 88 %"  # 6 images in 5 s; 1.5 of 12.5 s


@pytest.mark.parametrize(("images", "remedy"), [(16, "hardware.micro_batch: 8"), (1, "a smaller max_seq_len")])
def test_a_gpu_without_memory_left_is_told_with_the_remedy(images: int, remedy: str) -> None:
    said = rf"no memory left at {images} images at a time: try {remedy}, "
    with pytest.raises(UserError, match=said), explaining_memory(EpochSampler(40, images, 0, False)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
