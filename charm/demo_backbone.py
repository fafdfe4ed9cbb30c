"""charm_demo: a vision transformer small enough to be trained on a CPU in a minute, for the built-in data set.

It has no pre-trained weights. Instead its patch projection starts as a cosine basis, so that it sees detail from the
first step, and its position embeddings are the sine-cosine ones of MAE; both are closed forms, no random numbers.
"""

from typing import Any

import numpy as np
import torch
from scipy.fft import dct
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

PATCH_SIZE, EMBED_DIM, DEPTH, NUM_HEADS, GRID = 14, 64, 2, 4, 16


def cosine_projection(patch_size: int, num_filters: int) -> np.ndarray:
    """Filters of the luminance DCT, evenly spread over the diagonals of ascending frequency.

    Returns:
        float32 (num_filters, 3, p, p). A filter's gain grows with its frequency, as a photograph's spectrum falls.
    """
    basis = dct(np.eye(patch_size), axis=0, norm="ortho")
    pairs = sorted(((i, j) for i in range(patch_size) for j in range(patch_size)), key=lambda ij: (sum(ij), ij))
    chosen = pairs[:: len(pairs) // num_filters][:num_filters]
    filters = [np.outer(basis[i], basis[j]) * (1 + 0.5 * (i + j)) / 3 for i, j in chosen]
    return np.repeat(np.stack(filters)[:, None], 3, axis=1).astype(np.float32)


@register_model
def charm_demo(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    """64 wide, 2 layers, patch 14. `pretrained` changes nothing: there is no checkpoint, and none is needed."""
    del pretrained
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # what create_model adds about checkpoints
        settings.pop(name, None)
    model = VisionTransformer(
        **{
            "img_size": PATCH_SIZE * GRID,
            "patch_size": PATCH_SIZE,
            "embed_dim": EMBED_DIM,
            "depth": DEPTH,
            "num_heads": NUM_HEADS,
            "num_classes": 0,
            **settings,
        }
    )
    with torch.no_grad():
        model.patch_embed.proj.weight.copy_(torch.from_numpy(cosine_projection(PATCH_SIZE, EMBED_DIM)))
        model.patch_embed.proj.bias.zero_()
        positions = 0.02 * build_sincos2d_pos_embed([GRID, GRID], EMBED_DIM)
        model.pos_embed = nn.Parameter(torch.cat([torch.zeros(1, EMBED_DIM), positions])[None])
    return model
