import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from charm import score_patches
from pipeline.columns import ColumnReader
from pipeline.params import Params, ScoreParams
from pipeline.shard_reader import ShardReader
from stages import importance

Workspace = tuple[Path, Params]


def test_scores_are_those_of_the_picture_for_every_coarse_patch_size(workspace: Workspace) -> None:
    pictures = ShardReader(workspace[0] / "data/shards")
    column = ColumnReader(workspace[0] / "data/importance/gradient", pictures)
    for key in pictures:
        for size in (28, 32, 56, 64):
            expected = score_patches(pictures.read_picture(key), "gradient", size)
            np.testing.assert_array_equal(column.read_importance(key, size), expected)


def test_masks_have_the_size_of_their_picture(workspace: Workspace) -> None:
    pictures = ShardReader(workspace[0] / "data/shards")
    column = ColumnReader(workspace[0] / "data/importance/saliency", pictures)
    for key in pictures:
        assert column.read_mask(key).shape == pictures.read_picture(key).shape[:2]


def test_random_needs_no_map(workspace: Workspace) -> None:
    folder = workspace[0] / "data/importance/random"
    assert [path.name for path in folder.iterdir()] == ["column.json"]
    assert json.loads((folder / "column.json").read_text()) == {"map": "random", "settings": {}}


def test_only_a_map_whose_settings_changed_is_made_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, params = workspace
    monkeypatch.setattr("sys.argv", ["importance", "gradient"])
    other = replace(params, importance=replace(params.importance, entropy=ScoreParams(coarse_patch_sizes=[42])))
    importance.main(other)
    assert "gradient: 3 of 3 shards are there, 0 to make" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["importance", "entropy"])
    importance.main(other)
    assert "entropy: 0 of 3 shards are there, 3 to make" in capsys.readouterr().out
