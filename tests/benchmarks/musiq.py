"""How far MUSIQ is from the port of IQA-PyTorch, with the same random weights and the same patches, in five sizes.

    uv run --with pyiqa python -m tests.benchmarks.musiq

pyiqa's licence is non-commercial, so it is no requirement of the tests. It has the exact GELU and the unbiased
deviation of weights, where the original and charm.model.musiq_backbone have flax's: both are switched here. The
positions of our own input are compared as well: hashing to 10 x 10 is the nearest of the learnt positions.
"""

import re

import numpy as np
import torch
import torch.nn.functional as F
from pyiqa.archs.musiq_arch import MUSIQ, get_multiscale_patches
from torch import Tensor, nn

from charm.inputs.musiq import MusiqInput
from charm.inputs.settings import MusiqSettings
from charm.model import musiq_backbone
from charm.model.pos_embed import resample_pos_embed
from charm.model.vit import CharmViT

SIZES = ((300, 420), (480, 640), (224, 224), (640, 360), (77, 500))
NAMES = {
    r"transformer_encoder\.posembed_input\.position_emb": "vit.pos_embed",
    r"transformer_encoder\.scaleembed_input\.scale_emb": "scale_embed",
    r"transformer_encoder\.cls": "vit.cls_token",
    r"transformer_encoder\.encoder_norm\.": "vit.norm.",
    r"transformer_encoder\.transformer\.encoderblock_(\d+)\.norm([12])\.": r"vit.blocks.\1.norm\2.",
    r"transformer_encoder\.transformer\.encoderblock_(\d+)\.mlp\.fc([12])\.": r"vit.blocks.\1.mlp.fc\2.",
    r"transformer_encoder\.transformer\.encoderblock_(\d+)\.attention\.out\.": r"vit.blocks.\1.attn.proj.",
    r"transformer_encoder\.transformer\.encoderblock_(\d+)\.attention\.(query|key|value)\.": r"vit.blocks.\1.attn.\2.",
    r"embedding\.": "vit.patch_embed.proj.",
    r"block1\.|(?=conv_root|gn_root)": "vit.patch_embed.",
}


def rename(name: str) -> str:
    for old, new in NAMES.items():
        if found := re.match(old, name):
            return found.expand(new) + name[found.end() :]
    return name


def translate(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under the names of CharmViT."""
    tensors = {rename(name): tensor for name, tensor in theirs.items()}
    for block in {name.split(".attn.")[0] for name in tensors if ".attn.query" in name}:
        for leaf in ("weight", "bias"):
            parts = [tensors.pop(f"{block}.attn.{part}.{leaf}", None) for part in ("query", "key", "value")]
            zeros = torch.zeros(musiq_backbone.EMBED_DIM)  # they have no biases
            tensors[f"{block}.attn.qkv.{leaf}"] = torch.cat([zeros if part is None else part for part in parts])
    tensors["scale_embed"] = tensors["scale_embed"].reshape(3, -1)
    return tensors


class TheirConv(musiq_backbone.StdConv):
    def forward(self, input: Tensor) -> Tensor:
        dims = (1, 2, 3)
        weight = self.weight - self.weight.mean(dims, keepdim=True)
        weight = weight / (weight.std(dims, keepdim=True) + 1e-5)
        return F.conv2d(musiq_backbone.pad_same(input, self.kernel_size[0], self.stride[0]), weight, None, self.stride)


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    theirs = MUSIQ(pretrained=False).train()  # in training it takes patches as they are
    for parameter in theirs.parameters():
        if parameter.ndim == 1:
            parameter.copy_(torch.randn_like(parameter) * 0.1 + 0.5)
    ours = CharmViT("musiq", False, num_scales=3).eval()
    unset = ours.load_state_dict(translate(theirs.state_dict()), strict=False)
    assert (unset.missing_keys, unset.unexpected_keys) == (["mask_token"], [])
    for module in ours.modules():
        if isinstance(module, musiq_backbone.StdConv):
            module.__class__ = TheirConv
        elif type(module) is not nn.GELU and "GELU" in type(module).__name__:
            module.forward = F.gelu  # type: ignore[assignment]
    print("| image | tokens | scores differ by | positions differ by |\n|---|---|---|---|")
    for height, width in SIZES:
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
        found = get_multiscale_patches(pixels, 32, 32, 10, [224, 384], -1)[0]
        found = found[found[:, -1] > 0]
        patches, hashed, scale_id = found[:, :-3].reshape(-1, 3, 32, 32), found[:, -3].long(), found[:, -2].long()
        grid = ours.pos_embed[0].reshape(10, 10, -1)
        given = ((patches.permute(0, 2, 3, 1) + 1) * 127.5, torch.zeros(len(found), 2, dtype=torch.long), scale_id)
        valid = torch.ones(1, len(found), dtype=torch.bool)
        score = ours(*(one[None] for one in given), valid, grid.flatten(0, 1)[hashed][None])
        differ = float((theirs(found[None]) - score).abs().max())

        tokens = MusiqInput(budget=4096, settings=MusiqSettings())(image, key="image")
        tables = [resample_pos_embed(ours.pos_embed, one, "nearest", num_prefix_tokens=0) for one in tokens.grids]
        own = torch.stack(
            [
                tables[scale][y, x]
                for scale, (y, x) in zip(tokens.scale_id.tolist(), tokens.patch_coord.tolist(), strict=True)
            ][: tokens.seq_len]
        )
        order = torch.argsort(scale_id, descending=True, stable=True)  # theirs lists the smallest size first
        apart = float((own - grid.flatten(0, 1)[hashed][order]).abs().max())
        print(f"| {height}x{width} | {len(found)} | {differ:.1e} | {apart:.1e} |")


if __name__ == "__main__":
    main()
