"""From settings to a tokenizer."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from charm.inputs.standard import StandardTokenizer
from charm.runtime.errors import UserError
from charm.tokenization.tokenizer import CharmTokenizer
from pipeline.settings.inputs import build_cutter, build_tokenizer, count_draws
from pipeline.settings.params import EvaluateParams, Params


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


def test_setting_of_the_tokenizer_has_no_other_default(shipped_params: Params) -> None:
    """A field of CharmTokenizer that params.yaml does not name would be out of reach."""
    named = {*asdict(shipped_params.tokens), "patch_size", "max_seq_len", "selection", "sides"}
    assert set(CharmTokenizer.__dataclass_fields__) == named


@pytest.mark.parametrize("training", [False, True])
def test_standard_crops_at_random_in_training_alone(training: bool, shipped_params: Params) -> None:
    tokenizer = build_tokenizer(replace(shipped_params, tokenizer="standard", max_seq_len=100), 14, training)
    assert tokenizer == StandardTokenizer(14, 100, random_crop=training)


def test_patches_that_training_draws_once_are_drawn_anew_in_evaluation(shipped_params: Params) -> None:
    params = replace(shipped_params, tokens=replace(shipped_params.tokens, redraw="once"))
    assert build_cutter(params, 14, training=True).redraw == "once"
    assert build_cutter(params, 14) == replace(build_cutter(params, 14, training=True), redraw="epoch")


@pytest.mark.parametrize(
    ("name", "draws"),
    [("charm", 3), ("ms", 3), ("hr_ms", 3), ("standard", 1), ("standard_384", 1), ("padding", 1)],
)
def test_what_is_not_drawn_is_scored_once(name: Any, draws: int, shipped_params: Params) -> None:
    params = replace(shipped_params, tokenizer=name, evaluate=EvaluateParams(draws=3))
    assert count_draws(params, build_tokenizer(params, 14)) == draws


def test_settings_that_do_not_go_together(shipped_params: Params) -> None:
    tokens = replace(shipped_params.tokens, num_scales=3, coarse_ratio=4)
    with pytest.raises(UserError, match=r"params\.yaml: tokens: num_scales=3 with coarse_ratio=4"):
        build_tokenizer(replace(shipped_params, tokens=tokens), 14)
