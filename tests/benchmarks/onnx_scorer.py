"""How far OnnxScorer's scores are from CharmScorer's: the largest difference over 55 images of many sizes, per input.

    uv run python -m tests.benchmarks.onnx_scorer

Random weights; differences are on the scale of 0 to 1, that is parts of the labels' range. Backbones: charm_demo, and
by the charm input DINOv2 with registers, SigLIP 2 and DINOv3 of timm's shapes, which have other position embeddings.
"""

import tempfile
from pathlib import Path

import numpy as np

from charm.export import write_export
from charm.onnx_scorer import OnnxScorer
from charm.scorer import CharmScorer
from tests.charm.test_onnx_scorer import EXPORTED, build
from tests.conftest import draw_image

NUM_IMAGES = 55


def draw_images() -> list[np.ndarray]:
    """From 5 to 3,000 pixels an edge, upright and lying, up to 1 : 20."""
    draws = np.random.default_rng(0)
    edges = np.exp(draws.uniform(np.log(5), np.log(3000), (NUM_IMAGES, 2))).astype(int)
    return [draw_image(int(h), int(w), seed) for seed, (h, w) in enumerate(edges)]


def compare(scorer: CharmScorer, images: list[np.ndarray]) -> tuple[float, float]:
    """Returns the largest difference of raw scores, and the standard deviation of the scores, both on 0..1."""
    with tempfile.TemporaryDirectory() as folder:
        write_export(Path(folder), scorer.model, scorer.config)
        found = [one.raw for one in OnnxScorer.from_pretrained(folder)(images)]
    expected = [one.raw for one in scorer(images)]
    low, high = scorer.score_range
    return np.abs(np.subtract(found, expected)).max() / (high - low), np.std(expected) / (high - low)


def main() -> None:
    images = draw_images()
    print("| model | largest difference | standard deviation of the scores |\n|---|---|---|")
    for name in EXPORTED:
        print("| {} | {:.1e} | {:.3f} |".format(name, *compare(build(name), images)))


if __name__ == "__main__":
    main()
