"""Scores from a model: each sample once, in evaluation mode, a distribution's mean."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from charm.model.pos_embed import resample_pos_embed
from charm.model.vit import CharmViT
from pipeline.pos_embeds.axes import PosEmbeds, write_axes
from pipeline.training.loader import Batch
from pipeline.training.predictions import forward_batch, predict

LEARNT = torch.randn(4, 4, 64, generator=torch.Generator().manual_seed(1))


def batch(first: int, count: int, bins: int = 1, length: int = 3) -> Batch:
    draws = torch.Generator().manual_seed(first)
    target = torch.arange(first, first + count).float()[:, None] / 10
    return Batch(
        patches=torch.randint(0, 256, (count, length, 14, 14, 3), dtype=torch.uint8, generator=draws),
        patch_coord=torch.zeros(count, length, 2, dtype=torch.int32),
        scale_id=torch.randint(0, 2, (count, length), dtype=torch.uint8, generator=draws),
        patch_valid=torch.ones(count, length, dtype=torch.bool),
        pos_row=torch.randint(0, 10, (count, length, 2), dtype=torch.int32, generator=draws),
        target=target if bins == 1 else torch.eye(bins)[torch.arange(first, first + count) % bins],
        weight=torch.full((count,), 1 / count),
        is_small=torch.zeros(count, dtype=torch.bool),
        keys=[f"{i:08d}" for i in range(first, first + count)],
    )


@pytest.fixture(scope="module")
def positions(tmp_path_factory: pytest.TempPathFactory) -> PosEmbeds:
    """Of one axis of ten tokens."""
    folder = tmp_path_factory.mktemp("pos_embeds")
    write_axes(folder, "charm_demo", LEARNT, [10], "bilinear", antialias=False)
    return PosEmbeds(folder, "charm_demo")


def loader(*batches: Batch) -> Any:
    return list(batches)


@pytest.fixture(scope="module")
def model() -> CharmViT:
    torch.manual_seed(0)
    return CharmViT("charm_demo", pretrained=False, num_scales=2, num_outputs=1)


def test_every_sample_once_in_order(model: CharmViT, positions: PosEmbeds) -> None:
    batches = [batch(0, 4), batch(4, 4), batch(8, 1)]
    found = predict(model, loader(*batches), positions, np.ones(1))
    assert found.keys == [f"{i:08d}" for i in range(9)]
    assert found.target == pytest.approx(np.arange(9) / 10)
    assert found.predicted.dtype == np.float64
    with torch.inference_mode():
        each = torch.cat([forward_batch(model, one, positions) for one in batches])
    assert np.array_equal(found.predicted, each[:, 0].double().numpy())


def test_each_token_is_given_the_row_that_it_names(model: CharmViT, positions: PosEmbeds) -> None:
    one = batch(0, 2)
    with torch.inference_mode():
        table = resample_pos_embed(LEARNT.reshape(1, 16, 64), (10, 10))
        gathered = table[one.pos_row[..., 0].long(), one.pos_row[..., 1].long()]
        expected = model(one.patches, one.patch_coord, one.scale_id, one.patch_valid, gathered)
        elsewhere = model(one.patches, one.patch_coord, one.scale_id, one.patch_valid, gathered.flip(1))
        torch.testing.assert_close(forward_batch(model, one, positions), expected, atol=1e-5, rtol=0)
        assert (elsewhere - expected).abs().max() > 1e-3


class Fixed(torch.nn.Module):
    """Stands in for a model: gives out what it was told to, and notes in which mode it was asked."""

    trained_grid = None

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output, self.modes = output, []

    def forward(self, patches: Tensor, *_: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        return self.output[: len(patches)]


def test_evaluation_mode_without_gradients(positions: PosEmbeds) -> None:
    model: Any = Fixed(torch.zeros(4, 1))
    model.train()
    predict(model, loader(batch(0, 4), batch(4, 2)), positions, np.ones(1))
    assert model.modes == [(False, True), (False, True)]


def test_a_sample_that_keeps_a_rank_in_step_is_not_scored(model: CharmViT, positions: PosEmbeds) -> None:
    filler = replace(batch(0, 1), weight=torch.zeros(1))
    found = predict(model, loader(batch(2, 2), filler), positions, np.ones(1))
    assert found.keys == ["00000002", "00000003"]
    assert len(found.predicted) == len(found.target) == 2
    assert predict(model, loader(filler), positions, np.ones(1)).keys == []


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_changes_little(model: CharmViT, positions: PosEmbeds, precision: str) -> None:
    exact = predict(model, loader(batch(0, 4)), positions, np.ones(1)).predicted
    rounded = predict(model, loader(batch(0, 4)), positions, np.ones(1), precision).predicted
    assert 0 < np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()


def test_it_can_be_stopped_between_batches(model: CharmViT, positions: PosEmbeds) -> None:
    calls = iter([None, KeyboardInterrupt])

    def between() -> None:
        if stop := next(calls):
            raise stop

    with pytest.raises(KeyboardInterrupt):
        predict(model, loader(batch(0, 1), batch(1, 1), batch(2, 1)), positions, np.ones(1), between=between)
    assert next(calls, "none left") == "none left"


def test_positions_that_were_trained_are_those_of_the_model(tmp_path: Path) -> None:
    """Not those on disk, which are where training started; they get a gradient."""
    torch.manual_seed(0)
    trained, frozen = (CharmViT("charm_demo", train_pos_embed=trainable) for trainable in (True, False))
    write_axes(tmp_path / "before", "charm_demo", trained.learnt_grid.detach(), [10], "bilinear", antialias=False)
    with torch.no_grad():
        trained.learnt_grid.normal_()
    frozen.load_state_dict(trained.state_dict())
    write_axes(tmp_path / "after", "charm_demo", trained.learnt_grid.detach(), [10], "bilinear", antialias=False)
    before, after = PosEmbeds(tmp_path / "before", "charm_demo"), PosEmbeds(tmp_path / "after", "charm_demo")
    found = forward_batch(trained, batch(0, 2), before)
    torch.testing.assert_close(found, forward_batch(frozen, batch(0, 2), after))
    assert (found - forward_batch(frozen, batch(0, 2), before)).abs().max() > 1e-3
    found.sum().backward()
    assert trained.pos_embed.grad is not None
    assert (trained.pos_embed.grad[0, 1:].abs().sum(dim=1) > 0).sum() >= 4


def test_a_distribution_is_its_mean(positions: PosEmbeds) -> None:
    bins = np.array([0.0, 0.5, 1.0])
    logits = torch.log(torch.tensor([[0.25, 0.5, 0.25], [0.7, 0.2, 0.1], [1e-9, 1e-9, 1.0]]))
    model: Any = Fixed(logits)
    found = predict(model, loader(batch(0, 3, bins=3)), positions, bins)
    assert found.predicted == pytest.approx([0.5, 0.2, 1.0], abs=1e-6)
    assert found.target == pytest.approx([0.0, 0.5, 1.0])
