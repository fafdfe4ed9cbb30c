"""The examples in the docstrings and in the README run."""

import doctest
import importlib
from pathlib import Path

import pytest

import charm


@pytest.mark.parametrize(
    "name", ["tokenization.tokenizer", "tokenization.importance", "tokenization.tokens", "model.pos_embed", "model.vit"]
)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"charm.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_the_example_of_a_batch_in_the_readme() -> None:
    result = doctest.testfile(str(Path(charm.__file__).with_name("README.md")), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0
