"""The folder of a trained model: what its config and its card say."""

from typing import Any

import pytest
from ruamel.yaml import YAML

from charm.hub import render_card
from charm.model.metrics import METRICS
from pipeline.settings.params import Params
from pipeline.training.publish import describe_scorer

TRAINED = {
    "backbone": "vit_small_patch14_dinov2.lvd142m",
    "num_scales": 2,
    "num_outputs": 10,
    "head": "cls",
    "normalize": False,
    "pos_embed": "frozen",
    "patch_size": 14,
    "best_epoch": 7,
    "started_from": "timm/vit_small_patch14_dinov2.lvd142m",
    "licence": "apache-2.0",
    "versions": {"torch": "2.15.0", "timm": "1.0.31"},
}
FACTS = {
    "dataset": "ava",
    "num_bins": 10,
    "score_range": [1.0, 10.0],
    "accuracy_threshold": 4 / 9,
    "max_edge": None,
    "split_sha256": "f" * 64,
    "splits": {"train": 90, "val": 5, "test": 20},
}


@pytest.fixture
def config(shipped_params: Params) -> dict[str, Any]:
    ends = {"": 0.75, "_low": 0.7, "_high": 0.8}
    metrics = {f"{name}{end}": value for name in METRICS for end, value in ends.items()} | {"scored": 20, "draws": 2}
    return describe_scorer(shipped_params, FACTS, TRAINED, metrics, {"mode": "bicubic", "antialias": True})


def test_the_config_holds_what_scoring_needs(config: dict[str, Any], shipped_params: Params) -> None:
    assert config["tokenizer"]["name"] == "charm"
    assert config["tokenizer"]["patch_size"] == 14
    assert config["tokenizer"]["max_seq_len"] == shipped_params.max_seq_len
    assert config["pos_embeds"] == {"mode": "bicubic", "antialias": True}
    assert config["model"]["num_outputs"] == 10
    assert (config["draws"], config["saliency"]) == (2, None)
    assert config["metrics"]["krcc"] == {"value": 0.75, "low": 0.7, "high": 0.8}


def test_the_card_is_of_this_model(config: dict[str, Any]) -> None:
    card = render_card(config)
    _, head, text = card.split("---\n", 2)
    assert YAML(typ="safe").load(head) | {"tags": []} == {
        "library_name": "charm",
        "license": "apache-2.0",
        "pipeline_tag": "image-feature-extraction",
        "base_model": "timm/vit_small_patch14_dinov2.lvd142m",
        "tags": [],
    }
    for random_bits in (
        "a distribution over 10 bins from 1 to 10",
        "| SRCC | 0.750 | 0.700 to 0.800 |",
        "| images | 90 train, 5 val, 20 test |",
        "chosen by `random`",
        "| licence of these weights | apache-2.0 |",
    ):
        assert random_bits in text
    assert "{" not in text


def test_what_is_unknown_is_said(config: dict[str, Any]) -> None:
    config["metrics"]["srcc"] = {"value": None, "low": None, "high": None}
    config["training"] |= {"started_from": None, "licence": None}
    card = render_card(config)
    assert "| SRCC | undefined |  |" in card
    assert "license: unknown" in card
    assert "base_model" not in card
    assert "| started from | no weights |" in card
