"""A model's folder comes back as it was written, or not at all."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from charm.hub import encode_model, read_model
from charm.model.config import DataConfig, ModelConfig
from tests.untrained import describe

TENSORS = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.ones(2)}
CONFIG = replace(describe(), seed=3, data=DataConfig("épreuves", "", "", {"train": 4}))


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, encode_model(TENSORS, CONFIG))


def test_it_comes_back(folder: Path) -> None:
    saved = read_model(folder)
    assert saved.config == CONFIG
    assert saved.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(saved.tensors[name], TENSORS[name]) for name in TENSORS)


def test_equal_models_are_equal_bytes() -> None:
    backwards = dict(reversed(TENSORS.items()))
    again = ModelConfig.from_json(dict(reversed(CONFIG.to_json().items())))
    assert encode_model(TENSORS, CONFIG) == encode_model(backwards, again)


def test_every_flipped_bit_and_every_cut_is_noticed(folder: Path) -> None:
    """But in the white space of config.json, where it changes nothing that is read."""
    accepted = []
    files = encode_model(TENSORS, CONFIG)
    for name, whole in ((name, files[name]) for name in ("config.json", "model.safetensors")):
        for place in range(len(whole)):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            for damaged in (bytes(flipped), whole[:place]):
                (folder / name).write_bytes(damaged)
                with contextlib.suppress(ValueError):
                    accepted.append(read_model(folder))
        (folder / name).write_bytes(whole)
    expected = read_model(folder)
    for found in accepted:
        assert (found.config, found.weights_sha256) == (expected.config, expected.weights_sha256)
        assert all(torch.equal(found.tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"seed": 4}, "not as it was written: damaged, or changed by hand", id="another value"),
        pytest.param({"config_sha256": None}, "not as it was written", id="no checksum"),
    ],
)
def test_a_config_that_was_changed_is_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    with pytest.raises(ValueError, match=message):
        read_model(folder)


@pytest.mark.parametrize("text", ["[]", "{}", "null", "no JSON", '{"config_sha256": "0"}', "[" * 100_000])
def test_what_is_no_config_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"not the description of a Charm model, or damaged|not as it was written"):
        read_model(folder)


def test_tensors_of_another_model_are_refused(folder: Path) -> None:
    other = encode_model({"head.bias": torch.zeros(2)}, CONFIG)
    (folder / "model.safetensors").write_bytes(other["model.safetensors"])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged, or not the file that config\.json describes"):
        read_model(folder)
