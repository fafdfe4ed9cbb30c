"""What one GPU reaches, in at most 8 minutes: training beside other inputs, waiting for data, repeatability, masks.

    uv run python -m tests.benchmarks.gpu [--device cuda] [--toy]

Random weights; nothing is downloaded. Training steps are whole ones (forward, backward, AdamW), of batches that lie on
the device; medians. `224` is timm's ViT of the same shape on crops of 224 pixels, `NaFlex` timm's NaFlexVit on as many
tokens as Charm's, both in the same run; a ratio is to `224` of the same precision. Waiting is of the loader with its
workers, on shards of 1024x768 JPEGs. Two equal runs of 20 steps say how far their losses drift apart.
--toy takes seconds on a CPU.
"""

import argparse
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from charm import CharmTokenizer, CharmViT
from charm.runtime.devices import autocast
from charm.saliency import sam_hq
from pipeline.training.loader import Batch, Loader
from pipeline.training.sampler import EpochSampler, SampleRef
from pipeline.training.steps import Pace
from tests.benchmarks import loader as shards
from tests.benchmarks.timing import time_call
from tests.saliency_models import build_tiny_sam

Forward = Callable[[], Tensor]  # of a batch
Built = tuple[nn.Module, Forward]
HEAD = """
| model | input | tokens | precision | compiled | images/s | ratio to `224` | GB |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Shape:
    """A ViT of DINOv2's kind with patches of 14 pixels; `batch` images per step."""

    name: str
    width: int
    depth: int
    heads: int
    batch: int

    @property
    def settings(self) -> dict[str, Any]:
        return {"embed_dim": self.width, "depth": self.depth, "num_heads": self.heads}


SHAPES = [Shape("DINOv2-small", 384, 12, 6, 64), Shape("DINOv2-large", 1024, 24, 16, 16)]
TOY = [Shape("toy", 64, 2, 2, 2)]


def build_charm(shape: Shape, length: int, compile: bool, device: torch.device) -> Built:
    tokenizer = CharmTokenizer(max_seq_len=length, budget="share", native_share=0.5)
    images = [np.random.default_rng(n).integers(0, 256, (768, 1024, 3), dtype=np.uint8) for n in range(shape.batch)]
    batch = tokenizer(images)
    model = CharmViT("vit_small_patch14_dinov2", False, **shape.settings).to(device)
    arrays = (batch.patches, batch.patch_coord, batch.scale_id)
    given = [torch.from_numpy(array).to(device) for array in arrays]
    pos_embed = torch.zeros(*batch.scale_id.shape, shape.width, device=device)
    if compile:
        model.compile_backbone()
    return model, partial(model, *given, torch.from_numpy(batch.patch_valid), pos_embed)


def build_crop(shape: Shape, device: torch.device) -> Built:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(224, 14, num_classes=1, init_values=1e-5, **shape.settings).to(device)
    return model, partial(model, torch.zeros(shape.batch, 3, 224, 224, device=device))


def build_naflex(shape: Shape, length: int, device: torch.device) -> Built:
    from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg

    cfg = NaFlexVitCfg(patch_size=14, init_values=1e-5, pos_embed_grid_size=(16, 16), **shape.settings)
    model = NaFlexVit(cfg, num_classes=1).to(device)
    side = int(length**0.5)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(length // side), indexing="ij")
    coord = torch.stack([y.flatten(), x.flatten()], dim=1).expand(shape.batch, -1, 2).to(device)
    patches = torch.zeros(shape.batch, coord.shape[1], 14 * 14 * 3, device=device)
    valid = torch.ones(coord.shape[:2], dtype=torch.bool, device=device)
    return model, partial(model, patches, patch_coord=coord, patch_valid=valid)


def stepping(model: nn.Module, precision: str, device: torch.device) -> Callable[[Forward], float]:
    """A training step, which returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=device.type == "cuda")

    def step(forward: Forward) -> float:
        with autocast(device, precision):
            output = forward()
        loss = (output.float() - 0.7).abs().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())  # waits for the device

    return step


def measure(step: Callable[[], Any], steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a step, the first three left out, and the most memory, GB (0 on a CPU)."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = [time_call(step) for _ in range(steps + 3)]
    return statistics.median(seconds[3:]), torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0


def train_rows(shapes: list[Shape], lengths: list[int], steps: int, device: torch.device) -> Iterator[str]:
    yield HEAD
    for shape in shapes:
        for precision in ("float32", "bfloat16"):
            builders: list[tuple[str, int, bool, Callable[[], Built]]]
            builders = [("224", 256, False, partial(build_crop, shape, device))]
            for length in lengths:
                builders.append(("Charm", length, False, partial(build_charm, shape, length, False, device)))
                builders.append(("NaFlex", length, False, partial(build_naflex, shape, length, device)))
            if device.type == "cuda" and precision == "bfloat16":  # compiling takes most of a minute
                builders.append(("Charm", lengths[0], True, partial(build_charm, shape, lengths[0], True, device)))
            first = None
            for name, length, compiled, build in builders:
                model, forward = build()
                step = stepping(model, precision, device)
                seconds, memory = measure(partial(step, forward), steps, device)
                first = first or seconds
                cells = (shape.name, name, length, precision, compiled, f"{shape.batch / seconds:.1f}")
                yield f"| {' | '.join(map(str, cells))} | {first / seconds:.2f} | {memory:.1f} |"


class Endless(EpochSampler):
    """Epoch after epoch, so that workers never start anew."""

    def __iter__(self) -> Iterator[list[SampleRef]]:
        while True:
            yield from super().__iter__()
            self.epoch += 1


def waiting_rows(shape: Shape, workers: list[int], steps: int, device: torch.device) -> Iterator[str]:
    yield "\n| loader workers | pace |\n|---|---|"
    data = [shards.simplejpeg.encode_jpeg(image, quality=92) for image in shards.draw_photographs()]
    with tempfile.TemporaryDirectory() as folder:
        manifest, pos_embeds = shards.pack(data, Path(folder))
        reader = shards.ShardReader(Path(folder) / "jpeg")
        dataset = shards.TokenDataset(manifest, reader, None, shards.TOKENIZER, pos_embeds, seed=0)
        model = CharmViT("vit_small_patch14_dinov2", False, **shape.settings).to(device)
        step = stepping(model, "bfloat16", device)
        for count in workers:
            sampler = Endless(shards.COUNT, shape.batch, seed=0, shuffle=True)
            batches = iter(Loader(dataset, sampler, count, device))

            def train(source: Iterator[Batch]) -> None:
                batch = next(source)
                arrays = (batch.patches, batch.patch_coord, batch.scale_id)
                given = [one.to(device, non_blocking=True) for one in arrays]
                zeros = torch.zeros(*batch.scale_id.shape, shape.width, device=device)
                step(partial(model, *given, batch.patch_valid, zeros))

            for _ in range(3):  # workers start
                train(batches)
            pace = Pace(batches)
            for _ in range(steps):
                train(pace)
                pace.end_step()
            yield f"| {count} | {pace.describe()} |"


def compare_runs(shape: Shape, length: int, device: torch.device) -> str:
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        model, forward = build_charm(shape, length, False, device)
        step = stepping(model, "bfloat16", device)
        losses.append([step(forward) for _ in range(20)])
    apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
    return f"\nTwo equal runs of 20 steps: losses {'equal' if apart == 0 else f'apart by at most {apart:.2g}'}."


def mask_row(is_toy: bool, steps: int, device: torch.device) -> str:
    """SAM-HQ's masks in ten boxes of an image of 1024x768, without the detector of the boxes."""
    from segment_anything_hq import SamPredictor

    sam = (build_tiny_sam() if is_toy else sam_hq.SAM_MODELS["vit_h"]()).eval().requires_grad_(False).to(device)
    models = sam_hq.Models(None, None, SamPredictor(sam), device, threading.Lock())
    image = np.random.default_rng(0).integers(0, 256, (768, 1024, 3), dtype=np.uint8)
    boxes = torch.tensor([[50.0 * n, 20.0 * n, 300 + 60 * n, 200 + 50 * n] for n in range(10)], device=device)

    def step() -> float:
        with torch.inference_mode():
            return float(sam_hq._segment_boxes(models, image, boxes, False).mean())

    seconds, memory = measure(step, steps, device)
    name = "a tiny SAM-HQ" if is_toy else "SAM-HQ vit_h"
    return f"\n{name}, ten boxes of 1024x768: {1 / seconds:.2f} images/s, {memory:.1f} GB."


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    shapes, lengths, steps = (TOY, [48], 1) if chosen.toy else (SHAPES, [512, 1024], 10)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}")
    with closing(train_rows(shapes, lengths, steps, device)) as rows:
        for row in rows:
            print(row, flush=True)
    for row in waiting_rows(shapes[0], [1] if chosen.toy else [4, 8, 16], 4 * steps + 1, device):
        print(row, flush=True)
    print(compare_runs(shapes[0], lengths[0], device), flush=True)
    print(mask_row(chosen.toy, steps, device))


if __name__ == "__main__":
    main()
