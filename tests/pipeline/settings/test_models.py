"""Models from params: what they start from, and on which device."""

import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from charm.hub import read_model, write_model_folder
from charm.inputs.settings import QuadtreeSettings
from charm.model import registry
from charm.model.backbones import create_backbone
from charm.runtime import waiting
from charm.runtime.errors import UserError
from pipeline.settings.inputs import build_tokenizer
from pipeline.settings.models import build_model, describe_changes, describe_start, start_model, vit_config
from pipeline.settings.params import Params
from tests.hub import StubHub
from tests.silent import serve
from tests.untrained import describe


def test_training_starts_from_the_weights_of_a_file(shipped_params: Params, tmp_path: Path) -> None:
    """Which stand in for published ones: nothing is downloaded."""
    backbone = create_backbone("charm_demo")
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter)
    save_file(backbone.state_dict(), tmp_path / "w.safetensors")
    params = replace(shipped_params, pretrained=True, checkpoint=str(tmp_path / "w.safetensors"))
    found = start_model(params, num_bins=1).vit.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in backbone.state_dict().items())
    with pytest.raises(UserError, match="not checkpoint_sha256: 0"):
        start_model(replace(params, checkpoint_sha256="0"), num_bins=1)


def begin_from(folder: Path, params: Params, num_bins: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a model that starts from a folder, and of the folder."""
    started = start_model(replace(params, checkpoint=str(folder)), num_bins, score=0.25)
    return started.state_dict(), read_model(folder).tensors


def test_training_goes_on_from_a_model_of_ours(shipped_params: Params, model_folder: Path) -> None:
    """All of it where the labels are alike, on whatever scale; nothing is said then."""
    found, trained = begin_from(model_folder, shipped_params)
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], trained[name]) for name in trained)
    params = replace(shipped_params, checkpoint=str(model_folder))
    assert describe_changes(params, num_bins=1) == []
    assert describe_start(params, start_model(params, num_bins=1)) == ("charm_demo trained on none", None)


def test_training_goes_on_from_a_model_of_the_hub(hub: StubHub, shipped_params: Params, model_folder: Path) -> None:
    """Which is asked once in a run: other weights that come there meanwhile are of no run that has begun."""
    hub.repositories["me/start"] = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    params = replace(shipped_params, checkpoint="me/start")
    found, trained = start_model(params, num_bins=1).state_dict(), read_model(model_folder).tensors
    assert all(torch.equal(found[name], trained[name]) for name in trained)
    asked = len(hub.asked)
    assert describe_changes(params, num_bins=1) == []
    assert len(hub.asked) == asked
    for missing, told in {"me/gone": "cannot download", "me/w.pth": "w.pth: No such file"}.items():
        with pytest.raises(UserError, match=told):
            start_model(replace(params, checkpoint=missing), num_bins=1)


def test_a_head_for_another_activation_begins_anew(shipped_params: Params, tmp_path: Path) -> None:
    """As of the published checkpoints, whose outputs are logits of a score."""
    config = describe()
    write_model_folder(
        tmp_path,
        build_model(config.model).state_dict(),
        replace(config, model=replace(config.model, activation="sigmoid")),
    )
    found, _ = begin_from(tmp_path, shipped_params)
    assert found["head.bias"].tolist() == [0.25]


@pytest.mark.parametrize(
    ("changes", "num_bins", "anew", "said"),
    [
        pytest.param({}, 5, {"head"}, ["a new head (cls, 5 outputs; it had cls, 1)"], id="distributions"),
        pytest.param({"train.head": "cls_mean"}, 1, {"head"}, ["a new head (cls_mean, 1 outputs; "], id="head"),
        pytest.param(
            {"tokens.num_scales": 3}, 1, {"scale_embed"}, ["new scale embeddings (3 scales; it had 2)"], id="3"
        ),
        pytest.param(
            {"tokenizer": "standard", "max_seq_len": None},
            1,
            {"scale_embed", "mask_token"},
            ["new scale embeddings (1 scales; it had 2)", "tokenizer: standard (it had charm)"],
            id="input",
        ),
        pytest.param(
            {"tokenizer": "quadtree", "inputs.quadtree": QuadtreeSettings(levels=2)},
            1,
            {"scale_embed"},
            ["new scale embeddings (of quadtree; it had those of charm)", "tokenizer: quadtree (it had charm)"],
            id="as many scales of another input, which stand for something else",
        ),
        pytest.param({"tokens.coarse_ratio": 4}, 1, set(), ["tokens.coarse_ratio: 4 (it had 2)"], id="ratio"),
    ],
)
def test_what_another_task_changes_of_a_model_of_ours_is_said(
    changes: dict[str, Any],
    num_bins: int,
    anew: set[str],
    said: list[str],
    shipped_params: Params,
    model_folder: Path,
) -> None:
    params = shipped_params
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        changed = replace(getattr(params, section), **{name: value}) if section else value
        params = replace(params, **{section or name: changed})
    found, trained = begin_from(model_folder, params, num_bins)
    kept = {name for name in found if name in trained and torch.equal(found[name], trained[name])}
    assert {name.split(".")[0] for name in trained.keys() - kept} == anew
    assert {name for name in trained if name.startswith("vit.")} <= kept
    changes_said = describe_changes(replace(params, checkpoint=str(model_folder)), num_bins)
    assert len(changes_said) == len(said)
    assert all(one.startswith(start) for one, start in zip(changes_said, said, strict=True))


def test_scales_of_a_published_model_are_not_those_of_charm(shipped_params: Params, tmp_path: Path) -> None:
    """Its first one is of padding: as many, and of the same shape, as charm has at three scales."""
    config = describe(tokenizer="published")
    write_model_folder(tmp_path, build_model(config.model).state_dict(), config)
    params = replace(shipped_params, tokens=replace(shipped_params.tokens, num_scales=3))
    found, trained = begin_from(tmp_path, params)
    assert found["scale_embed"].shape == trained["scale_embed"].shape
    assert not torch.equal(found["scale_embed"], trained["scale_embed"])
    assert torch.equal(found["vit.pos_embed"], trained["vit.pos_embed"])
    said = describe_changes(replace(params, checkpoint=str(tmp_path)), num_bins=1)
    assert said[0] == "new scale embeddings (of charm; it had those of published)"


def test_a_new_head_begins_with_the_score_of_the_labels(shipped_params: Params, model_folder: Path) -> None:
    for head in ("cls_mean", "mean"):  # of another width, and of the same
        train = replace(shipped_params.train, head=head)
        found, _ = begin_from(model_folder, replace(shipped_params, train=train))
        assert found["head.bias"].tolist() == [0.25]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"backbone": "vit_tiny_patch16_224"}, "is a model of charm_demo: set backbone to it"),
        ({"checkpoint_sha256": "0" * 64}, "and not that of checkpoint_sha256"),
        ({"checkpoint": "{}/.."}, "config.json: No such file or directory; expected a file of weights, or a model's"),
        ({"checkpoint": "{}-damaged"}, "is damaged, or not the file that config.json describes"),
    ],
)
def test_a_model_of_ours_that_does_not_fit_is_refused(
    changes: dict[str, str], problem: str, shipped_params: Params, model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    damaged = Path(shutil.copytree(model_folder, tmp_path / "model-damaged"), "model.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    given = {name: value.format(tmp_path / "model") for name, value in changes.items()}
    with pytest.raises(UserError, match=re.escape(problem)):
        start_model(replace(shipped_params, **{"checkpoint": str(tmp_path / "model")} | given), num_bins=1)


def test_a_relative_checkpoint_is_found_in_a_queued_experiment(
    shipped_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which runs in a copy of the repository, where files that git does not know are not."""
    save_file(create_backbone("charm_demo").state_dict(), tmp_path / "w.safetensors")
    copy = tmp_path / ".dvc/tmp/exps/x1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(copy))
    start_model(replace(shipped_params, checkpoint="w.safetensors"), num_bins=1)


def test_the_settings_of_the_model_reach_it(shipped_params: Params) -> None:
    train = replace(shipped_params.train, head="mean", pos_embed="trainable", normalize=True)
    params = replace(shipped_params, backbone="vit_tiny_patch16_224", train=train)
    model = build_model(vit_config(params, num_bins=5))
    assert (model.head_kind, model.head.out_features, model.pos_embed.requires_grad) == ("mean", 5, True)
    assert model.pixel_mean is not None


@pytest.mark.parametrize(
    ("setting", "scales", "trains"), [("learnt", 2, True), ("frozen", 2, False), ("none", 1, None)]
)
def test_the_scale_embedding_is_learnt_frozen_or_left_out(
    setting: Any, scales: int, trains: bool | None, shipped_params: Params
) -> None:
    params = replace(shipped_params, train=replace(shipped_params.train, scale_embed=setting))
    model = start_model(params, num_bins=1)
    assert vit_config(params, 1).num_scales == scales
    assert (None if model.scale_embed is None else model.scale_embed.requires_grad) == trains
    assert model.head.weight.requires_grad


def test_additive_position_embeddings_are_the_nearest_sum_of_rows_and_columns(shipped_params: Params) -> None:
    """By least squares, solved without the closed form; the prefix stays."""
    params = replace(shipped_params, backbone="vit_tiny_patch16_224", pretrained=False)
    torch.manual_seed(1)
    plain = start_model(params, num_bins=1)
    torch.manual_seed(1)
    fitted = start_model(replace(params, pos_embeds=replace(params.pos_embeds, fit="additive")), num_bins=1)
    side = len(plain.learnt_grid)
    y, x = np.divmod(np.arange(side * side), side)
    design = np.concatenate([np.eye(side)[y], np.eye(side)[x]], axis=1)
    grid = plain.learnt_grid.detach().numpy().reshape(side * side, -1)
    expected = design @ np.linalg.lstsq(design, grid, rcond=None)[0]
    np.testing.assert_allclose(fitted.learnt_grid.detach().numpy().reshape(side * side, -1), expected, atol=1e-6)
    assert torch.equal(fitted.pos_embed[:, :1], plain.pos_embed[:, :1])
    assert not np.allclose(grid, expected, atol=1e-3)
    rotary = replace(params, backbone="vit_small_patch16_dinov3", pos_embeds=replace(params.pos_embeds, fit="additive"))
    with pytest.raises(UserError, match=r"pos_embeds\.fit: vit_small_patch16_dinov3 has learnt no position embeddings"):
        start_model(rotary, num_bins=1)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        pytest.param("vit_base_patch16_siglip_224", "this backbone has none: choose mean", id="no CLS token"),
        pytest.param("swin_tiny_patch4_window7_224", "section 20.*needs an input that shows whole images", id="swin"),
        pytest.param("vit_smal_patch14_dinov2", "vit_small_patch14_dinov2", id="typo"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(backbone: str, message: str, shipped_params: Params) -> None:
    with pytest.raises(UserError, match=message) as error:
        start_model(replace(shipped_params, backbone=backbone, pretrained=False), num_bins=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backbone", ["musiq", "vit_base_patch32_plus_256", "convnextv2_small"])
def test_weights_that_nobody_published_are_refused_at_once(
    backbone: str, shipped_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not random ones trained as if they were: nobody is asked for them."""
    monkeypatch.setattr(registry, "reaching_hub", lambda: pytest.fail("asks the hub"))
    config = vit_config(replace(shipped_params, backbone=backbone), num_bins=1)
    with pytest.raises(UserError, match="No pretrained weights exist"):
        build_model(replace(config, image_edge=224, head="mean"), pretrained=True)


@pytest.mark.parametrize("network", ["refused", "silent", "no such name"])
def test_a_missing_network_is_told_soon(network: str, shipped_params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself, the hub's client tries for 24 s per file."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(waiting, "_HUB_PATIENCE", 2.0)
    with serve() as silent:
        address = {"refused": "127.0.0.1:9", "silent": silent, "no such name": "hub.invalid"}[network]
        monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
        params = replace(shipped_params, backbone="vit_tiny_patch16_224.augreg_in21k_ft_in1k")
        started = time.monotonic()
        with pytest.raises(UserError, match=f"downloaded .http://{address} cannot be reached: .*; no network"):
            start_model(params, num_bins=1)
        assert time.monotonic() - started < 10
    assert constants.HF_HUB_OFFLINE is False  # of other repositories, and of this one later, nothing is known


def test_any_answer_is_an_answer_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as address:
        monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
        with waiting.reaching_hub() as missing:
            assert missing == ""
    assert constants.HF_HUB_OFFLINE is False


def test_a_backbone_for_whole_images_is_built_for_the_inputs_size(shipped_params: Params) -> None:
    """Which the recipe of charm_demo does not set for it; a length that suits its patches alone is right, too."""
    train = replace(shipped_params.train, head="mean", normalize=True)
    block = replace(shipped_params.inputs.standard, edge=256, crop=224)
    params = replace(
        shipped_params,
        tokenizer="standard",
        inputs=replace(shipped_params.inputs, standard=block),
        backbone="test_resnet",
        pretrained=False,
        max_seq_len=196,
        train=train,
    )
    model = start_model(params, num_bins=10)
    assert (vit_config(params, 10).image_edge, model.patch_size, model.head.out_features) == (224, 16, 10)
    assert build_tokenizer(params, model.patch_size).max_seq_len == 196
    additive = replace(params, pos_embeds=replace(params.pos_embeds, fit="additive"))
    with pytest.raises(UserError, match=r"pos_embeds\.fit: test_resnet has learnt no position embeddings"):
        start_model(additive, num_bins=10)


def test_the_licence_is_that_of_the_weights_that_training_starts_from(shipped_params: Params) -> None:
    facts = {"hf_hub_id": "timm/vit", "license": "apache-2.0"}
    known = cast(Any, SimpleNamespace(backbone=SimpleNamespace(pretrained_cfg=facts)))
    published = replace(shipped_params, backbone="vit_small_patch14_dinov2.lvd142m")
    assert describe_start(published, known) == ("timm/vit", "apache-2.0")
    unknown = (None, None)
    assert describe_start(replace(published, pretrained=False), known) == unknown
    assert describe_start(shipped_params, build_model(vit_config(shipped_params, 1), pretrained=True)) == unknown
    from_file = replace(published, checkpoint="weights/own.pth")
    assert describe_start(from_file, known) == ("own.pth", None)
