"""OnnxScorer: CharmScorer's scores without PyTorch, from a folder that is whole or refused in one line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from charm.app.command import app
from charm.export import read_positions
from charm.hub import read_model
from charm.inputs.settings import SETTINGS
from charm.model.config import PosEmbedConfig
from charm.model.positions import PositionTable
from charm.model.registry import build_model
from charm.onnx_scorer import OnnxScorer
from charm.scorer import CharmScorer
from tests.conftest import draw_image
from tests.untrained import describe, write_model

SIZES = ((5, 9), (40, 300), (333, 77), (120, 90), (500, 640))
# Model -> its input, backbone and position embeddings.
EXPORTED: dict[str, dict[str, Any]] = {
    **{name: {"tokenizer": name} for name in SETTINGS if name not in ("muller", "musiq")},
    "musiq": {"tokenizer": "musiq", "backbone": "musiq", "patch_size": 32},
    "charm, distribution": {"tokenizer": "charm", "num_outputs": 5, "draws": 2},
    "charm, bicubic": {"tokenizer": "charm", "made": PosEmbedConfig("bicubic", True), "draws": 2},
    "charm, DINOv2": {"tokenizer": "charm", "backbone": "vit_small_patch14_reg4_dinov2"},
    "charm, SigLIP 2": {
        **{"tokenizer": "charm", "backbone": "vit_base_patch16_siglip_224.v2_webli", "head": "mean"},
        "patch_size": 16,
    },
    "charm, DINOv3": {
        **{"tokenizer": "charm", "backbone": "vit_small_patch16_dinov3", "patch_size": 16},
        "made": PosEmbedConfig("rotary", False),
    },
}


def build(name: str) -> CharmScorer:
    """A model of random weights, whose scores differ from image to image."""
    chosen = dict(EXPORTED[name])
    backbone, head = chosen.pop("backbone", "charm_demo"), chosen.pop("head", "cls")
    made = chosen.pop("made", None)
    described = describe(**chosen)
    config = replace(described, model=replace(described.model, backbone=backbone, head=head))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = build_model(config.model)
        for part, parameter in model.named_parameters():
            if "gamma" in part:  # timm's LayerScale starts so small that blocks would change next to nothing
                torch.nn.init.ones_(parameter)
        torch.nn.init.normal_(model.head.weight, std=0.02)
        torch.nn.init.constant_(model.head.bias, 0.5)
    return CharmScorer(model, replace(config, pos_embeds=made or model.pos_embed_config("bilinear", False)))


Export = Callable[[str], tuple[CharmScorer, Path]]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    made: dict[str, tuple[CharmScorer, Path]] = {}

    def export_once(name: str) -> tuple[CharmScorer, Path]:
        if name not in made:
            scorer, folder = build(name), tmp_path_factory.mktemp("exported") / "made"
            scorer.save_pretrained(folder.with_name("model"))
            ended = CliRunner().invoke(app, ["export", "--model", f"{folder.parent}/model", "--out", str(folder)])
            assert ended.exit_code == 0, ended.output
            made[name] = scorer, folder
        return made[name]

    return export_once


@pytest.mark.parametrize("name", ["charm, distribution", "flexi", "published"])
def test_scores_are_those_of_charm_scorer(name: str, export: Export) -> None:
    """An export takes seconds: tests.benchmarks.onnx_scorer has all inputs, whole backbones and 55 images.

    Of rotary positions see below and tests/charm/test_export.py.
    """
    scorer, folder = export(name)
    images = [draw_image(*size, seed) for seed, size in enumerate(SIZES)]
    found, expected = OnnxScorer.from_pretrained(folder)(images), scorer(images)
    low, high = scorer.score_range
    assert np.std([one.raw for one in expected]) > 0.01
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.raw == pytest.approx(theirs.raw, abs=1e-5 * (high - low))
        assert low <= ours.score <= high
        assert (ours.spread is None) == (theirs.spread is None) == (scorer.draws == 1)
        if theirs.distribution is not None:
            assert ours.distribution == pytest.approx(theirs.distribution, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in EXPORTED if "DINOv2" not in name and "SigLIP" not in name])
def test_positions_are_those_of_charm_scorer(name: str) -> None:
    scorer = build(name)
    table = PositionTable(read_positions(scorer.model), scorer.config.pos_embeds)
    for seed, size in enumerate(SIZES):
        tokens = scorer.tokenize(draw_image(*size, seed))[0]
        expected = scorer.embed_positions([tokens], tokens.seq_len)[0].numpy()
        assert table.embed(tokens, tokens.seq_len) == pytest.approx(expected, abs=1e-6)
        padded = table.embed(tokens, len(tokens.patch_valid))
        assert not padded[tokens.seq_len :].any()


def test_the_file_says_how_to_use_it(export: Export) -> None:
    scorer, folder = export("charm, distribution")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["score_range"]) == [1, 5]
    assert (facts["num_bins"], facts["selection"], facts["pos_embeds"]) == ("5", "random", "bilinear")
    assert json.loads(facts["tokenizer"]) == {"name": "charm", "settings": {}}
    assert json.loads(facts["cutter"]) == scorer.settings.cutter


def test_it_needs_the_core_and_onnxruntime_alone(export: Export, tmp_path: Path) -> None:
    """In a child that has none of the extras but one: every package that they bring is blocked."""
    scorer, folder = export("charm, distribution")
    code = """
import sys
from charm.runtime.errors import EXTRAS
sys.modules |= {name: None for name in EXTRAS if name != "onnxruntime"}
import numpy as np
from charm import Score
from charm.onnx_scorer import OnnxScorer
print(OnnxScorer.from_pretrained(sys.argv[1])(np.load(sys.argv[2])).raw)
"""
    np.save(tmp_path / "image.npy", image := draw_image(150, 220))
    told = subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path / "image.npy"], capture_output=True, text=True, check=True
    )
    assert float(told.stdout) == pytest.approx(scorer(image).raw, abs=4e-5)
    missing = "import sys; sys.modules['onnxruntime'] = None; from charm.onnx_scorer import *"
    ended = subprocess.run([sys.executable, "-c", f"{missing}; OnnxScorer.from_pretrained('x')"], capture_output=True)
    assert b'pip install "charm-vit[onnxruntime]"' in ended.stderr


@pytest.mark.parametrize(
    ("name", "message"), [("model.onnx", r"model\.onnx is damaged"), ("positions.safetensors", "of another export")]
)
def test_what_is_damaged_is_refused_in_a_line(name: str, message: str, export: Export, tmp_path: Path) -> None:
    folder = shutil.copytree(export("charm, distribution")[1], tmp_path / "exported")
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=message) as told:
        OnnxScorer.from_pretrained(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("tokenizer", "out", "told"),
    [("muller", "made", "mixes residuals with the pixels"), ("charm", "model.onnx", "expected the name of a folder")],
)
def test_what_cannot_be_exported_is_refused_in_a_line(tokenizer: str, out: str, told: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model", tokenizer=tokenizer)
    ended = CliRunner().invoke(app, ["export", "--model", f"{tmp_path}/model", "--out", str(tmp_path / out)])
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
    assert told in ended.stderr
    assert not (tmp_path / out).exists()


def test_a_models_folder_and_an_exported_one_are_told_apart(export: Export, model_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no model\.onnx and positions\.safetensors: `charm export` writes them"):
        OnnxScorer.from_pretrained(model_folder)
    folder = export("charm, distribution")[1]
    for read in (CharmScorer.from_pretrained, read_model):
        with pytest.raises(ValueError, match="is what `charm export` wrote, for OnnxScorer: name the model's own"):
            read(folder)
