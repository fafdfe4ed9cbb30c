"""A trained model is used for what it was made for, or refused with what differs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from charm.runtime.errors import UserError
from pipeline.manifest.table import Manifest
from pipeline.settings.models import start_model
from pipeline.settings.params import Params
from pipeline.training.checkpoints import save_model
from pipeline.training.trained import describe_model, load_trained
from tests.conftest import Small


@pytest.fixture
def manifest(packed: Small) -> Manifest:
    return packed.manifest


@pytest.fixture
def folder(shipped_params: Params, manifest: Manifest, tmp_path: Path) -> Path:
    """A model that was trained with the shipped params."""
    model = start_model(shipped_params, num_bins=1)
    save_model(tmp_path, model.state_dict(), describe_model(shipped_params, manifest) | {"best_epoch": 3})
    return tmp_path


def test_it_comes_back(folder: Path, shipped_params: Params, manifest: Manifest) -> None:
    model, config = load_trained(folder, shipped_params, manifest)
    again, _ = load_trained(folder, shipped_params, manifest)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in again.state_dict().items())
    assert config["best_epoch"] == 3
    assert config["labels"] == {"num_bins": 1, "score_range": [0.0, 1.0]}
    assert config["tokens"]["max_seq_len"] == shipped_params.max_seq_len
    assert config["data"]["sha256"] == manifest.facts["sha256"]
    assert config["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_other_data_and_other_ways_of_training_are_no_reason(
    folder: Path, shipped_params: Params, manifest: Manifest
) -> None:
    other = replace(manifest, facts=manifest.facts | {"dataset": "ava", "sha256": "0", "split_sha256": "1"})
    params = replace(shipped_params, seed=7, train=replace(shipped_params.train, epochs=3, loss="mse"))
    load_trained(folder, params, other)


def of_tokens(**changes: Any) -> Callable[[Params], Params]:
    return lambda params: replace(params, tokens=replace(params.tokens, **changes))


@pytest.mark.parametrize(
    ("change", "facts", "differing"),
    [
        pytest.param(
            lambda params: replace(params, backbone="vit_tiny_patch16_224"),
            {},
            "backbone 'charm_demo' (here 'vit_tiny_patch16_224')",
            id="another backbone",
        ),
        pytest.param(
            lambda params: params, {"score_range": [1, 10]}, "labels.score_range [0.0, 1.0] (here [1, 10])", id="range"
        ),
        pytest.param(
            lambda params: params,
            {"num_bins": 10},
            "num_outputs 1 (here 10), labels.num_bins 1 (here 10)",
            id="distributions",
        ),
        pytest.param(of_tokens(coarse_ratio=3), {}, "tokens.coarse_ratio 2 (here 3)", id="another coarse patch"),
        pytest.param(
            of_tokens(num_scales=3), {}, "num_scales 2 (here 3), tokens.num_scales 2 (here 3)", id="another scale"
        ),
        pytest.param(lambda params: replace(params, max_seq_len=512), {}, "tokens.max_seq_len 96 (here 512)", id="l"),
        pytest.param(
            lambda params: replace(params, tokenizer="standard"),
            {},
            "num_scales 2 (here 1), tokens.tokenizer 'charm' (here 'standard')",
            id="another tokenizer",
        ),
        pytest.param(
            lambda params: replace(params, train=replace(params.train, head="mean", normalize=True)),
            {},
            "head 'cls' (here 'mean'), normalize False (here True)",
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
    manifest: Manifest,
) -> None:
    other = replace(manifest, facts=manifest.facts | facts)
    with pytest.raises(UserError) as error:
        load_trained(folder, change(shipped_params), other)
    assert str(error.value) == f"{folder}: the model was made for {differing}; run dvc repro"


def test_a_model_of_an_earlier_version(folder: Path, shipped_params: Params, manifest: Manifest) -> None:
    tensors = start_model(shipped_params, num_bins=1).state_dict()
    save_model(folder, tensors, {"backbone": "charm_demo", "num_scales": 2, "num_outputs": 1, "head": "cls"})
    with pytest.raises(UserError, match="the model was made for normalize None"):
        load_trained(folder, shipped_params, manifest)
