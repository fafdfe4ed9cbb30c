"""How far OnnxScorer's scores are from CharmScorer's: the largest difference over 55 images of many sizes, per input.

    uv run python -m tests.benchmarks.onnx_scorer

Random weights; differences are on the scale of 0 to 1, that is parts of the labels' range. Backbones: charm_demo, and
by the charm input DINOv2 with registers, SigLIP 2 and DINOv3 of timm's shapes, which have other position embeddings.
"""

import tempfile

import numpy as np

from charm.export import write_export
from charm.onnx_scorer import OnnxScorer
from tests.charm.test_onnx_scorer import EXPORTED, build
from tests.conftest import draw_image

EDGES = np.exp(np.random.default_rng(0).uniform(np.log(5), np.log(3000), (55, 2))).astype(int)


def main() -> None:
    images = [draw_image(int(height), int(width), seed) for seed, (height, width) in enumerate(EDGES)]
    print("| model | largest difference | standard deviation of the scores |\n|---|---|---|")
    for name in EXPORTED:
        scorer = build(name)
        with tempfile.TemporaryDirectory() as folder:
            write_export(folder, scorer.model, scorer.config)
            found = [one.raw for one in OnnxScorer.from_pretrained(folder)(images)]
        expected, (low, high) = [one.raw for one in scorer(images)], scorer.score_range
        difference = np.abs(np.subtract(found, expected)).max() / (high - low)
        print(f"| {name} | {difference:.1e} | {np.std(expected) / (high - low):.3f} |", flush=True)


if __name__ == "__main__":
    main()
