"""The learnt resizer within a model: where it starts, its gradient, and that training moves it at its own rate."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from charm.attribution import attribute_tokens
from charm.inputs.anyres import AnyResInput
from charm.inputs.muller import MullerInput
from charm.inputs.settings import MullerSettings
from charm.model.resizer import Resizer
from charm.model.vit import CharmViT
from charm.tokenization.tokens import RESIDUAL_UNIT, stack_tokens
from pipeline.settings.models import start_model
from pipeline.settings.params import Params
from pipeline.training.optimizers import build_optimizer


def test_at_the_start_nothing_is_added_and_the_gradient_is_no_dead_point() -> None:
    pixels, planes = torch.rand(2, 3, 4, 4, 3), torch.randint(-9000, 9000, (2, 3, 4, 4, 6), dtype=torch.int16)
    made = Resizer(2)
    found = made(pixels, planes)
    assert torch.equal(found, pixels)
    found[..., 0].sum().backward()
    expected = [float(planes[..., 3 * layer].double().sum()) * RESIDUAL_UNIT for layer in range(2)]
    assert made.scale.grad is not None
    np.testing.assert_allclose(made.scale.grad, expected, rtol=1e-4)


def test_it_is_the_formula() -> None:
    pixels, planes = torch.rand(5, 3), torch.randint(-32767, 32767, (5, 6), dtype=torch.int16)
    made = Resizer(2)
    with torch.no_grad():
        made.scale.copy_(torch.tensor([1.892, -11.295]))
        made.bias.copy_(torch.tensor([-0.014, 0.003]))
        found = made(pixels, planes).numpy()
    r = planes.numpy().astype(float) / 32767
    expected = pixels.numpy() + np.tanh(1.892 * r[:, :3] - 0.014) + np.tanh(-11.295 * r[:, 3:] + 0.003)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture
def params(shipped_params: Params) -> Params:
    return replace(shipped_params, tokenizer="muller", max_seq_len=None)


@pytest.mark.parametrize(("start", "scale"), [("identity", [0.0, 0.0]), ("published", [1.892, -11.295])])
def test_a_run_starts_it_as_it_says_and_trains_it_at_its_own_rate(
    start: str, scale: list[float], params: Params
) -> None:
    inputs = replace(params.inputs, muller=replace(params.inputs.muller, start=start))  # type: ignore[type-var]
    model = start_model(replace(params, inputs=inputs), 1)
    assert model.resizer is not None
    np.testing.assert_allclose(model.resizer.scale.detach(), scale, rtol=1e-6)
    groups = build_optimizer(model, params.train).param_groups
    (own,) = (group for group in groups if any(one is model.resizer.scale for one in group["params"]))
    assert (own["share"], own["weight_decay"], len(own["params"])) == (100.0, 0.0, 2)


def test_contributions_of_pixels_and_planes_sum_to_the_difference() -> None:
    torch.manual_seed(0)
    model = CharmViT("charm_demo", num_scales=1, num_residuals=2).eval()
    with torch.no_grad():
        assert model.resizer is not None
        model.resizer.scale.copy_(torch.tensor([1.9, -5.0]))
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    tokens = MullerInput(14, MullerSettings(56))(image)
    found = attribute_tokens(model, tokens, model.pos_embed_tables(tokens.grids), steps=32)
    assert found.is_complete
    assert abs(found.score - found.baseline_score) > 1e-3


def test_images_without_their_residuals_are_refused() -> None:
    """A batch that dropped them would be scored as another image."""
    model = CharmViT("charm_demo", num_scales=1, num_residuals=2).eval()
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    tokens = MullerInput(14, MullerSettings(56))(image)
    with pytest.raises(ValueError, match="holds none of pos_grids, carried_coord, residuals"):
        stack_tokens([tokens])
    with pytest.raises(ValueError, match="holds none of pos_grids, carried_coord, residuals"):
        stack_tokens([AnyResInput()(image)])
    with pytest.raises(ValueError, match=r"this model mixes Tokens[.]residuals with the pixels"):
        model(stack_tokens([replace(tokens, residuals=None)]))
