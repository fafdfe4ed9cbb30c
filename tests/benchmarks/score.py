"""What `charm score` reaches beside the model alone: images per second, and whole time over the model's own.

    uv run python -m tests.benchmarks.score [--images 1000]

JPEGs of 640 x 480 to 1024 x 768, quality 90, from a bundled photograph; a model of the shape of DINOv2-small with
random weights (its time does not depend on them), l = 512, float32. The command runs in this process. The model's own
time is that of all its calls in the same run, and that of some of these calls repeated afterwards, when no other thread
takes any of the cores. The goal is a ratio of at most 1.10.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import skimage.data
import torch
from typer.testing import CliRunner

from charm.app.command import app
from charm.app.score import GROUP
from charm.hub import write_model_folder
from charm.model.vit import CharmViT
from charm.scorer import CharmScorer
from tests.benchmarks.timing import time_call
from tests.untrained import describe

BACKBONE = "vit_small_patch14_dinov2.lvd142m"
KEPT_CALLS = 9  # of the model, to be repeated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help=f"at least {GROUP}, which are scored together")
    count = parser.parse_args().images
    if count < GROUP:
        parser.error(f"--images {count}: expected at least {GROUP}")
    calls: list[tuple[float, CharmScorer, Any]] = []
    score_tokens = CharmScorer.score_tokens

    def score_timed(self: CharmScorer, tokens: Any) -> Any:
        started = time.perf_counter()
        scores = score_tokens(self, tokens)
        is_kept = len(calls) < KEPT_CALLS and len(tokens) == GROUP
        calls.append((time.perf_counter() - started, self, tokens if is_kept else None))
        return scores

    CharmScorer.score_tokens = score_timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "photos", count)
        write_model(Path(folder) / "model")
        arguments = ["score", f"{folder}/photos", "--model", f"{folder}/model", "--out", f"{folder}/scores.parquet"]
        started = time.perf_counter()
        ended = CliRunner().invoke(app, arguments)
        whole = time.perf_counter() - started
    if ended.exit_code:
        sys.exit(f"exit code {ended.exit_code}: {ended.stderr}")
    print(ended.stderr.strip())
    print(f"{count} images on {torch.get_num_threads()} threads, {count / whole:.2f} per second, loading included")
    inside = sum(seconds for seconds, _, _ in calls)
    print(f"whole {whole:.1f} s, model in it {inside:.1f} s, ratio {whole / inside:.3f}")
    alone = statistics.median(time_call(partial(score_tokens, *call[1:])) for call in calls if call[2]) * count / GROUP
    print(f"model alone, nothing else at work: {alone:.1f} s, ratio {whole / alone:.3f}")


def write_images(folder: Path, count: int) -> None:
    """JPEGs of five sizes, upright and lying."""
    folder.mkdir()
    image_file = skimage.data.hubble_deep_field()
    for index in range(count):
        width = 640 + 96 * (index % 5)
        size = (width, width * 3 // 4) if index % 3 else (width * 3 // 4, width)
        image = cv2.resize(image_file, size, interpolation=cv2.INTER_AREA)
        image = np.roll(image, 7 * index, axis=1)
        (folder / f"{index:06d}.jpg").write_bytes(simplejpeg.encode_jpeg(image, quality=90))


def write_model(folder: Path) -> None:
    """Of random weights, with the facts that a scorer needs."""
    small = describe(max_seq_len=512)
    config = replace(small, model=replace(small.model, backbone=BACKBONE))
    write_model_folder(folder, CharmViT.from_config(config.model).state_dict(), config)


if __name__ == "__main__":
    main()
