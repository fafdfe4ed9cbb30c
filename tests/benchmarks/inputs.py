"""What each input costs: tokens, GMACs of the model, and milliseconds of the input and of the model.

    uv run python -m tests.benchmarks.inputs [--image 480x640]

One image, one thread for the input, random weights: DINOv2-small at p = 14, for MUSIQ its own transformer. Tokens and
GMACs do not depend on the machine. Milliseconds are medians; the last column is the input's over those of decoding.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch

from charm.inputs.protocol import Input
from charm.inputs.registry import INPUTS, build_input
from charm.inputs.settings import SETTINGS
from charm.model.vit import CharmViT
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens
from pipeline.experiments.cost import count_call, measure_ms
from tests.benchmarks.timing import median_ms

LENGTH = 512  # tokens, of inputs with a budget
BACKBONES = {"musiq": ("musiq", 32, 14)}  # input -> backbone, patch size, blocks
WIDTH = 384  # of either backbone


def prepare(backbone: str, depth: int, made: Input, tokens: Tokens) -> tuple[CharmViT, Callable[[], Any]]:
    """A model of so many blocks, and its forward pass of an image, without the padding that a batch trims."""
    scales, count = made.num_scales, tokens.seq_len
    model = (
        CharmViT(backbone, False, scales, num_residuals=made.num_residuals, depth=depth).eval().requires_grad_(False)
    )
    arrays = (tokens.patches, tokens.patch_coord, tokens.scale_id, tokens.patch_valid)
    given = [torch.from_numpy(array[:count])[None] for array in arrays]
    residuals = None if tokens.residuals is None else torch.from_numpy(tokens.residuals)[None]
    return model, partial(model, *given, torch.zeros(1, count, WIDTH), residuals)


def measure(name: str, image: np.ndarray, decoding: float) -> str:
    """A row of the table."""
    backbone, patch_size, depth = BACKBONES.get(name, ("vit_small_patch14_dinov2", 14, 12))
    cutter = CharmTokenizer(patch_size, max_seq_len=LENGTH if SETTINGS[name].has_budget else 2**16)
    made = build_input(name, SETTINGS[name](), cutter)
    tokens = made(image, key="image")
    one, two = (count_call(*prepare(backbone, blocks, made, tokens)) for blocks in (1, 2))
    gmac = (one + (depth - 1) * (two - one)) / 1e9
    cutting = median_ms(partial(made, image, key="image"))
    running = measure_ms(prepare(backbone, depth, made, tokens)[1], "cpu")
    return f"| `{name}` | {tokens.seq_len} | {gmac:.1f} | {cutting:.2f} | {running:.0f} | {cutting / decoding:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="480x640", help="height x width, pixels")
    height, width = map(int, parser.parse_args().image.split("x"))
    cv2.setNumThreads(1)
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    jpeg = simplejpeg.encode_jpeg(image, quality=92)
    decoding = median_ms(partial(simplejpeg.decode_jpeg, jpeg))
    print("| input | tokens | GMAC | ms of the input | ms of the model | input / decoding |\n|---|---|---|---|---|---|")
    for name in INPUTS:
        print(measure(name, image, decoding), flush=True)


if __name__ == "__main__":
    main()
