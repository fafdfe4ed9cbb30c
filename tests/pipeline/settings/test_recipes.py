"""`auto`: the paper's settings of each data set, the built-in run's, and params.yaml before either."""

import re
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from charm.runtime.errors import UserError
from pipeline.datasets import READERS
from pipeline.settings.params import Params, load_params
from pipeline.settings.recipes import AUTO_KEYS, DATASETS, choose_recipe

ROOT = Path(__file__).parents[3]
SHIPPED = (ROOT / "params.yaml").read_text()
OF_IMAGES = ("max_edge", "val_share", "leaks")


def load(folder: Path, **changed: str) -> Params:
    """The shipped file with the first line of each key changed, at any depth."""
    text = SHIPPED
    for key, value in changed.items():
        text, count = re.subn(rf"^( *{key}:).*$", rf"\1 {value}", text, count=1, flags=re.MULTILINE)
        assert count == 1, key
    (folder / "params.yaml").write_text(text)
    return load_params(folder / "params.yaml")


def value_of(params: Params, key: str) -> Any:
    found: Any = params
    for name in key.split("."):
        found = getattr(found, name)
    return found


OWN = {"demo", "csv", "hf", "folder", "stars"}


def test_each_reader_has_a_recipe() -> None:
    assert DATASETS.keys() == READERS.keys()


# Section 4.2 of the paper: l, batch, learning rate; 4.3: maximum edge.
@pytest.mark.parametrize(
    ("dataset", "max_seq_len", "batch_size", "learning_rate", "max_edge", "val_share"),
    [
        ("ava", 512, 64, 1e-5, None, 0.05),
        ("para", 1024, 16, 1e-5, 1024, 0.05),
        ("tad66k", 768, 32, 1e-5, None, 0.05),
        ("aadb", 1024, 16, 1e-5, None, 0.05),
        ("baid", 1024, 16, 1e-6, None, 0.05),
        ("spaq", 1024, 16, 1e-5, 1024, 0.05),
        ("koniq10k", 1024, 16, 1e-5, None, 0.05),
        ("csv", 1024, 16, 1e-5, 1024, 0.1),
        ("hf", 1024, 16, 1e-5, 1024, 0.1),
        ("folder", 1024, 16, 1e-5, 1024, 0.1),
        ("stars", 1024, 16, 1e-5, 1024, 0.1),
        ("demo", 1024, 16, 1e-5, None, 0.1),
    ],
)
def test_two_lines_give_the_papers_settings(
    dataset: str,
    max_seq_len: int,
    batch_size: int,
    learning_rate: float,
    max_edge: int | None,
    val_share: float,
    tmp_path: Path,
) -> None:
    params = load(tmp_path, dataset=dataset, backbone="vit_small_patch14_dinov2.lvd142m")
    assert (params.max_seq_len, params.manifest.max_edge, params.manifest.val_share) == (
        max_seq_len,
        max_edge,
        val_share,
    )
    assert (params.train.batch_size, params.train.learning_rate) == (batch_size, learning_rate)
    assert params.manifest.leaks == ("refuse" if dataset in OWN else "allow")
    assert (params.train.epochs, params.train.warmup_epochs, params.train.weight_decay) == (30, 0, 0.02)
    assert (params.train.clip_norm, params.train.min_learning_rate) == (1.0, 1e-6)
    assert (params.train.flip, params.train.rotate, params.train.loss, params.train.head) == (0.5, 0.5, "auto", "cls")
    assert (params.tokens.budget, params.tokens.coarse_ratio, params.tokens.num_scales) == ("fixed", 2, 2)
    assert (params.selection, params.tokenizer, params.tokens.threshold) == ("random", "charm", 2.0)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_built_in_backbone_has_its_own_recipe_with_any_data_set(dataset: str, tmp_path: Path) -> None:
    params = load(tmp_path, dataset=dataset)
    assert (params.backbone, params.max_seq_len, params.tokens.budget) == ("charm_demo", 96, "share")
    assert (params.train.epochs, params.train.batch_size, params.train.learning_rate) == (20, 16, 1e-3)
    assert (params.train.warmup_epochs, params.train.weight_decay) == (3, 0.05)


@pytest.mark.parametrize(
    ("epochs", "warmup_epochs"), [("auto", 3.0), ("20", 3.0), ("50", 3.0), ("10", 1.5), ("2", 0.3), ("1", 0.15)]
)
def test_a_short_run_has_a_short_warm_up(epochs: str, warmup_epochs: float, tmp_path: Path) -> None:
    assert load(tmp_path, epochs=epochs).train.warmup_epochs == pytest.approx(warmup_epochs)
    assert load(tmp_path, epochs=epochs, backbone="vit_tiny_patch16_224").train.warmup_epochs == 0


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_images_do_not_depend_on_the_backbone(dataset: str) -> None:
    built_in, paper = (choose_recipe(dataset, backbone) for backbone in ("charm_demo", "vit_tiny_patch16_224"))
    assert built_in.keys() == paper.keys() == AUTO_KEYS
    of_images = {key for key in AUTO_KEYS if key.startswith("manifest.")}
    assert of_images == {"manifest.max_edge", "manifest.val_share", "manifest.leaks"}
    assert all(built_in[key] == paper[key] for key in of_images)


@pytest.mark.parametrize(
    ("dataset", "num_bins", "score_range", "accuracy_threshold"),
    [
        ("ava", 10, (1, 10), 5),
        ("para", 9, (1, 5), 3),
        ("tad66k", 1, (0, 10), 5),
        ("aadb", 1, (0, 1), 0.5),
        ("baid", 1, (0, 10), 5),
        ("spaq", 1, (0, 100), 50),
        ("koniq10k", 1, (0, 100), 37.5),
    ],
)
def test_labels(dataset: str, num_bins: int, score_range: tuple[float, float], accuracy_threshold: float) -> None:
    recipe = DATASETS[dataset]
    assert (recipe.num_bins, recipe.score_range, recipe.accuracy_threshold) == (
        num_bins,
        score_range,
        accuracy_threshold,
    )


# What the published code divides a label by, and the scale that its labels begin at.
@pytest.mark.parametrize(
    ("dataset", "divisor", "published_range"),
    [
        ("tad66k", 10, (0, 10)),
        ("aadb", 1, (0, 1)),
        ("baid", 10, (0, 10)),
        ("spaq", 100, (0, 100)),
        ("koniq10k", 5, (1, 5)),
    ],
)
def test_good_is_above_half_of_the_published_codes_score(
    dataset: str, divisor: float, published_range: tuple[float, float]
) -> None:
    recipe, (first, last) = DATASETS[dataset], published_range
    low, high = recipe.score_range
    assert recipe.accuracy_threshold == low + (0.5 * divisor - first) / (last - first) * (high - low)


def test_the_shipped_file_leaves_every_key_of_a_recipe_to_it() -> None:
    shipped = YAML(typ="safe").load(SHIPPED)
    for key in AUTO_KEYS:
        assert reduce(getitem, key.split("."), shipped) == "auto", key


@pytest.mark.parametrize("backbone", ["charm_demo", "vit_tiny_patch16_224"])
def test_a_value_in_params_comes_before_the_recipe(backbone: str, tmp_path: Path) -> None:
    others = {"max_seq_len": 77, "budget": "fill", "epochs": 2, "batch_size": 5, "learning_rate": 3e-05}
    others |= {"warmup_epochs": 1.5, "weight_decay": 0.5, "max_edge": 640, "val_share": 0.3, "leaks": "refuse"}
    others |= {"micro_batch": 3, "layers": [3, 5]}
    of_stages = [key for key in AUTO_KEYS if not key.startswith("inputs.")]
    assert {key.rpartition(".")[2] for key in of_stages} == others.keys()
    params = load(tmp_path, dataset="para", backbone=backbone, **{key: str(value) for key, value in others.items()})
    assert {key.rpartition(".")[2]: value_of(params, key) for key in of_stages} == others


def test_published_splits_are_kept_even_where_they_leak(tmp_path: Path) -> None:
    leaks = {dataset: load(tmp_path, dataset=dataset).manifest.leaks for dataset in DATASETS}
    assert {dataset for dataset, found in leaks.items() if found == "refuse"} == OWN


def test_no_maximum_edge_is_a_value(tmp_path: Path) -> None:
    assert load(tmp_path, dataset="para", max_edge="").manifest.max_edge is None


@pytest.mark.parametrize("backbone", ["charm_demo", "vit_tiny_patch16_224"])
def test_values_have_the_types_of_params(backbone: str, tmp_path: Path) -> None:
    params = load(tmp_path, backbone=backbone)
    assert {type(params.max_seq_len), type(params.train.epochs), type(params.train.batch_size)} == {int}
    assert {type(params.train.warmup_epochs), type(params.train.learning_rate), type(params.manifest.val_share)} == {
        float
    }


@pytest.mark.parametrize("line", ["ava2", "[ava]", "{a: b}", ""])
def test_an_unknown_data_set_is_what_is_complained_of(line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml:\d+: dataset: .* is not known"):
        load(tmp_path, dataset=line)


def test_a_section_that_is_none_is_what_is_complained_of(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(re.sub(r"^tokens:\n(?:  .*\n)+", "tokens: 3\n", SHIPPED, flags=re.MULTILINE))
    with pytest.raises(UserError, match="tokens: expected a section with keys of its own, got 3"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("stage", YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"])
def test_dvc_runs_a_stage_again_when_its_recipe_changes(stage: str) -> None:
    listed = [str(param) for param in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]["params"]]
    read = [key for key in AUTO_KEYS if any(key == param or key.startswith(f"{param}.") for param in listed)]
    if read:
        assert "dataset" in listed
    if any(not key.startswith("manifest.") for key in read):
        assert "backbone" in listed
