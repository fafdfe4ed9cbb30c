"""Whether the input `published` cuts images as the published tokenizer does: ids, patches and positions of 40 images.

    uv run python -m tests.benchmarks.published

Charm_tokenizer 1.0.17 runs in an environment of its own, which uv makes, in its deterministic mode (frequency, nothing
padded or dropped) and, where an image has fewer tokens than its l, padded. Random position embeddings stand for
DINOv2's. A coefficient of a spectrum that is 0 in whole numbers is 0 or 1e-6 by the rounding of the FFT at hand, and
its logarithm decides whether a patch is chosen: images of which another coarse patch is native are counted apart.
"""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch

from charm.inputs.published import PADDING, PublishedInput
from charm.inputs.settings import PublishedSettings
from charm.model.pos_embed import gather_pos_embed, resample_pos_embed
from charm.tokenization.tokens import Tokens

WHEEL = ("Charm-tokenizer==1.0.17", "transformers==4.36.0", "timm==0.4.12", "torch", "torchvision", "numpy", "pillow")
WIDTH = 16  # of the position embeddings
DATASETS = {"ava": 512, "koniq10k": 1024}  # l

CHILD = """
import sys, warnings
from pathlib import Path
import numpy as np, torch
from Charm_tokenizer import ImageProcessor
folder = Path(sys.argv[1])
ImageProcessor.hf_hub_download = lambda **asked: folder / "pos.pt"
for image in sorted(folder.glob("*.png")):
    for padded in (False, True):
        made = ImageProcessor.Charm_Tokenizer("frequency", image.stem.split("-")[1], without_pad_or_dropping=not padded)
        patches, positions, ids = made.preprocess(image)
        np.savez(image.with_suffix(f".{padded}.npz"), patches=patches, positions=positions, ids=ids)
"""


def draw_images(folder: Path) -> None:
    """40 parts of photographs, of 150 to 1,300 pixels a side, half of them of each data set."""
    draws = np.random.default_rng(0)
    photos = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    for number in range(40):
        photo = photos[number % 4]
        (height, width), scale = draws.integers(150, 1300, 2), draws.uniform(0.3, 2)
        top, left = draws.integers(0, 80, 2)
        part = cv2.resize(photo[top:, left:], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        image = cv2.resize(part, (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(image + draws.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:02}-{list(DATASETS)[number // 4 % 2]}.png"), noisy[..., ::-1])


def take_positions(tokens: Tokens, learnt: torch.Tensor) -> np.ndarray:
    """The position embeddings that the tokens carry, 0 for those of padding, (L, WIDTH)."""
    tables = [resample_pos_embed(learnt, grid, "bicubic_offset") for grid in tokens.grids[1:]]
    scale = torch.from_numpy(np.maximum(tokens.scale_id, 1) - 1)
    found = gather_pos_embed(tables, torch.from_numpy(tokens.pos_coord), scale).numpy()
    return np.where((tokens.scale_id == PADDING)[:, None], 0, found)


def compare(tokens: Tokens, learnt: torch.Tensor, wheel: Any) -> tuple[float, float]:
    """The largest differences of pixels, on 0..1, and of positions; AssertionError where the ids differ."""
    ids = np.where(wheel["ids"] == 9, PADDING, wheel["ids"] + 1)[1:]
    order = np.argsort(-ids, kind="stable")  # native, coarse, padding
    np.testing.assert_array_equal(ids[order], tokens.scale_id)
    patches = wheel["patches"][1:][order].transpose(0, 2, 3, 1)
    positions = take_positions(tokens, learnt) - wheel["positions"][1:][order]
    return float(np.abs(tokens.patches / 255 - patches).max()), float(np.abs(positions).max())


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        draw_images(folder)
        torch.manual_seed(0)
        learnt = torch.randn(1, 1 + 37 * 37, WIDTH)
        torch.save(learnt, folder / "pos.pt")
        (folder / "child.py").write_text(CHILD)
        packages = [part for name in WHEEL for part in ("--with", name)]
        command = ["uv", "run", "--no-project", "--python", "3.11", *packages, "python", "child.py", str(folder)]
        subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
        found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for image in sorted(folder.glob("*.png")):
            pixels = cv2.imread(str(image))[..., ::-1].copy()
            for padded, differences in found.items():
                made = PublishedInput(14, 3000, PublishedSettings(DATASETS[image.stem.split("-")[1]], padded))
                count = made.length(pixels.shape[:2])
                tokens = replace(made, budget=count)(pixels)
                if (tokens.scale_id == PADDING).any() == padded:  # beyond l the published code drops tokens by chance
                    differences.append(compare(tokens, learnt, np.load(image.with_suffix(f".{padded}.npz"))))
        for padded, differences in found.items():
            same = [both for both in differences if max(both) < 1e-2]
            worst = ", ".join(f"{most:.1e}" for most in np.max(same, axis=0))
            print(
                f"{'padded' if padded else 'deterministic'}: {len(differences)} images, all ids equal; of {len(same)} "
                f"the largest differences of patches and positions are {worst}; of the others another patch is native"
            )


if __name__ == "__main__":
    main()
