"""Models that nobody trained: their scores differ from image to image, and mean nothing."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from charm.inputs.registry import build_input
from charm.inputs.settings import SETTINGS
from charm.model.config import (
    DataConfig,
    InputConfig,
    LabelConfig,
    ModelConfig,
    PosEmbedConfig,
    TrainingConfig,
    ViTConfig,
)
from charm.model.vit import CharmViT
from charm.runtime.schema import build
from charm.scorer import CharmScorer
from charm.tokenization.tokenizer import CharmTokenizer

# Input -> settings with which it has few tokens, where its own settings decide how many.
SMALL: dict[str, dict[str, Any]] = {
    "standard": {"edge": 96, "crop": 84, "place": "random", "resize": "shortest"},
    "flexi": {"edge": 80, "crop": 72, "place": "random", "resize": "shortest", "grids": [3, 4, 6], "grid": 6},
    "padding": {"edge": 84},
    "muller": {"edge": 84, "start": "identity", "border": "zero"},
    "musiq": {"edges": [42, 70]},
    "anyres": {"tile": 42, "pinpoints": [[1, 2], [2, 1], [2, 2]]},
}


def describe(
    num_outputs: int = 1,
    tokenizer: str = "charm",
    max_edge: int | None = None,
    draws: int = 1,
    given: dict[str, Any] | None = None,
    **settings: Any,
) -> ModelConfig:
    """A config as pipeline.training.publish makes it; `settings` are of CharmTokenizer, `given` of the input."""
    cutter = CharmTokenizer(**({"max_seq_len": 48, "budget": "fill"} | settings))
    given = given or SMALL.get(tokenizer) or asdict(SETTINGS[tokenizer]())
    made = build_input(tokenizer, given, cutter)
    whole_edge = build(SETTINGS[tokenizer], given).whole_edge
    return ModelConfig(
        model=ViTConfig(
            "charm_demo", made.num_scales, num_outputs, "cls", False, "frozen", whole_edge, made.num_residuals
        ),
        tokenizer=InputConfig(tokenizer, given, cutter.settings),
        pos_embeds=PosEmbedConfig("bilinear", False),
        labels=LabelConfig(num_outputs, (1.0, 5.0), 3.0, "nothing, as nobody trained it"),
        max_edge=max_edge,
        seed=0,
        draws=draws,
        saliency=None,
        data=DataConfig("none", "", "", {}),
        training=TrainingConfig(0, 4000, None, None),
        versions={},
    )


def build_scorer(
    *chosen: Any, device: torch.device | str = "cpu", precision: str = "float32", **more: Any
) -> CharmScorer:
    """charm_demo with random weights, the same each time; arguments as for `describe`."""
    config = describe(*chosen, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CharmViT.from_config(config.model)
        torch.nn.init.normal_(model.head.weight, std=0.05)  # scores that differ by more than rounding
        torch.nn.init.constant_(model.head.bias, 0.9)  # and are within the range
    return CharmScorer(model, config, device, precision)


def write_model(folder: Path, *chosen: Any, **more: Any) -> None:
    """The folder of such a model."""
    build_scorer(*chosen, **more).save_pretrained(folder)
