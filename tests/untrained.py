"""Models that nobody trained: their scores differ from image to image, and mean nothing."""

from pathlib import Path
from typing import Any

import torch

from charm.hub import encode_model
from charm.model.vit import CharmViT
from charm.scorer import CharmScorer
from charm.tokenization.tokenizer import CharmTokenizer

SCALES = {"charm": 2, "ms": 2, "hr_ms": 2}  # tokenizer -> how many; 1 for the others


def describe(
    num_outputs: int = 1,
    tokenizer: str = "charm",
    max_edge: int | None = None,
    draws: int = 1,
    **settings: Any,
) -> dict[str, Any]:
    """A config as pipeline.training.publish makes it, but for what people read; `settings` are of CharmTokenizer."""
    cutter = CharmTokenizer(**({"max_seq_len": 48, "budget": "fill"} | settings))
    return {
        "model": {
            "backbone": "charm_demo",
            "num_scales": SCALES.get(tokenizer, 1),
            "num_outputs": num_outputs,
            "head": "cls",
            "normalize": False,
            "pos_embed": "frozen",
        },
        "tokenizer": {"name": tokenizer} | cutter.settings,
        "pos_embeds": {"mode": "bilinear", "antialias": False},
        "labels": {"num_bins": num_outputs, "score_range": [1.0, 5.0], "accuracy_threshold": 0.5},
        "max_edge": max_edge,
        "seed": 0,
        "draws": draws,
        "saliency": None,
        "data": {"dataset": "none", "split_sha256": "", "splits": {}},
    }


def build_scorer(
    *chosen: Any, device: torch.device | str = "cpu", precision: str = "float32", **more: Any
) -> CharmScorer:
    """charm_demo with random weights, the same each time; arguments as for `describe`."""
    config = describe(*chosen, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CharmViT(**{name: value for name, value in config["model"].items() if name != "pos_embed"})
        torch.nn.init.normal_(model.head.weight, std=0.05)  # scores that differ by more than rounding
        torch.nn.init.constant_(model.head.bias, 0.5)
    return CharmScorer(model, config, device, precision)


def write_model(folder: Path, *chosen: Any, **more: Any) -> None:
    """The folder of such a model."""
    scorer = build_scorer(*chosen, **more)
    folder.mkdir(parents=True, exist_ok=True)
    files = encode_model(scorer.model.state_dict(), scorer.config) | {"README.md": b"# A model\n"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
