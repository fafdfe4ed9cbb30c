"""The examples in the docstrings run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["tokenization.tokenizer", "tokenization.importance", "tokenization.tokens", "model.pos_embed", "model.vit"]
)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"charm.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
