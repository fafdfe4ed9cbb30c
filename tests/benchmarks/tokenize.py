"""What tokenizing costs beside decoding: medians in ms per image on one thread, each with its ratio to decoding.

    uv run python -m tests.benchmarks.tokenize

The images are a bundled photograph at four sizes, JPEG quality 92, decoded in the same run. p = 14, l = 1024; the
importance column or mask is given, as in training.
"""

import time
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg
import skimage.data

from charm import CharmTokenizer, score_patches
from charm.inputs.standard import StandardTokenizer
from charm.tokenization.selection import SELECTIONS

SIZES = [(480, 640), (768, 1024), (1000, 1500), (2000, 3000)]
ROUNDS = 60


def main() -> None:
    cv2.setNumThreads(1)
    standard = StandardTokenizer()
    image_file = skimage.data.hubble_deep_field()
    names = [*(f"`{name}`" for name in SELECTIONS), "`random`, 3 scales", "`standard`"]
    print(f"| image | decode | {' | '.join(names)} |")
    print("|---" * (len(names) + 2) + "|")
    for height, width in SIZES:
        image = cv2.resize(image_file, (width, height), interpolation=cv2.INTER_CUBIC)
        data = simplejpeg.encode_jpeg(image, quality=92)
        calls: dict[str, Callable[[], object]] = {"decode": lambda data=data: simplejpeg.decode_jpeg(data, strict=True)}
        for name in SELECTIONS:
            calls[name] = _tokenizing(image, CharmTokenizer(max_seq_len=1024, selection=name))
        calls["3 scales"] = _tokenizing(image, CharmTokenizer(max_seq_len=1024, num_scales=3))
        calls["standard"] = lambda image=image: standard(image, key="photo")
        medians = _measure(calls)
        columns = [f"{medians['decode']:.2f}"]
        columns += [f"{ms:.2f} ({ms / medians['decode']:.2f})" for name, ms in medians.items() if name != "decode"]
        print(f"| {width}x{height} | {' | '.join(columns)} |")


def _tokenizing(image: np.ndarray, tokenizer: CharmTokenizer) -> Callable[[], object]:
    given: dict[str, np.ndarray] = {}
    if tokenizer.selection == "saliency":
        given["saliency_mask"] = np.zeros(image.shape[:2], bool)
        given["saliency_mask"][image.shape[0] // 4 : -image.shape[0] // 4, image.shape[1] // 3 :] = True
    elif tokenizer.selection != "random":
        given["importance"] = score_patches(image, tokenizer.selection, tokenizer.coarse_patch_size)
    return lambda: tokenizer(image, key="photo", **given)


def _measure(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median ms of each call. They take turns in changing order: a busy moment, or what a call leaves in the caches,
    hits all of them."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(ROUNDS):
        for name in np.random.default_rng(turn).permutation(names):
            started = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: 1e3 * float(np.median(seconds[name])) for name in names}


if __name__ == "__main__":
    main()
