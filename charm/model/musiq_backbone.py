"""musiq: the transformer of MUSIQ (Ke et al., ICCV 2021), whose patches of 32 pixels pass a small ResNet first.

CharmViT with this backbone, MUSIQ's input and position embeddings by the nearest neighbour is MUSIQ. timm's hub has no
weights of it: `checkpoint` takes one of Google's .npz files (google-research/musiq on GitHub, Apache-2.0). Without,
it is trained from scratch.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from charm.model.demo_backbone import build_vit

PATCH_SIZE, EMBED_DIM, DEPTH, NUM_HEADS, MLP_RATIO, GRID = 32, 384, 14, 6, 3, 10


class StdConv(nn.Conv2d):
    """A convolution with standardized weights, "SAME" padding and no bias."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel_size, stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer, (B, C, H, W); weights have mean 0 and deviation 1 for each output."""
        dims = (1, 2, 3)
        centred = self.weight - self.weight.mean(dims, keepdim=True)
        weight = centred / (self.weight.std(dims, correction=0, keepdim=True) + 1e-5)
        return F.conv2d(pad_same(input, self.kernel_size[0], self.stride[0]), weight, None, self.stride)


def pad_same(image: Tensor, kernel_size: int, stride: int, value: float = 0.0) -> Tensor:
    """Pads (B, C, H, W) so that a window moved by `stride` gives ceil(H / stride) rows; the odd pixel comes last."""
    missing = [max((-(-side // stride) - 1) * stride + kernel_size - side, 0) for side in image.shape[2:]]
    (top, bottom), (left, right) = ((both // 2, both - both // 2) for both in missing)
    return F.pad(image, (left, right, top, bottom), value=value)


class MusiqEmbed(PatchEmbed):
    """Embeds patches of 32 x 32 pixels by a convolution, a bottleneck of a ResNet and a linear layer."""

    def __init__(self, img_size: Any = None, patch_size: Any = PATCH_SIZE, embed_dim: int = EMBED_DIM, **given: Any):
        super().__init__(img_size=img_size, patch_size=patch_size, embed_dim=embed_dim)
        self.conv_root, self.gn_root = StdConv(3, 64, 7, 2), nn.GroupNorm(32, 64, eps=1e-6)
        self.conv1, self.gn1 = StdConv(64, 64, 1), nn.GroupNorm(32, 64, eps=1e-4)
        self.conv2, self.gn2 = StdConv(64, 64, 3), nn.GroupNorm(32, 64, eps=1e-4)
        self.conv3, self.gn3 = StdConv(64, 256, 1), nn.GroupNorm(32, 256, eps=1e-4)
        self.conv_proj, self.gn_proj = StdConv(64, 256, 1), nn.GroupNorm(32, 256, eps=1e-4)
        self.proj = nn.Linear(256 * (self.patch_size[0] // 4) ** 2, embed_dim)  # type: ignore[assignment]

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Embeds patches, float (B, L, p, p, 3) on 0..1, as (B, L, D)."""
        x = (2 * pixels.flatten(0, 1) - 1).permute(0, 3, 1, 2)
        x = F.relu(self.gn_root(self.conv_root(x)))
        x = F.max_pool2d(pad_same(x, 3, 2, -torch.inf), 3, 2)
        y = F.relu(self.gn1(self.conv1(x)))
        y = F.relu(self.gn2(self.conv2(y)))
        x = F.relu(self.gn_proj(self.conv_proj(x)) + self.gn3(self.conv3(y)))
        embedded: Tensor = self.proj(x.permute(0, 2, 3, 1).flatten(1))  # rows, columns, channels
        return embedded.reshape(*pixels.shape[:2], -1)


@register_model
def musiq(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    """Builds the backbone; refuses `pretrained`, as timm's hub has no weights of it: Google's are a file to load."""
    if pretrained:
        raise RuntimeError("No pretrained weights exist for musiq on a hub: give a checkpoint, or pretrained: false")
    own: dict[str, Any] = {"patch_size": PATCH_SIZE, "embed_dim": EMBED_DIM, "depth": DEPTH, "num_heads": NUM_HEADS}
    own |= {"img_size": PATCH_SIZE * GRID, "mlp_ratio": MLP_RATIO, "no_embed_class": True, "embed_layer": MusiqEmbed}
    model = build_vit(own | {"act_layer": "gelu_tanh"}, settings)  # flax's
    vars(model).update(pos_embed_mode="nearest", name_weights=name_as_timm)  # for CharmViT and for files of weights
    return model


_PARTS = {
    r"embedding": "patch_embed.proj",
    r"head": "head",
    r"(conv_root|gn_root)": r"patch_embed.\1",
    r"block1/unit1/(\w+)": r"patch_embed.\1",
    r"Transformer/encoderblock_(\d+)/LayerNorm_0": r"blocks.\1.norm1",
    r"Transformer/encoderblock_(\d+)/LayerNorm_2": r"blocks.\1.norm2",
    r"Transformer/encoderblock_(\d+)/MlpBlock_3/Dense_0": r"blocks.\1.mlp.fc1",
    r"Transformer/encoderblock_(\d+)/MlpBlock_3/Dense_1": r"blocks.\1.mlp.fc2",
    r"Transformer/encoderblock_(\d+)/\w*Attention_1/out": r"blocks.\1.attn.proj",
    r"Transformer/encoderblock_(\d+)/\w*Attention_1/(query|key|value)": r"blocks.\1.attn.\2",
    r"Transformer/encoder_norm": "norm",
}
_WHOLE = {
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/cls": "cls_token",
    "Transformer/scaleembed_input/scale_embedding": "scale_embed",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def name_as_timm(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the arrays of one of Google's .npz files under timm's names and in its shapes.

    `scale_embed`, (3, 384), is CharmViT's. Unknown names stay as they are, and are refused by who loads them.
    """
    named: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if not name.startswith("opt/target/"):  # of the optimizer, or timm's names already
            named |= {} if name.startswith("opt/") else {name: array}
            continue
        path, tensor = name.removeprefix("opt/target/"), array.float()
        part, _, leaf = path.rpartition("/")
        if path in _WHOLE:
            named[_WHOLE[path]] = tensor[0] if path.endswith("scale_embedding") else tensor
            continue
        found = next((re.sub(old, new, part) for old, new in _PARTS.items() if re.fullmatch(old, part)), None)
        if leaf != "kernel":
            tensor = tensor.flatten()
        elif tensor.ndim == 4:
            tensor = tensor.permute(3, 2, 0, 1)
        else:
            tensor = (tensor.flatten(0, 1) if part.endswith("/out") else tensor.flatten(1)).T
        named[f"{found}.{_LEAVES.get(leaf, leaf)}" if found else path] = tensor
    for block in {name.split(".attn.")[0] for name in named if ".attn.query" in name}:
        for leaf in ("weight", "bias"):
            parts = [named.pop(f"{block}.attn.{part}.{leaf}") for part in ("query", "key", "value")]
            named[f"{block}.attn.qkv.{leaf}"] = torch.cat(parts)
    return {name: tensor.contiguous() for name, tensor in named.items()}
