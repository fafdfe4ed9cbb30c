"""What is decayed, how fast each layer learns, and the optimizer's state as tensors."""

from dataclasses import replace

import pytest
import torch

from charm.model.vit import CharmViT
from pipeline.settings.params import Params, TrainParams
from pipeline.training.optimizers import build_optimizer, optimizer_tensors, restore_optimizer, set_rate


@pytest.fixture
def settings(shipped_params: Params) -> TrainParams:
    return replace(shipped_params.train, weight_decay=0.25, layer_decay=0.5)


def names_by(model: CharmViT, optimizer: torch.optim.Optimizer, key: str) -> dict[float, set[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group[key], set()).update(names[parameter] for parameter in group["params"])
    return found


def build() -> CharmViT:
    return CharmViT("vit_tiny_patch16_224", False, img_size=32, depth=2, embed_dim=24, num_heads=3, reg_tokens=1)


def test_the_weights_of_linear_layers_alone_are_decayed(settings: TrainParams) -> None:
    model = build()
    found = names_by(model, build_optimizer(model, settings), "weight_decay")
    linear = {
        f"vit.blocks.{i}.{part}.weight" for i in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert found[0.25] == linear | {"vit.patch_embed.proj.weight", "head.weight"}
    assert {"scale_embed", "mask_token", "vit.cls_token", "vit.reg_token", "vit.norm.weight", "head.bias"} <= found[0.0]
    assert found[0.0] | found[0.25] == {name for name, _ in model.named_parameters()} - {"vit.pos_embed"}


def test_layers_before_the_last_learn_more_slowly(settings: TrainParams) -> None:
    model = build()
    optimizer = build_optimizer(model, settings)
    set_rate(optimizer, 0.8)
    rates = names_by(model, optimizer, "lr")
    assert sorted(rates) == [0.1, 0.2, 0.4, 0.8]
    assert "vit.cls_token" in rates[0.1]
    assert "vit.blocks.0.mlp.fc1.bias" in rates[0.2]
    assert {"head.weight", "scale_embed", "vit.norm.bias"} <= rates[0.8]


def test_one_rate_for_all_without_layer_decay(settings: TrainParams) -> None:
    model = build()
    optimizer = build_optimizer(model, replace(settings, layer_decay=1.0))
    set_rate(optimizer, 0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]


def test_state_round_trip(settings: TrainParams) -> None:
    model = build()
    optimizer = build_optimizer(model, settings)
    model.head.weight.sum().backward()
    optimizer.step()
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    assert {name.split(".")[1] for name in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    other = build_optimizer(model, settings)
    restore_optimizer(other, tensors)
    assert {name: tensor.tolist() for name, tensor in optimizer_tensors(other).items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
