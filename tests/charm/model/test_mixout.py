"""Mixout: its expectation, its gradient, and that nothing else of a layer changes."""

import pytest
import torch
from torch import nn

from charm.model.mixout import mix_out


def layer(share: float = 0.7) -> nn.Linear:
    """Double precision, moved away from where it started."""
    torch.manual_seed(0)
    made = nn.Linear(5, 3).double()
    mix_out(made, share)
    with torch.no_grad():
        made.weight += torch.randn_like(made.weight)
    return made


def test_the_mean_of_many_draws_is_the_weight() -> None:
    made, unit = layer(), torch.eye(5).double()
    with torch.no_grad():
        draws = torch.stack([made(unit).T - made.bias[:, None] for _ in range(20_000)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - made.weight).abs() < 5 * error + 1e-12).all()
    # An input is mixed as a whole: a column is that of the start in every row, or in none.
    is_start = torch.isclose(draws, made.start.expand_as(draws))  # type: ignore[operator]
    assert torch.equal(is_start.any(1), is_start.all(1))
    assert 0.65 < is_start.all(1).double().mean() < 0.75


def test_the_gradient_is_that_of_finite_differences() -> None:
    """The published code gives 0.3 of it at p = 0.7."""
    made, x = layer(), torch.randn(4, 5).double()

    def loss() -> torch.Tensor:
        torch.manual_seed(7)
        return made(x).square().sum()

    loss().backward()  # type: ignore[no-untyped-call]
    found = made.weight.grad
    assert found is not None
    with torch.no_grad():
        for row, column in ((0, 0), (1, 3), (2, 4)):
            ends = []
            for step in (1e-6, -1e-6):
                made.weight[row, column] += step
                ends.append(loss())
                made.weight[row, column] -= step
            assert float(found[row, column]) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-6)


def test_evaluation_and_state_know_nothing_of_it() -> None:
    plain, made = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3)), nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3))
    made.load_state_dict(plain.state_dict())
    mix_out(made, 0.7)
    assert made.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 5)
    assert torch.equal(made.eval()(x), plain.eval()(x))


def test_at_the_start_the_mixed_weight_is_the_weight() -> None:
    """Whatever is drawn: both are the same there."""
    plain = nn.Linear(5, 3)
    x = torch.randn(2, 5)
    expected = plain(x)
    mix_out(plain, 0.7)
    torch.testing.assert_close(plain(x), expected)
