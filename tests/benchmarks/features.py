"""How long the features of 1,000 images of 12 megapixels take on two cores, and how much memory.

    uv run python -m tests.benchmarks.features [--images 50] [--backbone vit_small_patch14_dinov2]

Random weights, 512 tokens of which three quarters are native, the four layers that are stored by default. The images
are as phones make them, JPEG files of 3000 x 4000 pixels; as in the pipeline they are packed once, downscaled to an
edge of 1024 pixels, and features are made of what is packed: both are timed. Two workers of a thread each share the
images out; times are of computing, and extrapolated.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch

from charm.images.decode import decode_image
from charm.model.frozen import choose_layers, layer_features
from charm.model.vit import CharmViT
from charm.tokenization.geometry import downscale, limit_edge
from charm.tokenization.tokenizer import CharmTokenizer

WORKERS, BATCH, PROMISE = 2, 16, 480  # seconds for 1,000 images


def draw_jpeg(seed: int) -> bytes:
    """A JPEG file of 12 megapixels with the detail of a photograph."""
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 256, (375, 500, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (4000, 3000), interpolation=cv2.INTER_CUBIC)
    return simplejpeg.encode_jpeg(cv2.add(image, draws.integers(0, 12, image.shape, dtype=np.uint8)), quality=92)


def work(files: list[Path], backbone: str) -> dict[str, float]:
    """What a worker does; seconds of computing of its parts, and its peak memory, MB."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model = CharmViT(backbone, False).eval().requires_grad_(False)
    tokenizer = CharmTokenizer(model.patch_size, max_seq_len=512, budget="share", native_share=0.75)
    layers = choose_layers(len(model.vit.blocks))
    seconds = {"pack": 0.0, "tokens": 0.0, "model": 0.0}

    def timed(part: str, call: Callable[[], Any]) -> Any:
        started = time.process_time()  # a worker has one thread: what others take of the cores does not count
        found = call()
        seconds[part] += time.process_time() - started
        return found

    def pack(file: Path) -> bytes:
        image = decode_image(file.read_bytes()).pixels
        small = downscale(image, limit_edge((image.shape[0], image.shape[1]), 1024))
        return simplejpeg.encode_jpeg(small, quality=95, colorsubsampling="444")

    def run(packed: list[bytes]) -> Any:
        batch = timed("tokens", lambda: tokenizer([decode_image(data).pixels for data in packed]))
        arrays = (batch.patches, batch.patch_coord, batch.scale_id, batch.patch_valid)
        positions = torch.zeros(*batch.scale_id.shape, model.vit.embed_dim)
        with torch.inference_mode():
            return timed("model", lambda: layer_features(model, layers, *map(torch.from_numpy, arrays), positions))

    for start in range(0, len(files), BATCH):
        run([timed("pack", lambda file=file: pack(file)) for file in files[start : start + BATCH]])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return seconds | {"peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.jpg" for number in range(asked.images)]
        for number, file in enumerate(files):
            file.write_bytes(draw_jpeg(number))
        started = time.perf_counter()
        jobs = [(files[first::WORKERS], asked.backbone) for first in range(WORKERS)]
        with get_context("spawn").Pool(WORKERS) as pool:
            found = pool.starmap(work, jobs)
        wall = time.perf_counter() - started
    per_image = {part: sum(one[part] for one in found) / asked.images for part in found[0] if part != "peak"}
    thousand = sum(per_image.values()) * 1000 / WORKERS
    print("  ".join(f"{part} {1000 * value:.0f} ms" for part, value in per_image.items()) + " of computing an image")
    print(
        f"1,000 images: {thousand:.0f} s on {WORKERS} quiet cores, {thousand / PROMISE:.2f} of the {PROMISE} s promised"
    )
    peak, load = max(one["peak"] for one in found), os.getloadavg()[0]
    print(f"peak {peak:.0f} MB a worker; {asked.images} images took {wall:.0f} s with loading, at a load of {load:.1f}")


if __name__ == "__main__":
    main()
