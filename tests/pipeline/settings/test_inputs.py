"""From settings to a tokenizer."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from charm.inputs.settings import StandardSettings
from charm.inputs.standard import StandardInput
from charm.runtime.errors import UserError
from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.settings.inputs import build_cutter, build_tokenizer, count_draws
from pipeline.settings.params import EvaluateParams, Params, load_params


def test_every_setting_arrives(shipped_params: Params) -> None:
    tokens = replace(
        shipped_params.tokens,
        coarse_ratio=3,
        budget="fill",
        native_share=0.25,
        threshold=1.5,
        drop="low_first",
        fit="pad",
        saliency_coverage=0.75,
        redraw="once",
    )
    tokenizer = build_tokenizer(replace(shipped_params, tokens=tokens, max_seq_len=99, selection="entropy"), 16, True)
    assert isinstance(tokenizer, CharmTokenizer)
    assert {name: getattr(tokenizer, name) for name in asdict(tokens)} == asdict(tokens)
    assert (tokenizer.patch_size, tokenizer.max_seq_len, tokenizer.selection) == (16, 99, "entropy")


NUMBERS = st.one_of(
    st.integers(-1, 5),
    st.sampled_from(
        [0.0, 1e-7, 1e-6, 0.5, 1.0, 1.0000001, 2**16, 2**16 + 1, 2**20, 2**20 + 1, 1e300, float("nan"), float("inf")]
    ),
)
WORDS = st.sampled_from(["fixed", "fill", "share", "uniform", "low_first", "nearest", "pad", "epoch", "once", "", "no"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_accepted_at_the_door_is_accepted_by_the_tokenizer(data: st.DataObject, tmp_path: Path) -> None:
    """And what is refused there, the tokenizer refuses, too. One or two settings have any value."""
    document = YAML(typ="safe").load(Path(__file__).parents[3] / "params.yaml")
    document["importance"]["frequency"]["coarse_patch_sizes"] = [28, 42, 56]
    document["tokens"]["budget"] = "fixed"
    document["evaluate"]["draws"] = 1  # more leave less room for tokens
    names = [*document["tokens"], "max_seq_len", "selection"]
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        value = data.draw(st.one_of(NUMBERS, WORDS, st.none(), st.booleans(), st.just([1])))
        (document["tokens"] if name in document["tokens"] else document)[name] = value
    file = tmp_path / "params.yaml"
    YAML(typ="safe").dump(document, file)
    wanted = document["tokens"] | {"max_seq_len": document["max_seq_len"], "selection": document["selection"]}
    if wanted["max_seq_len"] == "auto":
        wanted["max_seq_len"] = 96
    try:
        CharmTokenizer(patch_size=14, **wanted)
    except ValueError:
        with pytest.raises(UserError):
            load_params(file)
    else:
        build_cutter(load_params(file), 14)


def test_setting_of_the_tokenizer_has_no_other_default(shipped_params: Params) -> None:
    """A field of CharmTokenizer that params.yaml does not name would be out of reach."""
    named = {*asdict(shipped_params.tokens), "patch_size", "max_seq_len", "selection", "sides"}
    assert set(CharmTokenizer.__dataclass_fields__) == named


@pytest.mark.parametrize("training", [False, True])
def test_standard_crops_at_random_in_training_alone(training: bool, shipped_params: Params) -> None:
    tokenizer = build_tokenizer(replace(shipped_params, tokenizer="standard"), 14, training)
    assert tokenizer == StandardInput(14, StandardSettings(144, 126), training)


def test_patches_that_training_draws_once_are_drawn_anew_in_evaluation(shipped_params: Params) -> None:
    params = replace(shipped_params, tokens=replace(shipped_params.tokens, redraw="once"))
    assert build_cutter(params, 14, training=True).redraw == "once"
    assert build_cutter(params, 14) == replace(build_cutter(params, 14, training=True), redraw="epoch")


@pytest.mark.parametrize(
    ("name", "draws"),
    [("charm", 3), ("square", 3), ("standard", 1), ("padding", 1), ("naflex", 1), ("anyres", 1), ("quadtree", 1)],
)
def test_what_is_not_drawn_is_scored_once(name: Any, draws: int, shipped_params: Params) -> None:
    params = replace(shipped_params, tokenizer=name, evaluate=EvaluateParams(draws=3))
    assert count_draws(params, build_tokenizer(params, 14)) == draws


def test_settings_that_do_not_go_together(shipped_params: Params) -> None:
    tokens = replace(shipped_params.tokens, num_scales=3, coarse_ratio=4)
    with pytest.raises(UserError, match=r"params\.yaml: tokens: num_scales=3 with coarse_ratio=4"):
        build_tokenizer(replace(shipped_params, tokens=tokens), 14)
