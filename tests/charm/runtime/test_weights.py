"""Weights from a file: timm's names, strictly; nothing in it is executed."""

import hashlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from charm.model.backbones import create_backbone
from charm.model.image import ImageModel
from charm.model.vit import CharmViT
from charm.runtime.errors import UserError
from charm.runtime.weights import load_backbone


def build(**settings: Any) -> nn.Module:
    return create_backbone(
        "vit_tiny_patch16_224", False, **{"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 3, **settings}
    )


@pytest.fixture
def weights() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {name: torch.rand_like(tensor) for name, tensor in build().state_dict().items()}


def write(weights: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        with path.open("wb") as file:
            torch.save(weights, file)
    return path


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w}, lambda w: {"state_dict": w, "epoch": 3}])
def test_pytorch_file(wrap: Callable[[Any], Any], weights: dict[str, Tensor], tmp_path: Path) -> None:
    model = build()
    load_backbone(model, write(wrap(weights), tmp_path / "w.pth"), None)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def test_safetensors_with_what_charm_goes_without(weights: dict[str, Tensor], tmp_path: Path) -> None:
    extra = {"head.weight": torch.ones(3, 24), "head.bias": torch.ones(3), "mask_token": torch.ones(1, 24)}
    path = write(weights | extra, tmp_path / "w.safetensors")
    model = build()
    load_backbone(model, path, hashlib.sha256(path.read_bytes()).hexdigest().upper())
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def test_a_naflex_vits_own_file(tmp_path: Path) -> None:
    """Under timm's names of it, with the attention pooling or without."""
    small = {"depth": 1, "embed_dim": 24, "num_heads": 3}
    original = timm.create_model("naflexvit_base_patch16_siglip", num_classes=0, **small)
    path = write(original.state_dict(), tmp_path / "w.safetensors")
    for head in ("mean", "map"):
        model = CharmViT("naflexvit_base_patch16_siglip", False, num_scales=1, head=head, **small)
        load_backbone(model.vit, path, None)
        kernel = original.embeds.proj.weight.reshape(24, 16, 16, 3).permute(0, 3, 1, 2)
        assert torch.equal(model.vit.patch_embed.proj.weight, kernel)
        assert torch.equal(model.pos_embed.flatten(), original.embeds.pos_embed.flatten())
        assert torch.equal(model.vit.blocks[0].mlp.fc1.weight, original.blocks[0].mlp.fc1.weight)
    assert torch.equal(model.vit.attn_pool.latent, original.attn_pool.latent)


def test_an_image_models_file_with_its_classifier(tmp_path: Path) -> None:
    original = timm.create_model("test_resnet")
    model = ImageModel("test_resnet", 64, False)
    load_backbone(model.backbone, write(original.state_dict(), tmp_path / "w.safetensors"), None)
    assert torch.equal(model.backbone.conv1[0].weight, original.conv1[0].weight)  # type: ignore[index, union-attr]


def changed(weights: dict[str, Tensor]) -> list[Any]:
    renamed = {name.replace("blocks.0.mlp", "blocks.0.ffn"): tensor for name, tensor in weights.items()}
    return [renamed, {**weights, "pos_embed": torch.zeros(1, 10, 24)}, {**weights, "fc_norm.bias": torch.zeros(24)}]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        pytest.param(
            0,
            "4 missing (blocks.0.mlp.fc1.bias, blocks.0.mlp.fc1.weight, blocks.0.mlp.fc2.bias, ...); "
            "4 unexpected (blocks.0.ffn.fc1.bias, ",
            id="other names",
        ),
        pytest.param(1, "1 of another shape (pos_embed is 1x10x24 and not 1x5x24)", id="another image size"),
        pytest.param(2, "1 unexpected (fc_norm.bias)", id="another pooling"),
    ],
)
def test_another_backbone_is_refused(which: int, message: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = write(changed(weights)[which], tmp_path / "w.safetensors")
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_backbone(model, path, None)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("w.pth", None, "No such file", id="missing"),
        pytest.param("w.pth", b"", "does not hold weights alone", id="empty"),
        pytest.param("w.safetensors", b"\x10\0\0\0\0\0\0\0{", "does not hold weights alone", id="cut"),
        pytest.param("w.pth", pickle.dumps({"head": Bomb()}), "does not hold weights alone", id="something to execute"),
    ],
)
def test_no_weights(
    name: str, content: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(UserError, match=f"checkpoint: {name}.* {message}"):
        load_backbone(build(), Path(name), None)
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(1)], torch.ones(1)], ids=["no tensor", "list", "tensor"])
def test_other_things_in_a_pytorch_file(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected names and tensors"):
        load_backbone(build(), write(content, tmp_path / "w.pth"), None)


def test_another_file_than_the_checksum_says(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = write(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"has the sha256 .*, and not checkpoint_sha256: abc"):
        load_backbone(build(), path, "abc")
    with pytest.raises(UserError, match="No such file"):
        load_backbone(build(), tmp_path / "nowhere.pth", "abc")
