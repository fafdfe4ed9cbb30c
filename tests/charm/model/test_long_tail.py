"""ELTA's terms: known answers, and labels for which the published code fails."""

import math

import pytest
import torch

from charm.model.long_tail import Mixture, draw_pair, mix, similarity_loss


def test_similarity_of_orthonormal_features() -> None:
    """Labels 1, 2, 3: cosines are right for equal and for opposite labels; 4 of 9 pairs are off by a half."""
    features = torch.eye(3) * torch.tensor([[1.0], [2.0], [5.0]])
    assert float(similarity_loss(features, torch.tensor([0.0, 0.5, 1.0]))) == pytest.approx(1 / 9)


def test_equal_labels_give_a_finite_loss_and_gradient() -> None:
    features = torch.randn(4, 3, requires_grad=True)
    loss = similarity_loss(features, torch.full((4,), 0.3))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert features.grad is not None
    assert not features.grad.any()
    assert draw_pair(torch.full((4,), 0.3), (0.1, 0.2), 0.2, 4.0) is None
    assert draw_pair(torch.tensor([0.3]), (0.1, 0.2), 0.2, 4.0) is None


def test_pairs_are_drawn_with_the_probabilities_of_the_definition() -> None:
    """By hand for three labels, 1, 4 and 10 on the scale of 1..10, and tau_1 = 3."""
    labels, mean = [1.0, 4.0, 10.0], 5.0
    scores = (torch.tensor(labels) - 1) / 9
    weights = [math.exp(abs(label - mean) / 3) for label in labels]
    rare = [weight / sum(weights) for weight in weights]
    count = 1000
    grid = [(i + 0.5) / count for i in range(count)]
    drawn = [draw_pair(scores, (u, 0.5), 3.0, 1.0) for u in grid]
    for place in range(3):
        share = sum(pair is not None and pair.first == place for pair in drawn) / count
        assert share == pytest.approx(rare[place], abs=0.002)
    # Of the first, label 1: the others are 3 and 9 away.
    near = [math.exp(1 / 3.01), math.exp(1 / 9.01)]
    pairs = [draw_pair(scores, (1e-9, u), 3.0, 1.0) for u in grid]
    assert all(pair is not None and pair.first == 0 for pair in pairs)
    share = sum(pair is not None and pair.second == 1 for pair in pairs) / count
    assert share == pytest.approx(near[0] / sum(near), abs=0.002)
    pair = draw_pair(scores, (1e-9, 1e-9), 3.0, 1.0)
    assert pair is not None
    assert pair.share == pytest.approx(rare[0] / (rare[0] + rare[1]))


def test_labels_far_apart_overflow_nothing() -> None:
    """The published code takes exp of 4 / 0.01, and NaN from there."""
    pair = draw_pair(torch.tensor([0.5, 0.5, 0.0, 1.0]), (0.0, 0.5), 0.001, 100.0)
    assert pair is not None
    assert math.isfinite(pair.share)
    assert pair.first != pair.second


def test_a_mixture_is_appended() -> None:
    mixed = mix(torch.tensor([[0.0, 2.0], [4.0, 6.0]]), Mixture(0, 1, 0.25))
    assert mixed.tolist() == [[0.0, 2.0], [4.0, 6.0], [3.0, 5.0]]
