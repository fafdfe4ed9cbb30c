"""Times the importance maps on one thread, beside decoding the same JPEG in the same run.

    python -m tests.benchmarks.importance

The budget (three maps at two coarse patch sizes, 1024x768) is 35 ms.
"""

import os

# Before numpy is imported: the number of threads is read once.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")

from functools import partial

import cv2
import numpy as np
import simplejpeg
from sklearn.datasets import load_sample_image

from charm.tokenization.importance import IMPORTANCE, score_patches
from tests.benchmarks.timing import median_ms

SIZES_WH = [(640, 480), (1024, 768), (1500, 1000), (3000, 2000)]
COARSE_PATCH_SIZES = [28, 32, 56, 64]
BUDGET_WH, BUDGET_COARSE_PATCH_SIZES, BUDGET_MS = (1024, 768), [28, 32], 35.0


def image_file(width: int, height: int) -> np.ndarray:
    """uint8 (height, width, 3), RGB."""
    source = np.asarray(load_sample_image("china.jpg"))
    return np.ascontiguousarray(cv2.resize(source, (width, height), interpolation=cv2.INTER_CUBIC))


def all_maps(image: np.ndarray) -> None:
    for coarse_patch_size in BUDGET_COARSE_PATCH_SIZES:
        for name in IMPORTANCE:
            score_patches(image, name, coarse_patch_size)


def main() -> None:
    cv2.setNumThreads(1)
    print("median ms per image (ratio to decoding its JPEG, quality 92)")
    print(f"{'size':>10} {'decode':>8} {'p`':>4}" + "".join(f"{name:>18}" for name in IMPORTANCE))
    for width, height in SIZES_WH:
        image = image_file(width, height)
        jpeg = simplejpeg.encode_jpeg(image, quality=92, colorsubsampling="420")
        decode_ms = median_ms(partial(simplejpeg.decode_jpeg, jpeg))
        for coarse_patch_size in COARSE_PATCH_SIZES:
            row = f"{f'{width}x{height}':>10} {decode_ms:8.2f} {coarse_patch_size:4d}"
            for name in IMPORTANCE:
                ms = median_ms(partial(score_patches, image, name, coarse_patch_size))
                row += f"{f'{ms:.2f} ({ms / decode_ms:.2f})':>18}"
            print(row)
    image = image_file(*BUDGET_WH)
    total_ms = median_ms(partial(all_maps, image))
    print(
        f"three maps at p` = {BUDGET_COARSE_PATCH_SIZES}, {BUDGET_WH[0]}x{BUDGET_WH[1]}: "
        f"{total_ms:.1f} ms (budget {BUDGET_MS:.0f} ms)"
    )


if __name__ == "__main__":
    main()
