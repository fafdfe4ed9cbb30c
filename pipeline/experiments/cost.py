"""What a forward pass costs: tokens, GMACs, milliseconds and memory, for the paper's Tables 5 and 17.

One image, float32, random weights, on a GPU where there is one. Tokens and GMACs do not depend on the machine; the
paper's milliseconds and megabytes are those of its GPU (an RTX A4500), without torch's fused attention.

GMACs are counted as in the paper: multiply-accumulates of every matrix product (linear layers, and queries by keys and
weights by values in the attention), one for each value out of a GELU or a LayerScale, two for each out of a LayerNorm.
This gives the paper's figures to its last digit for the four sequences of Charm, and 0.1 to 0.6 % more for the plain
ViTs: theirs come out where one token fewer is counted, without the CLS token.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from timm.layers.layer_scale import LayerScale
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from charm.model.vit import CharmViT
from charm.runtime.devices import choose_device
from charm.tokenization.tokenizer import CharmTokenizer

DEPTH = 12  # blocks of a small ViT
OPERATIONS = {nn.LayerNorm: 2, nn.GELU: 1, LayerScale: 1}  # counted for each value that such a module gives


@dataclass(frozen=True)
class Pass:
    """A forward pass of one image."""

    backbone: str  # as timm names it
    image_hw: tuple[int, int]  # pixels
    # num_scales, max_seq_len: of Charm; 1 is a plain ViT
    num_scales: int
    max_seq_len: int


def measure(setting: Pass) -> dict[str, float]:
    """Measures a forward pass; returns its tokens, GMACs, median milliseconds and MB."""
    device = str(choose_device("auto"))
    model, call = make_call(setting, device)
    found = {"gmacs": count_macs(setting) / 1e9, "ms": measure_ms(call, device), "mb": measure_mb(model, call, device)}
    return {"tokens": setting.max_seq_len} | found


def make_call(setting: Pass, device: str, depth: int = DEPTH) -> tuple[CharmViT, Callable[[], Tensor]]:
    """The model, with so many blocks, and its forward pass of one image."""
    with torch.device(device):
        model = CharmViT(setting.backbone, pretrained=False, num_scales=setting.num_scales, depth=depth).eval()
    tokenizer = CharmTokenizer(
        model.patch_size, max_seq_len=setting.max_seq_len, num_scales=max(2, setting.num_scales), budget="fixed"
    )
    image = np.random.default_rng(0).integers(0, 256, (*setting.image_hw, 3), np.uint8)
    tokens = tokenizer(image)
    arrays = (tokens.patches, tokens.patch_coord, tokens.scale_id, tokens.patch_valid)
    inputs = [torch.from_numpy(array)[None].to(device) for array in arrays]
    pos_embed = torch.zeros(1, len(tokens.patch_valid), model.vit.embed_dim, device=device)
    return model, lambda: model(*inputs, pos_embed)


def count_macs(setting: Pass) -> int:
    """Of an image. All blocks are alike: what one and what two need tells what all need, in a quarter of the time."""
    one, two = (count_call(*make_call(setting, "cpu", depth)) for depth in (1, 2))
    return one + (DEPTH - 1) * (two - one)


@torch.inference_mode()
def count_call(model: nn.Module, call: Callable[[], Any]) -> int:
    """Multiply-accumulates of a call of the model, counted as said above."""
    others = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal others
        others += output.numel() * next(each for kind, each in OPERATIONS.items() if isinstance(module, kind))

    counted = [module for module in model.modules() if isinstance(module, tuple(OPERATIONS))]
    hooks = [module.register_forward_hook(count) for module in counted]
    with FlopCounterMode(display=False) as products:
        call()
    for hook in hooks:
        hook.remove()
    return int(products.get_total_flops()) // 2 + others


@torch.inference_mode()
def measure_ms(call: Callable[[], Any], device: str) -> float:
    """Median; the first two calls do not count."""
    cuda = device.startswith("cuda")
    seconds = []
    for _ in range(52 if cuda else 7):
        started = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds[2:])


@torch.inference_mode()
def measure_mb(model: nn.Module, call: Callable[[], Any], device: str) -> float:
    """The most MB that tensors take at a time, weights included."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        call()
        return float(torch.cuda.max_memory_allocated()) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return float(weights + max(accumulate(event.nbytes() for event in events))) / 2**20
