"""Losses: literal values, and a gradient that is finite even where the prediction is perfect."""

import math

import pytest
import torch

from charm.model.losses import LOSSES, emd_loss, l1_loss, mse_loss

PREDICTION = torch.tensor([[1.0], [2.0], [5.0]])
TARGET = torch.tensor([[1.5], [2.0], [3.0]])


def logits(*probabilities: float) -> torch.Tensor:
    """Softmax of these is the probabilities."""
    return torch.tensor([probabilities]).log()


def test_l1_by_hand() -> None:
    assert l1_loss(PREDICTION, TARGET).tolist() == [0.5, 0, 2]


def test_mse_by_hand() -> None:
    assert mse_loss(PREDICTION, TARGET).tolist() == [0.25, 0, 4]


@pytest.mark.parametrize(
    ("predicted", "target", "distance"),
    [
        # cumulative (.5 .75 1) and (.25 .5 1): gaps .25 .25 0
        pytest.param((0.5, 0.25, 0.25), (0.25, 0.25, 0.5), math.sqrt((0.0625 + 0.0625) / 3), id="shifted"),
        # gaps (1/3, -1/3, 0)
        pytest.param((1 / 3, 1 / 3, 1 / 3), (0.0, 1.0, 0.0), math.sqrt(2 / 27), id="flat and certain"),
        pytest.param((0.2, 0.3, 0.5), (0.2, 0.3, 0.5), 0.0, id="the same"),
        pytest.param((0.7, 0.2, 0.1), (1.0, 0.0, 0.0), math.sqrt((0.09 + 0.01) / 3), id="not the other way round"),
    ],
)
def test_emd_of_three_bins_by_hand(predicted: tuple[float, ...], target: tuple[float, ...], distance: float) -> None:
    assert emd_loss(logits(*predicted), torch.tensor([target])).item() == pytest.approx(distance, abs=2e-6)


def test_emd_grows_with_the_distance_between_bins() -> None:
    near_and_far = [emd_loss(logits(0.98, 0.01, 0.01), torch.tensor([target])) for target in ([0, 1, 0], [0, 0, 1])]
    assert near_and_far[0] < near_and_far[1]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_each_sample_has_its_own(name: str) -> None:
    prediction, target = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    together = LOSSES[name](prediction, target)
    assert together.shape == (5,)
    alone = [LOSSES[name](prediction[i : i + 1], target[i : i + 1]).item() for i in range(5)]
    assert together.tolist() == pytest.approx(alone)


def test_emd_ignores_what_is_added_to_all_logits() -> None:
    target = torch.tensor([[0.25, 0.25, 0.5]])
    torch.testing.assert_close(emd_loss(logits(0.5, 0.3, 0.2) + 7, target), emd_loss(logits(0.5, 0.3, 0.2), target))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradient_is_finite_at_a_perfect_match(name: str) -> None:
    prediction = torch.zeros(4, 8, requires_grad=True)  # eight equal logits: exactly 1 / 8 each
    target = torch.full((4, 8), 1 / 8) if name == "emd" else torch.zeros(4, 8)
    loss = LOSSES[name](prediction, target).mean()
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_descent_leads_to_the_target(name: str) -> None:
    target = torch.tensor([[0.1, 0.2, 0.7]])
    prediction = torch.zeros(1, 3, requires_grad=True)
    start = LOSSES[name](prediction, target).item()
    optimizer = torch.optim.Adam([prediction], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = LOSSES[name](prediction, target)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * start


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_would_be_broadcast_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"prediction is \(3, 1\), target \(3,\): expected the same shape"):
        LOSSES[name](PREDICTION, TARGET[:, 0])
