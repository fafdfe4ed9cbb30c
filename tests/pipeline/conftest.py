"""A model that nobody trained: its scores differ from picture to picture, and mean nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from charm.files import encode_model
from charm.model import CharmViT
from charm.scorer import CharmScorer
from charm.tokenizer import CharmTokenizer


def build_scorer(num_outputs: int = 1, tokenizer: str = "charm", **settings: Any) -> CharmScorer:
    """charm_demo with random weights on 96 tokens, scores from 1 to 5; `settings` are of CharmTokenizer."""
    return CharmScorer(_build_model(num_outputs, tokenizer), _describe(num_outputs, tokenizer, settings))


def _build_model(num_outputs: int, tokenizer: str) -> CharmViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CharmViT(
            "charm_demo", num_scales=2 if tokenizer in ("charm", "ms", "hr_ms") else 1, num_outputs=num_outputs
        )
        torch.nn.init.normal_(model.head.weight, std=0.02)
        torch.nn.init.constant_(model.head.bias, 0.5)
    return model


def _describe(num_outputs: int, tokenizer: str, settings: dict[str, Any]) -> dict[str, Any]:
    """As pipeline.model_folder.describe_scorer; without what people read."""
    cutter = CharmTokenizer(**({"max_seq_len": 96, "budget": "fill", "selection": "gradient"} | settings))
    return {
        "model": {
            "backbone": "charm_demo",
            "num_scales": 2,
            "num_outputs": num_outputs,
            "head": "cls",
            "normalize": False,
            "pos_embed": "frozen",
        },
        "tokenizer": {"name": tokenizer} | cutter.settings,
        "pos_embeds": {"mode": "bilinear", "antialias": False},
        "labels": {"num_bins": num_outputs, "score_range": [1.0, 5.0], "accuracy_threshold": 3.0},
        "max_edge": 300,
        "seed": 0,
        "draws": 2,
        "saliency": None,
        "data": {"dataset": "none", "split_sha256": "", "splits": {}},
    }


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a model; read only."""
    folder = tmp_path_factory.mktemp("model")
    for name, data in encode_model(_build_model(1, "charm").state_dict(), _describe(1, "charm", {})).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def scorer(served_folder: Path) -> CharmScorer:
    return CharmScorer.from_pretrained(str(served_folder))
