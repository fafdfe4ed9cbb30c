import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charm import score_patches
from charm.runtime.disk import file_sha256
from charm.runtime.errors import UserError
from pipeline.importance import make as maps
from pipeline.settings.params import Params, SaliencyParams, SamHqParams, ScoreParams
from pipeline.shards import blocks
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader
from pipeline.work import executor
from pipeline.work.store import parse_record
from stages import importance

Workspace = tuple[Path, Params]


def test_scores_are_those_of_the_image_for_every_coarse_patch_size(workspace: Workspace) -> None:
    images = ShardReader(workspace[0] / "data/shards")
    column = ColumnReader(workspace[0] / "columns/gradient", images)
    for key in images:
        for size in (28, 32, 56, 64):
            expected = score_patches(images.read_image(key), "gradient", size)
            np.testing.assert_array_equal(column.read_importance(key, size), expected)


def test_masks_have_the_size_of_their_image(workspace: Workspace) -> None:
    images = ShardReader(workspace[0] / "data/shards")
    column = ColumnReader(workspace[0] / "columns/saliency", images)
    for key in images:
        assert column.read_mask(key).shape == images.read_image(key).shape[:2]


def test_random_needs_no_map(workspace: Workspace) -> None:
    folder = workspace[0] / "columns/random"
    assert [path.name for path in folder.iterdir()] == ["column.json"]
    assert parse_record((folder / "column.json").read_bytes()) == {"map": None, "settings": {}}


def test_only_a_map_whose_settings_changed_is_made_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, params = workspace
    monkeypatch.setenv("CHARM_STORE", str(folder / ".charm/store"))
    shutil.copytree(folder / "data/shards", tmp_path / "data/shards")
    monkeypatch.chdir(tmp_path)
    other = replace(params, importance=replace(params.importance, entropy=ScoreParams(coarse_patch_sizes=[42])))
    importance.main(replace(other, selection="gradient"))
    assert "gradient: 3 of 3 shards are there, 0 to make" in capsys.readouterr().out
    importance.main(replace(other, selection="entropy"))
    assert "entropy: 0 of 3 shards are there, 3 to make" in capsys.readouterr().out


def test_masks_are_counted_and_those_without_an_object_are_flagged(workspace: Workspace) -> None:
    folder = workspace[0] / "columns/saliency"
    column = ColumnReader(folder, ShardReader(workspace[0] / "data/shards"))
    header, *rows = (folder / "masks.csv").read_text().splitlines()
    assert header == "key,coverage,salient"
    assert len(rows) == 27
    for key, coverage, salient in (row.split(",") for row in rows):
        mask = column.read_mask(key)
        assert float(coverage) == pytest.approx(mask.mean(), abs=1e-9)
        assert salient == str(int(mask.any()))
    facts = parse_record((folder / "column.json").read_bytes())
    assert facts["backend"] == "mbd"
    assert facts["images"] == 27
    assert facts["empty"] == sum(row.endswith(",0") for row in rows)
    assert facts["empty_rate"] == facts["empty"] / 27


Run = Callable[..., str]


@pytest.fixture
def run(
    workspace: Workspace,
    tiny_models: SamHqParams,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Called with settings of SAM-HQ: runs the stage on the images, in a folder and store of the test's own.

    Dask's workers are threads of this process, which knows the tiny models.
    """

    @contextlib.contextmanager
    def connect(*_: Any) -> Iterator[Any]:
        from dask.distributed import Client, LocalCluster

        cluster = LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, silence_logs=logging.ERROR
        )
        with cluster, Client(cluster) as client:
            yield client

    shutil.copytree(workspace[0] / "data/shards", tmp_path / "data/shards")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(executor, "connect", connect)
    params = replace(workspace[1], selection="saliency", hardware=replace(workspace[1].hardware, device="cpu"))

    def run_stage(backend: str = "sam_hq", **settings: Any) -> str:
        saliency = SaliencyParams(backend, replace(tiny_models, **settings))
        importance.main(replace(params, importance=replace(params.importance, saliency=saliency)))
        return capsys.readouterr().out

    return run_stage


def test_masks_by_sam_hq_are_those_of_direct_calls(run: Run, tiny_models: SamHqParams) -> None:
    from tests.saliency_models import segment_directly

    run()
    images = ShardReader(Path("data/shards"))
    column = ColumnReader(Path("data/importance"), images)
    for key in list(images)[::5]:
        expected, _ = segment_directly(images.read_image(key), tiny_models)
        np.testing.assert_array_equal(column.read_mask(key), expected)
    facts = parse_record(Path("data/importance/column.json").read_bytes())
    assert (facts["backend"], facts["empty"], facts["settings"]["prompt"]) == ("sam_hq", 0, "salient object")
    assert set(facts["coverage"]) == {"0.0", "0.25", "0.5", "0.75", "1.0"}
    assert facts["settings"].keys() & {"detector", "sam_checkpoint"} == set()  # a place is no setting


def test_nothing_found_is_an_outcome(run: Run) -> None:
    assert "nothing stands out in 27 of 27 images" in run(box_threshold=1.0)
    facts = parse_record(Path("data/importance/column.json").read_bytes())
    assert (facts["empty"], facts["empty_rate"], facts["coverage"]) == (27, 1.0, {})


def test_a_backend_does_not_remake_the_others_masks(run: Run, tiny_models: SamHqParams, tmp_path: Path) -> None:
    made = "saliency: 0 of 3 shards are there, 3 to make"
    kept = "saliency: 3 of 3 shards are there, 0 to make"
    assert made in run("mbd")
    assert kept in run("mbd", prompt="hidden object", sam="vit_b", detector="nowhere/nothing")
    assert made in run("sam_hq")
    assert kept in run("mbd")
    shutil.copytree(tiny_models.detector, tmp_path / "moved")
    assert kept in run("sam_hq", detector=str(tmp_path / "moved"))
    assert made in run("sam_hq", prompt="hidden object")


def test_wrong_weights_are_one_line_before_any_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "connect", lambda *_: pytest.fail("started a cluster"))
    with pytest.raises(UserError, match=r"as SAM-HQ vit_b: 178 missing \(.+\); 161 of another shape \(") as error:
        run(sam="vit_b")
    assert "\n" not in str(error.value)


def test_large_shards_are_made_in_blocks_and_a_run_that_stopped_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of 10, 10 and 7 images, blocks of 4: eight blocks."""
    run()
    out = Path("data/importance")
    at_once = {path.name: path.read_bytes() for path in out.iterdir()}

    monkeypatch.setattr(blocks, "BLOCK", 4)
    monkeypatch.setenv("CHARM_STORE", str(Path("other").resolve()))
    segment = maps.MAPS["sam_hq"]
    worked: list[np.ndarray] = []

    def fail_on_one(image: np.ndarray, way: str, settings: dict[str, Any]) -> Any:
        if np.array_equal(image, ShardReader(Path("data/shards")).read_image("00000015")):
            raise RuntimeError("the power is off")
        return segment(image, way, settings)

    monkeypatch.setitem(maps.MAPS, "sam_hq", fail_on_one)
    with pytest.raises(UserError, match=r"1 of 8 shards failed.*\n  shard-000001, images 4 to 7: RuntimeError"):
        run()

    def count(image: np.ndarray, way: str, settings: dict[str, Any]) -> Any:
        worked.append(image)
        return segment(image, way, settings)

    monkeypatch.setitem(maps.MAPS, "sam_hq", count)
    assert "saliency_blocks: 7 of 8 shards are there, 1 to make" in run()
    assert len(worked) == 4
    assert {path.name: path.read_bytes() for path in out.iterdir()} == at_once
    shutil.rmtree("other/saliency_blocks")
    assert "saliency: 3 of 3 shards are there, 0 to make" in run()
    assert len(worked) == 4  # whole shards need no blocks


def test_relative_paths_start_at_the_repository_in_a_queued_experiment_too(
    shipped_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which runs in a copy of it, where files that git does not know are not."""
    (tmp_path / "mine.pth").write_bytes(b"\0weights")
    (tmp_path / "detector").mkdir()
    (tmp_path / "detector/model.safetensors").write_bytes(b"\0tensors")
    copy = tmp_path / ".dvc/tmp/exps/x1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(copy))
    sha256 = file_sha256(tmp_path / "mine.pth")
    sam_hq = replace(
        shipped_params.importance.saliency.sam_hq,
        sam="vit_b",
        sam_checkpoint="mine.pth",
        sam_sha256=sha256,
        detector="detector",
    )
    section = replace(shipped_params.importance, saliency=SaliencyParams("sam_hq", sam_hq))
    way, settings, places = importance.choose_way(replace(shipped_params, importance=section), "saliency")
    assert (way, settings["sam_sha256"]) == ("sam_hq", sha256)
    assert (places["sam_checkpoint"], places["detector"]) == (str(tmp_path / "mine.pth"), str(tmp_path / "detector"))


def test_what_is_wrong_with_the_models_is_told_with_its_section(shipped_params: Params, store: Path) -> None:
    sam_hq = replace(shipped_params.importance.saliency.sam_hq, sam_checkpoint="none.pth", detector=str(store))
    section = replace(shipped_params.importance, saliency=SaliencyParams("sam_hq", sam_hq))
    with pytest.raises(UserError, match=r"^params\.yaml: importance\.saliency\.sam_hq: detector: "):
        importance.choose_way(replace(shipped_params, importance=section), "saliency")
