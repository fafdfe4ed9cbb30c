"""A model's folder comes back as it was written, or not at all."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants

from charm import CharmScorer
from charm.app.reading import load_preparation, load_scorer
from charm.hub import MODEL_FILES, encode_model, publish_folder, read_model, render_card
from charm.model.config import METRICS, DataConfig, EvaluationConfig, ModelConfig
from charm.published import CHECKPOINTS, REPOSITORY, import_checkpoint
from charm.runtime.errors import UserError
from tests.hub import COMMIT, StubHub
from tests.pickles import save_published
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


def test_a_model_is_published_and_fetched_by_its_name(
    hub: StubHub, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again without the hub; the token is that of the environment, and code is never fetched."""
    hub.needed = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert publish_folder(model_folder, "me/model", private=True) == f"{hub.address}/me/model"
    assert hub.created[0]["name"] == "model"
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    files = hub.repositories["me/model"]
    assert files == {name: (model_folder / name).read_bytes() for name in MODEL_FILES}
    files |= {"modeling.py": b"import os", "pytorch_model.bin": b"x"}

    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    expected = CharmScorer.from_pretrained(model_folder, "cpu")(image)
    assert CharmScorer.from_pretrained("me/model", "cpu")(image) == expected
    assert not [asked for asked in hub.asked if "modeling" in asked or "pytorch_model" in asked]
    assert set(hub.tokens) <= {"secret", None}
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    assert load_scorer("me/model", "cpu")(image) == expected
    assert constants.HF_HUB_OFFLINE is False  # for others in this process, or when the hub is back
    assert load_preparation("me/model").patch_size == 14


def test_a_revision_is_asked_for(hub: StubHub, model_folder: Path) -> None:
    hub.repositories["me/model"] = {name: (model_folder / name).read_bytes() for name in MODEL_FILES}
    hub.revisions = ("v1", COMMIT)
    assert CharmScorer.from_pretrained("me/model", "cpu", revision="v1").config == read_model(model_folder).config
    with pytest.raises(UserError, match=r"cannot download .*/me/model at v2 \(.*\): there is no folder me/model here"):
        CharmScorer.from_pretrained("me/model", "cpu", revision="v2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "me/nothing",
            r"cannot download http://127\.0\.0\.1:\d+/me/nothing \(.+\): there is no folder me/nothing here",
        ),
        ("no/such/folder", r"no/such/folder/config\.json: No such file or directory; name a model's folder"),
    ],
)
def test_a_model_that_is_nowhere_is_one_line(name: str, message: str, hub: StubHub) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_scorer(name)
    assert "\n" not in str(error.value)


def test_weights_that_changed_on_the_way_are_refused(hub: StubHub, model_folder: Path) -> None:
    hub.repositories["me/model"] = {name: (model_folder / name).read_bytes() for name in MODEL_FILES}
    hub.repositories["me/model"]["model.safetensors"] = b"\0" * 500
    with pytest.raises(UserError, match=r"model\.safetensors is (damaged|no safetensors file)"):
        load_scorer("me/model")


def test_only_a_whole_model_is_published(hub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="is damaged"):
        publish_folder(folder, "me/model")
    assert hub.asked == []
    write(folder, encode_model(TENSORS, CONFIG))
    hub.needed = "another"
    with pytest.raises(
        UserError, match=r"cannot publish to .*/me/model \(.*\): name it user/name; `hf auth login`"
    ) as error:
        publish_folder(folder, "me/model")
    assert "\n" not in str(error.value)


def test_a_published_checkpoint_is_imported_by_its_name(hub: StubHub, tmp_path: Path) -> None:
    """Of the repository two files alone are fetched; the second time none."""
    save_published(tmp_path)
    hub.repositories[REPOSITORY] = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    scorer = import_checkpoint("koniq10k")
    fetched = [asked for asked in hub.asked if asked.startswith("GET") and "/resolve/" in asked]
    assert sorted(asked.rpartition("/")[2] for asked in fetched) == ["dino_small_pos.pt", "koniq10k_charm.pth"]
    assert scorer.config.data.dataset == "koniq10k"
    assert "best epoch" not in render_card(scorer.config)  # nor what else nobody knows of it
    hub.asked.clear()
    import_checkpoint("koniq10k")
    assert not [asked for asked in hub.asked if asked.startswith("GET") and "/resolve/" in asked]
    assert {one.file for one in CHECKPOINTS.values()} >= {"Ava_large_charm.pth", "koniq10k_charm.pth"}


def test_the_head_of_a_card_is_the_hubs() -> None:
    found = {name: {"value": 0.5, "low": 0.25, "high": 0.75} for name in METRICS}
    found["krcc"] = dict.fromkeys(("value", "low", "high"))
    card = ModelCard(render_card(replace(CONFIG, evaluation=EvaluationConfig(9, None, found))))
    assert (card.data.library_name, card.data.pipeline_tag, card.data.datasets) == (
        "charm",
        "image-classification",
        ["épreuves"],
    )
    results = {one.metric_type: (one.metric_value, one.metric_name) for one in card.data.eval_results or []}
    assert results["spearmanr"] == (0.5, "SRCC (95 % interval 0.250 to 0.750)")
    assert set(results) == {"pearsonr", "spearmanr", "accuracy", "mae"}
