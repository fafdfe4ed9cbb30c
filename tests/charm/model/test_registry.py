"""Models of given weights: built without drawing any, and then as any other."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from charm.model.config import ViTShape
from charm.model.registry import build_model, restore_model
from tests.untrained import describe

BUILDS: dict[str, dict[str, Any]] = {
    "charm_demo": {},
    "vit_small_patch14_reg4_dinov2": {"shape": ViTShape(48, 1, 3, 56)},
    "vit_small_patch16_dinov3": {"shape": ViTShape(48, 1, 3, 64)},
    "naflexvit_base_patch16_gap": {"head": "mean"},
    "swin_tiny_patch4_window7_224": {"head": "mean", "num_scales": 1, "image_edge": 224},
}


@pytest.mark.parametrize("backbone", BUILDS)
def test_a_restored_model_is_the_one_that_was_saved(backbone: str) -> None:
    config = replace(describe().model, backbone=backbone, **BUILDS[backbone])
    model = build_model(config)
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    restored = restore_model(config, tensors)
    model.load_state_dict(tensors)
    for kind in (nn.Module.named_parameters, nn.Module.named_buffers):
        found, expected = dict(kind(restored)), dict(kind(model))
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert (tensor.dtype, tensor.device) == (expected[name].dtype, expected[name].device), name
            assert tensor.requires_grad == expected[name].requires_grad, name
            assert torch.equal(tensor, expected[name]), name
    assert nn.Linear(2, 2).weight.device.type == "cpu"  # what is built afterwards is drawn again


def test_nothing_is_drawn_or_copied_for_weights_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(describe().model, backbone="vit_small_patch14_dinov2")
    tensors, drawn = build_model(config).state_dict(), []

    def draw(tensor: Tensor, *_: float, **__: float) -> Tensor:
        drawn.append(tensor)
        return tensor

    for name in ("kaiming_uniform_", "uniform_", "normal_"):
        monkeypatch.setattr(nn.init, name, draw)
    restored = restore_model(config, tensors)
    assert len(drawn) > 12
    assert all(tensor.is_meta for tensor in drawn)
    assert {name: tensor.data_ptr() for name, tensor in restored.state_dict().items()} == {
        name: tensor.data_ptr() for name, tensor in tensors.items()
    }


def test_weights_of_another_model_are_refused() -> None:
    config = describe().model
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.weight"):
        restore_model(config, {})
    assert nn.Linear(2, 2).weight.device.type == "cpu"
