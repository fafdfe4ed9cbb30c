"""Each published data set, from its own files with their faults to shards; two of them to the report."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.manifest.table import read_manifest
from pipeline.settings.params import Params, load_params
from pipeline.settings.recipes import DATASETS
from pipeline.shards.read import ShardReader
from stages import evaluate, importance, manifest, pos_embeds, report, shards, train
from tests.no_cluster import use_no_cluster
from tests.pipeline.datasets.small_folders import NUM_LISTED, WRITERS, counts, score
from tests.stages.conftest import ROOT

LONG = {"para": 1024, "spaq": 1024}  # pixels of the long image when packed; 1100 in the other data sets


@dataclass(frozen=True)
class Packed:
    """A working folder in which `manifest` and `shards` have run on the data set."""

    dataset: str
    folder: Path
    params: Params

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "data/manifest/dataset.json").read_text())
        return found


def small_params(dataset: str, folder: Path) -> Params:
    """params.yaml with this data set and the built-in model, at a size that takes seconds."""
    shipped = (ROOT / "params.yaml").read_text()
    (folder / "params.yaml").write_text(re.sub(r"^dataset: \w+", f"dataset: {dataset}", shipped, flags=re.MULTILINE))
    params = load_params(folder / "params.yaml")
    return replace(
        params,
        max_seq_len=48,
        labels=str(folder / "published"),
        manifest=replace(params.manifest, val_share=0.2, max_reject_frac=0.1),
        shards=replace(params.shards, samples_per_shard=10),
        train=replace(params.train, epochs=1, batch_size=8),
        hardware=replace(params.hardware, device="cpu", loader_workers=0),
    )


@pytest.fixture(scope="module", params=WRITERS)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packed]:
    folder = tmp_path_factory.mktemp(request.param)
    WRITERS[request.param](folder / "published")
    params = small_params(request.param, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CHARM_STORE", str(folder / "store"))
        use_no_cluster(patch)
        manifest.main(params)
        shards.main(params)
        yield Packed(request.param, folder, params)


def test_listed_is_packed_and_rejected_with_the_exact_reasons(packed: Packed) -> None:
    facts = packed.facts
    assert (facts["listed"], facts["packed"]) == (NUM_LISTED, NUM_LISTED - 2)
    assert facts["rejected"] == {"corrupt": 1, "missing": 1}
    rejected = (packed.folder / "data/manifest/rejected.csv").read_text().splitlines()
    assert [row.split(",")[2] for row in rejected[1:]] == ["corrupt", "missing"]
    images = ShardReader(packed.folder / "data/shards")
    assert sorted(images) == read_manifest(packed.folder / "data/manifest").keys
    assert all(len(images.read_image(key)) for key in images)


def test_splits(packed: Packed) -> None:
    assert packed.facts["splits"] == {"train": 14, "val": 4, "test": 4}


def test_targets_are_scaled_and_stand_with_their_images(packed: Packed) -> None:
    found = read_manifest(packed.folder / "data/manifest")
    recipe = DATASETS[packed.dataset]
    assert found.facts.num_bins == recipe.num_bins
    assert found.facts.accuracy_threshold == recipe.accuracy_threshold
    kept = [index for index in range(NUM_LISTED) if index not in (1, 2)]
    if recipe.num_bins > 1:
        expected = np.array([counts(index, recipe.num_bins) for index in kept]) / 4
    else:
        expected = np.array([[score(index)] for index in kept])
    np.testing.assert_allclose(found.targets, expected, atol=1e-6)
    assert [int(key) for key in found.keys] == kept


def test_images_are_downscaled_where_the_paper_does(packed: Packed) -> None:
    found = read_manifest(packed.folder / "data/manifest")
    assert max(found.table["raw_width"].to_pylist()) == 1100
    assert max(max(image_hw) for image_hw in found.image_hws) == LONG.get(packed.dataset, 1100)


def test_the_seed_turns_over_drawn_splits_and_no_others(packed: Packed) -> None:
    before = packed.facts
    manifest.main(replace(packed.params, seed=1))
    other = packed.facts
    manifest.main(packed.params)
    assert packed.facts == before
    assert other["splits"] == before["splits"]
    assert (other["split_sha256"] == before["split_sha256"]) == (packed.dataset in ("aadb", "baid"))


# A distribution and a spreadsheet stand for the others: from here on all are alike.
@pytest.mark.parametrize("packed", ["ava", "spaq"], indirect=True)
def test_from_the_publishers_files_to_the_report(packed: Packed) -> None:
    for stage in (importance, pos_embeds, train, evaluate, report):
        stage.main(packed.params)
    metrics = json.loads((packed.folder / "runs/evaluate/metrics.json").read_text())
    assert (metrics["listed"], metrics["packed"], metrics["scored"]) == (NUM_LISTED, NUM_LISTED - 2, 4)
    assert metrics["rejected"] == {"corrupt": 1, "missing": 1}
    assert metrics["split_sha256"] == packed.facts["split_sha256"]
    outputs = json.loads((packed.folder / "runs/train/config.json").read_text())["model"]["num_outputs"]
    assert outputs == DATASETS[packed.dataset].num_bins
    page = (packed.folder / "runs/report/report.html").read_text()
    assert re.search(r"24 images listed = 22 packed\s+\+ 2 rejected", page)
    assert '<th scope="row">learning_rate</th><td><code>0.001</code></td>' in page  # not "auto"
