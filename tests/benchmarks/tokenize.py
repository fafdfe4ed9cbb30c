"""Measures what tokenizing costs beside decoding: medians in ms per image on one thread, with the ratio to decoding.

    python -m tests.benchmarks.tokenize

As in training, each of 40 images is decoded and then tokenized, one after the other: an image that is cut again and
again stays in the cache and shows half of the cost. The images are bundled photographs, enlarged, JPEG quality 92;
p = 14 and l = 1024; the importance column or mask is given. Ratios are (decoding + tokenizing) / decoding for JPEG,
and (reading + tokenizing) / decoding for the raw shards. The budgets are 1.25 and 0.45.
"""

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import skimage.data
from sklearn.datasets import load_sample_image

from charm import CharmTokenizer, score_patches
from charm.inputs.protocol import Input
from charm.inputs.standard import StandardInput
from charm.tokenization.augment import IDENTITY, Symmetry
from charm.tokenization.selection import SELECTIONS
from pipeline.shards.read import ShardReader
from pipeline.shards.write import encode_array, write_shard

SIZES = [(768, 1024), (1000, 1500)]
NUM_IMAGES, ROUNDS = 40, 4
SYMMETRIES = [Symmetry(flip, turns) for flip, turns in itertools.product((False, True), range(4))]


def main() -> None:
    cv2.setNumThreads(1)
    for height, width in SIZES:
        images = make_images(height, width)
        jpegs = [simplejpeg.encode_jpeg(image, quality=92) for image in images]
        print(f"\n{NUM_IMAGES} images of about {width} x {height} pixels\n")
        print("| input | symmetry | decode | tokenize | ratio | from raw shards |")
        print("|---|---|---|---|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            raw = write_raw(Path(folder), images)
            for name, tokenizer in list_tokenizers().items():
                given = [prepare(tokenizer, image) for image in images]
                for symmetry in SYMMETRIES if name == "gradient" else [IDENTITY]:
                    decode, tokenize, raw_read = measure(jpegs, raw, tokenizer, given, symmetry)
                    ratio, raw_ratio = 1 + tokenize / decode, raw_read / decode
                    turn = f"{'flip, ' * symmetry.flip}{90 * symmetry.turns}"
                    print(f"| {name} | {turn} | {decode:.2f} | {tokenize:.2f} | {ratio:.2f} | {raw_ratio:.2f} |")


def make_images(height: int, width: int) -> list[np.ndarray]:
    """Makes images of nearly that size, whose grids need padding and cropping; uint8 (H, W, 3)."""
    sources = [load_sample_image("china.jpg"), load_sample_image("flower.jpg"), skimage.data.hubble_deep_field()]
    sources += [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    images = []
    for number in range(NUM_IMAGES):
        off_y, off_x = np.random.default_rng(number).integers(-20, 20, 2).tolist()
        source = np.asarray(sources[number % len(sources)])
        images.append(cv2.resize(source, (width + off_x, height + off_y), interpolation=cv2.INTER_CUBIC))
    return images


def write_raw(folder: Path, images: list[np.ndarray]) -> ShardReader:
    """Writes a shard of decoded images."""
    samples = ((str(number), {"npy": encode_array(image), "json": b"{}"}) for number, image in enumerate(images))
    write_shard(folder / "shard-000000", samples)
    return ShardReader(folder)


def list_tokenizers() -> dict[str, Input]:
    cutters: dict[str, Input] = {name: CharmTokenizer(max_seq_len=1024, selection=name) for name in SELECTIONS}
    cutters["random, 3 scales"] = CharmTokenizer(max_seq_len=1024, num_scales=3)
    return cutters | {"standard": StandardInput()}


def prepare(tokenizer: Input, image: np.ndarray) -> dict[str, Any]:
    """Makes what a column holds for an image."""
    cutter = tokenizer.cutter((image.shape[0], image.shape[1]))
    if tokenizer.reads is None or cutter is None:
        return {}
    if tokenizer.reads == "saliency":
        saliency_mask = np.zeros(image.shape[:2], bool)
        saliency_mask[image.shape[0] // 4 : -image.shape[0] // 4, image.shape[1] // 3 :] = True
        return {"saliency_mask": saliency_mask}
    return {"importance": score_patches(image, tokenizer.reads, cutter.coarse_patch_size)}


def measure(
    jpegs: list[bytes], raw: ShardReader, tokenizer: Input, given: list[dict[str, Any]], symmetry: Symmetry
) -> tuple[float, float, float]:
    """Median ms of decoding a JPEG, of tokenizing it, and of reading and tokenizing it from a raw shard."""
    seconds: list[list[float]] = []
    for _ in range(ROUNDS):
        for number, (jpeg, arguments) in enumerate(zip(jpegs, given, strict=True)):
            times = [time.perf_counter()]
            image = simplejpeg.decode_jpeg(jpeg, strict=True)
            times.append(time.perf_counter())
            tokenizer(image, key=str(number), symmetry=symmetry, **arguments)
            times.append(time.perf_counter())
            tokenizer(raw.read_image(str(number)), key=str(number), symmetry=symmetry, **arguments)
            times.append(time.perf_counter())
            seconds.append([after - before for before, after in itertools.pairwise(times)])
    decode, tokenize, from_raw = 1e3 * np.median(seconds, axis=0)
    return float(decode), float(tokenize), float(from_raw)


if __name__ == "__main__":
    main()
