"""MUSIQ's transformer: against its definition written plainly, and weights under the names of Google's files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from charm.inputs.musiq import MusiqInput
from charm.model.musiq_backbone import name_as_timm
from charm.model.vit import CharmViT
from charm.runtime.errors import UserError
from charm.runtime.weights import load_backbone

DEPTH = 2


def draw_arrays() -> dict[str, np.ndarray]:
    """Arrays with the names and shapes of one of Google's files, of two blocks."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.1, shape).astype(np.float32)

    arrays = {"conv_root/kernel": draw(7, 7, 3, 64)}
    for name, shape in {"conv1": (1, 1, 64, 64), "conv2": (3, 3, 64, 64), "conv3": (1, 1, 64, 256)}.items():
        arrays[f"block1/unit1/{name}/kernel"] = draw(*shape)
    arrays["block1/unit1/conv_proj/kernel"] = draw(1, 1, 64, 256)
    norms = {"gn_root": 64, "block1/unit1/gn1": 64, "block1/unit1/gn2": 64, "block1/unit1/gn3": 256}
    for name, width in (norms | {"block1/unit1/gn_proj": 256}).items():
        arrays |= {f"{name}/scale": 1 + draw(1, 1, 1, width), f"{name}/bias": draw(1, 1, 1, width)}
    arrays |= {"embedding/kernel": draw(16384, 384) / 10, "embedding/bias": draw(384)}
    arrays |= {
        "Transformer/posembed_input/pos_embedding": draw(1, 100, 384),
        "Transformer/scaleembed_input/scale_embedding": draw(1, 3, 384),
        "Transformer/cls": draw(1, 1, 384),
    }
    for block in range(DEPTH):
        at = f"Transformer/encoderblock_{block}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{at}/{norm}/scale": 1 + draw(384), f"{at}/{norm}/bias": draw(384)}
        for part in ("query", "key", "value"):
            arrays |= {
                f"{at}/MultiHeadDotProductAttention_1/{part}/kernel": draw(384, 6, 64),
                f"{at}/MultiHeadDotProductAttention_1/{part}/bias": draw(6, 64),
            }
        arrays |= {
            f"{at}/MultiHeadDotProductAttention_1/out/kernel": draw(6, 64, 384),
            f"{at}/MultiHeadDotProductAttention_1/out/bias": draw(384),
            f"{at}/MlpBlock_3/Dense_0/kernel": draw(384, 1152),
            f"{at}/MlpBlock_3/Dense_0/bias": draw(1152),
            f"{at}/MlpBlock_3/Dense_1/kernel": draw(1152, 384),
            f"{at}/MlpBlock_3/Dense_1/bias": draw(384),
        }
    arrays |= {"Transformer/encoder_norm/scale": 1 + draw(384), "Transformer/encoder_norm/bias": draw(384)}
    arrays |= {"head/kernel": draw(384, 1), "head/bias": draw(1)}
    return {f"opt/target/{name}": array for name, array in arrays.items()} | {"opt/state/step": np.zeros(1, np.float32)}


def reference(arrays: dict[str, np.ndarray], image: np.ndarray) -> Tensor:
    """MUSIQ's features of an image by its definition, with flax's names and layouts, token by token."""
    w = {name.removeprefix("opt/target/"): torch.from_numpy(array).double() for name, array in arrays.items()}

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = w[f"{name}/kernel"]
        kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2), correction=0) + 1e-5)
        size = kernel.shape[0]
        side = x.shape[-1]
        missing = max((-(-side // stride) - 1) * stride + size - side, 0)
        ends = (missing // 2, missing - missing // 2)
        return F.conv2d(F.pad(x, ends * 2), kernel.permute(3, 2, 0, 1), stride=stride)

    def group_norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.group_norm(x, 32, w[f"{name}/scale"].flatten(), w[f"{name}/bias"].flatten(), eps)

    def layer_norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (384,), w[f"{name}/scale"], w[f"{name}/bias"], 1e-6)

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    tokens = MusiqInput()(image)
    sequence = [w["Transformer/cls"][0, 0]]
    for token in np.flatnonzero(tokens.patch_valid):
        x = 2 * torch.from_numpy(tokens.patches[token]).double().permute(2, 0, 1)[None] / 255 - 1
        x = F.relu(group_norm(conv(x, "conv_root", 2), "gn_root", 1e-6))
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)
        y = F.relu(group_norm(conv(x, "block1/unit1/conv1"), "block1/unit1/gn1", 1e-4))
        y = F.relu(group_norm(conv(y, "block1/unit1/conv2"), "block1/unit1/gn2", 1e-4))
        y = group_norm(conv(y, "block1/unit1/conv3"), "block1/unit1/gn3", 1e-4)
        x = F.relu(y + group_norm(conv(x, "block1/unit1/conv_proj"), "block1/unit1/gn_proj", 1e-4))
        embedded = dense(x[0].permute(1, 2, 0).reshape(-1), "embedding")
        scale = int(tokens.scale_id[token])
        (y_at, x_at), (grid_h, grid_w) = tokens.patch_coord[token].tolist(), tokens.grids[scale]
        place = (y_at * 10 // grid_h) * 10 + x_at * 10 // grid_w  # hashed
        positions = w["Transformer/posembed_input/pos_embedding"][0]
        sequence.append(embedded + positions[place] + w["Transformer/scaleembed_input/scale_embedding"][0, scale])
    x = torch.stack(sequence)
    for block in range(DEPTH):
        at = f"Transformer/encoderblock_{block}"
        normed = layer_norm(x, f"{at}/LayerNorm_0")
        attention = f"{at}/MultiHeadDotProductAttention_1"
        q, k, v = (
            torch.einsum("ld,dhe->hle", normed, w[f"{attention}/{part}/kernel"])
            + w[f"{attention}/{part}/bias"][:, None]
            for part in ("query", "key", "value")
        )
        heads = (q @ k.transpose(1, 2) / 8).softmax(-1) @ v
        out = torch.einsum("hle,hed->ld", heads, w[f"{attention}/out/kernel"])
        x = x + out + w[f"{attention}/out/bias"]
        y = dense(layer_norm(x, f"{at}/LayerNorm_2"), f"{at}/MlpBlock_3/Dense_0")
        x = x + dense(F.gelu(y, approximate="tanh"), f"{at}/MlpBlock_3/Dense_1")
    return layer_norm(x, "Transformer/encoder_norm")[0]


def test_charm_vit_with_this_backbone_is_musiq(tmp_path: Path) -> None:
    """From the file of weights to the features of an image of three sizes."""
    arrays = draw_arrays()
    np.savez(tmp_path / "w.npz", **arrays)  # type: ignore[arg-type]
    image = np.random.default_rng(1).integers(0, 256, (70, 110, 3), dtype=np.uint8)
    model = CharmViT("musiq", num_scales=3, pretrained=False, depth=DEPTH).eval()
    read = load_backbone(model.vit, tmp_path / "w.npz", None)
    assert model.scale_embed is not None
    with torch.no_grad():
        model.scale_embed.copy_(read["scale_embed"])
        tokens = MusiqInput()(image)
        made = model.pos_embed_config("bilinear", False)
        assert made.mode == "nearest"
        parts = (tokens.patches, tokens.patch_coord, tokens.scale_id, tokens.patch_valid)
        arguments = [torch.from_numpy(part)[None] for part in parts]
        tables = model.pos_embed_tables(tokens.grids, made.mode)
        positions = torch.zeros(1, len(tokens.patch_valid), 384)
        for token in np.flatnonzero(tokens.patch_valid):
            y, x = tokens.patch_coord[token]
            positions[0, token] = tables[tokens.scale_id[token]][y, x]
        found = model.features(arguments[0], arguments[1], arguments[2], arguments[3], positions)[0]
        torch.testing.assert_close(found.double(), reference(arrays, image), rtol=1e-4, atol=1e-4)


def test_the_backbone_has_the_published_size() -> None:
    model: Any = timm.create_model("musiq")
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(27.1e6, rel=0.002)


def test_a_file_that_does_not_fit_is_told_in_one_line(tmp_path: Path) -> None:
    arrays = draw_arrays()
    arrays["opt/target/surprise/kernel"] = arrays.pop("opt/target/conv_root/kernel")
    np.savez(tmp_path / "w.npz", **arrays)  # type: ignore[arg-type]
    backbone = timm.create_model("musiq", depth=DEPTH)
    with pytest.raises(UserError, match=r"missing \(patch_embed\.conv_root\.weight\).*unexpected \(surprise/kernel\)"):
        load_backbone(backbone, tmp_path / "w.npz", None)
    np.savez(tmp_path / "w.npz", evil=np.array([print], dtype=object))
    with pytest.raises(UserError, match="is damaged, cut short, or no file of weights"):
        load_backbone(backbone, tmp_path / "w.npz", None)
    assert name_as_timm({}) == {}
