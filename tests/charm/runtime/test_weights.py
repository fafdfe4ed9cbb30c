"""Weights from a file: timm's names, strictly; nothing in it is executed."""

import hashlib
import io
import json
import pickle
import re
import warnings
from argparse import Namespace
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
from charm.runtime.weights import load_backbone, read_tensors


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
        pytest.param(1, "1 of another shape (pos_embed is [1, 10, 24] and not [1, 5, 24])", id="another image size"),
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


def saved(content: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def save_program() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)), buffer)
    return buffer.getvalue()


PAGE = "<!DOCTYPE html>\n<title>Anmeldung für Gäste</title>".encode()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FINE = {"w": torch.ones(3)}
NO_WEIGHTS = {
    "missing": (None, "No such file"),
    "empty": (b"", "is damaged, cut short, or no file of weights: expected .safetensors"),
    "safetensors, cut": (b"\x10\0\0\0\0\0\0\0{", "is damaged, cut short, or no file of weights"),
    "PyTorch, cut": (saved(FINE)[:-200], "is damaged, cut short, or no file of weights"),
    "old PyTorch, cut": (saved(FINE, _use_new_zipfile_serialization=False)[:-3], "is damaged, cut short, or no"),
    "an image": (b"\xff\xd8\xff\xe0" + bytes(100), "is damaged, cut short, or no file of weights"),
    "something to execute": (pickle.dumps({"head": Bomb()}), "holds more than tensors"),
    "the same by torch.save": (saved({"head": Bomb()}), "holds more than tensors"),
    "a trainer's arguments": (
        saved({"model": FINE, "args": Namespace(lr=1)}),
        "holds more than tensors (argparse.Namespace), which may run code, so nothing was loaded",
    ),
    "a whole model": (saved(nn.Linear(1, 1)), "holds more than tensors (torch.nn.modules.linear.Linear)"),
    "a program": (save_program(), "holds more than tensors (a program of TorchScript)"),
    "a web page": (PAGE, "is a web page, of a login or an error perhaps"),
    "a web page after blanks": (b"\n\n  " + PAGE, "is a web page, of a login or an error perhaps"),
    "a pointer": (POINTER, "is a Git LFS pointer and not the file that it stands for"),
    "a server's answer": (b'{"error": "Repository not found"}', "is a text and no file of weights; it begins"),
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_no_weights(name: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a file is called; never with PyTorch's advice to let it run code."""
    monkeypatch.chdir(tmp_path)
    content, message = NO_WEIGHTS[name]
    path = Path(f"w{ending}")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_backbone(build(), path, None)
    assert str(error.value).startswith(f"checkpoint: {path}")
    assert str(error.value).isprintable()
    assert "weights_only" not in str(error.value)
    assert not Path("executed").exists()


@pytest.mark.parametrize("size", [0x3C, 0x213C])
def test_safetensors_that_begin_like_a_web_page(size: int, tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}).encode().ljust(size)
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert path.read_bytes().startswith(b"<")
    assert read_tensors(path) == {"w": torch.zeros(())}


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
