"""What a trained model is and its card say; it is used for what it was made for, or refused with what differs."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import timm
import torch
from ruamel.yaml import YAML

from charm.hub import read_model, render_card, write_model_folder
from charm.model.config import METRICS, DataConfig, EvaluationConfig, LabelConfig, ModelConfig, TrainingConfig
from charm.runtime.errors import UserError
from pipeline.settings.models import start_model
from pipeline.settings.params import Params
from pipeline.training.publish import describe_model, load_trained
from tests.conftest import Small

MADE = {"backbone": "charm_demo", "mode": "bicubic", "antialias": True}
TRAINING = TrainingConfig(3, 1024, "timm/vit_small_patch14_dinov2.lvd142m", "apache-2.0")


@pytest.fixture
def inputs(packed: Small) -> Any:
    """What `describe_model` reads of pipeline.training.artifacts.Inputs."""
    return SimpleNamespace(manifest=packed.manifest, pos_embeds=SimpleNamespace(facts=MADE))


@pytest.fixture
def folder(shipped_params: Params, inputs: Any, tmp_path: Path) -> Path:
    """A model that was trained with the shipped params."""
    model = start_model(shipped_params, num_bins=1)
    write_model_folder(tmp_path, model.state_dict(), describe_model(shipped_params, inputs, 14, TRAINING))
    return tmp_path


def with_facts(inputs: Any, **facts: Any) -> Any:
    manifest = replace(inputs.manifest, facts=replace(inputs.manifest.facts, **facts))
    return cast(Any, SimpleNamespace(manifest=manifest, pos_embeds=inputs.pos_embeds))


def test_it_comes_back(folder: Path, shipped_params: Params, inputs: Any) -> None:
    model, saved = load_trained(folder, shipped_params, inputs)
    again, _ = load_trained(folder, shipped_params, inputs)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in again.state_dict().items())
    config, facts = saved.config, inputs.manifest.facts
    assert config.training == TRAINING
    assert config.labels == LabelConfig(1, (0.0, 1.0), 0.5, facts.meaning)
    assert (config.tokenizer.name, config.tokenizer.cutter["max_seq_len"]) == ("charm", shipped_params.max_seq_len)
    assert config.data == DataConfig("csv", facts.sha256, facts.split_sha256, facts.splits)
    assert (config.pos_embeds.mode, config.pos_embeds.antialias) == ("bicubic", True)
    assert (config.draws, config.saliency, config.evaluation) == (1, None, None)
    assert config.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert ModelConfig.from_json(config.to_json()) == config


def test_what_cannot_be_built_here_is_told_in_a_line(
    folder: Path, shipped_params: Params, inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backbone that this version of timm lacks; weights that are not all there."""
    with monkeypatch.context() as patch:
        patch.delitem(timm.models._registry._model_entrypoints, "charm_demo")
        with pytest.raises(UserError, match=r"charm_demo.* is not a model of timm .*; run dvc repro$"):
            load_trained(folder, shipped_params, inputs)
    saved = read_model(folder)
    del saved.tensors["head.weight"]
    write_model_folder(folder, saved.tensors, saved.config)
    with pytest.raises(UserError, match=r"Error\(s\) in loading state_dict.*head\.weight.*; run dvc repro$"):
        load_trained(folder, shipped_params, inputs)


def test_other_data_and_other_ways_of_training_are_no_reason(folder: Path, shipped_params: Params, inputs: Any) -> None:
    params = replace(shipped_params, train=replace(shipped_params.train, epochs=3, loss="mse"))
    load_trained(folder, params, with_facts(inputs, dataset="ava", sha256="0", split_sha256="1"))


def of_tokens(**changes: Any) -> Callable[[Params], Params]:
    return lambda params: replace(params, tokens=replace(params.tokens, **changes))


@pytest.mark.parametrize(
    ("change", "facts", "differing"),
    [
        pytest.param(
            lambda params: replace(params, backbone="vit_tiny_patch16_224"),
            {},
            "model.backbone 'charm_demo' (here 'vit_tiny_patch16_224')",
            id="another backbone",
        ),
        pytest.param(
            lambda params: params,
            {"score_range": (1.0, 10.0)},
            "labels.score_range (0.0, 1.0) (here (1.0, 10.0))",
            id="range",
        ),
        pytest.param(
            lambda params: params,
            {"num_bins": 10},
            "model.num_outputs 1 (here 10), labels.num_bins 1 (here 10)",
            id="distributions",
        ),
        pytest.param(
            of_tokens(coarse_ratio=3), {}, "tokenizer.cutter.coarse_ratio 2 (here 3)", id="another coarse patch"
        ),
        pytest.param(
            of_tokens(num_scales=3),
            {},
            "model.num_scales 2 (here 3), tokenizer.cutter.num_scales 2 (here 3)",
            id="another scale",
        ),
        pytest.param(
            lambda params: replace(params, max_seq_len=512), {}, "tokenizer.cutter.max_seq_len 96 (here 512)", id="l"
        ),
        pytest.param(
            lambda params: replace(params, tokenizer="standard"),
            {},
            "model.num_scales 2 (here 1), model.image_edge None (here 126), tokenizer.name 'charm' (here 'standard'), "
            "tokenizer.settings.edge None (here 144), tokenizer.settings.crop None (here 126), "
            "tokenizer.settings.place None (here 'random'), tokenizer.settings.resize None (here 'shortest'), "
            "tokenizer.cutter.max_seq_len 96 (here 81)",
            id="another tokenizer",
        ),
        pytest.param(
            lambda params: replace(params, train=replace(params.train, head="mean", normalize=True)),
            {},
            "model.head 'cls' (here 'mean'), model.normalize False (here True)",
            id="another head",
        ),
    ],
)
def test_it_is_refused_with_the_fields_that_differ(
    change: Callable[[Params], Params],
    facts: dict[str, Any],
    differing: str,
    folder: Path,
    shipped_params: Params,
    inputs: Any,
) -> None:
    with pytest.raises(UserError) as error:
        load_trained(folder, change(shipped_params), with_facts(inputs, **facts))
    assert str(error.value) == f"{folder}: the model was made for {differing}; run dvc repro"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damage_is_named(name: str, folder: Path, shipped_params: Params, inputs: Any) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name} is .*run dvc repro"):
        load_trained(folder, shipped_params, inputs)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: No such file.*run dvc repro"):
        load_trained(folder, shipped_params, inputs)


@pytest.fixture
def config(shipped_params: Params, inputs: Any) -> ModelConfig:
    """Of a model of distributions, evaluated."""
    changed = with_facts(
        inputs, dataset="ava", num_bins=10, score_range=(1.0, 10.0), splits={"train": 90, "val": 5, "test": 20}
    )
    metrics: dict[str, dict[str, float | None]] = {name: {"value": 0.75, "low": 0.7, "high": 0.8} for name in METRICS}
    described = describe_model(shipped_params, changed, 14, TRAINING)
    return replace(described, evaluation=EvaluationConfig(20, 0.1, metrics))


def test_the_card_is_of_this_model(config: ModelConfig) -> None:
    card = render_card(config)
    _, head, text = card.split("---\n", 2)
    facts = YAML(typ="safe").load(head)
    (results,) = facts.pop("model-index")
    assert [one["value"] for one in results["results"][0]["metrics"]] == [0.75] * 5
    assert facts | {"tags": []} == {
        "library_name": "charm",
        "license": "apache-2.0",
        "pipeline_tag": "image-classification",
        "base_model": "timm/vit_small_patch14_dinov2.lvd142m",
        "datasets": ["ava"],
        "tags": [],
    }
    for said in (
        "a distribution over 10 bins from 1 to 10",
        f"It guesses {config.labels.meaning}",
        "no edge longer than 1024 pixels",
        "| SRCC | 0.750 | 0.700 to 0.800 |",
        "| images | 90 train, 5 val, 20 test |",
        "chosen by `random`",
        "| licence of these weights | apache-2.0 |",
    ):
        assert said in text
    assert "{" not in text


@pytest.mark.parametrize(
    ("dataset", "started_from", "srcc", "expected"),
    [
        ("csv", None, (0.5, 0.3, 0.7), ["The backbone started from random weights"]),
        ("csv", "timm/vit", (0.5, 0.3, 0.7), []),
        ("demo", None, (0.5, 0.3, 0.7), []),
        ("demo", None, (0.1, -0.1, 0.3), ["no better than chance: SRCC 0.100 (-0.100 to 0.300)"]),
        ("ava", "timm/vit", (-0.24, -0.4, -0.1), ["no better than chance: SRCC -0.240 (-0.400 to -0.100)"]),
        ("ava", "timm/vit", (None, None, None), ["no better than chance: SRCC undefined"]),
        ("csv", None, (0.0, 0.0, 0.0), ["The backbone started from random weights", "no better than chance"]),
        ("csv", None, None, ["The backbone started from random weights"]),
    ],
    ids=["no weights", "good", "built in", "built in by chance", "reversed", "undefined", "both", "not evaluated"],
)
def test_what_speaks_against_a_model_is_said_on_its_card(
    dataset: str,
    started_from: str | None,
    srcc: tuple[float | None, ...] | None,
    expected: list[str],
    config: ModelConfig,
) -> None:
    assert config.evaluation is not None
    evaluation = None
    if srcc is not None:
        ends = dict(zip(("value", "low", "high"), srcc, strict=True))
        evaluation = replace(config.evaluation, metrics=config.evaluation.metrics | {"srcc": ends})
    changed = replace(
        config,
        data=replace(config.data, dataset=dataset),
        training=replace(config.training, started_from=started_from),
        evaluation=evaluation,
    )
    assert len(changed.doubts) == len(expected)
    assert all(part in doubt for part, doubt in zip(expected, changed.doubts, strict=True))
    card = render_card(changed)
    assert re.findall(r"^> \*\*Beware\.\*\* (.*)$", card, re.MULTILINE) == changed.doubts


def test_what_is_unknown_is_said(config: ModelConfig) -> None:
    assert config.evaluation is not None
    metrics = config.evaluation.metrics | {"srcc": {"value": None, "low": None, "high": None}}
    changed = replace(
        config,
        evaluation=replace(config.evaluation, metrics=metrics),
        training=replace(config.training, started_from=None, licence=None),
    )
    card = render_card(changed)
    assert "| SRCC | undefined |  |" in card
    assert "license: unknown" in card
    assert "base_model" not in card
    assert "| started from | no weights |" in card
    assert "How good it is" not in render_card(replace(changed, evaluation=None))
