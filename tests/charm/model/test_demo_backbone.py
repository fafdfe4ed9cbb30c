"""charm_demo: a closed form, no random numbers in what makes it see, and an ordinary timm model otherwise."""

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from charm.model.demo_backbone import EMBED_DIM, GRID, PATCH_SIZE, charm_demo, cosine_projection


def test_is_registered_with_timm() -> None:
    vit = timm.create_model("charm_demo", pretrained=True, num_classes=0)
    assert isinstance(vit, VisionTransformer)
    assert vit.pos_embed.shape == (1, 1 + GRID**2, EMBED_DIM)
    assert vit(torch.zeros(1, 3, PATCH_SIZE * GRID, PATCH_SIZE * GRID)).shape == (1, EMBED_DIM)


def test_settings_reach_timm() -> None:
    assert len(timm.create_model("charm_demo", depth=1).blocks) == 1


@pytest.mark.parametrize(("patch_size", "num_filters"), [(14, 64), (14, 195), (8, 40)])
def test_filters_are_different_cosines_of_the_luminance(patch_size: int, num_filters: int) -> None:
    filters = cosine_projection(patch_size, num_filters)
    assert filters.shape == (num_filters, 3, patch_size, patch_size)
    assert filters.dtype == np.float32
    luminance = filters.sum(axis=1)
    np.testing.assert_allclose(filters, luminance[:, None] * np.reshape([0.299, 0.587, 0.114], (3, 1, 1)), atol=1e-5)
    flat = luminance.reshape(num_filters, -1)
    gains = np.linalg.norm(flat, axis=1)
    directions = flat / gains[:, None]
    np.testing.assert_allclose(directions @ directions.T, np.eye(num_filters), atol=1e-5)
    np.testing.assert_allclose(flat.sum(axis=1) / gains, 0, atol=1e-5)  # brightness alone is not seen
    assert (np.diff(gains) > -1e-4).all()


def test_gain_is_the_frequency_to_the_power_of_one_and_a_half() -> None:
    gains = np.linalg.norm(cosine_projection(14, 64).sum(axis=1).reshape(64, -1), axis=1)
    assert gains[0] == pytest.approx(1)  # half a wave along one side
    assert gains[-1] == pytest.approx((13**2 + 13**2) ** 0.75, rel=1e-5)  # the highest of both


def test_what_makes_it_see_is_not_random() -> None:
    torch.manual_seed(1)
    one = charm_demo()
    torch.manual_seed(2)
    other = charm_demo()
    assert torch.equal(one.patch_embed.proj.weight, torch.from_numpy(cosine_projection(PATCH_SIZE, EMBED_DIM)))
    assert one.patch_embed.proj.bias is not None
    assert one.patch_embed.proj.bias.abs().max() == 0
    assert not one.patch_embed.proj.weight.requires_grad
    assert one.pos_embed is not None
    assert other.pos_embed is not None
    assert torch.equal(one.pos_embed, other.pos_embed)
    assert not torch.equal(one.blocks[0].attn.qkv.weight, other.blocks[0].attn.qkv.weight)


def test_every_place_has_its_own_position() -> None:
    positions = charm_demo().pos_embed
    assert positions is not None
    assert positions[0, 0].abs().max() == 0
    assert positions.abs().max() <= 0.1
    gaps = torch.cdist(positions[0, 1:], positions[0, 1:]) + torch.eye(GRID**2)
    assert gaps.min() > 0.02
