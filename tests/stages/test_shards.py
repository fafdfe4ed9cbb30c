import hashlib
import json
from pathlib import Path

import pytest

from charm.runtime.errors import UserError
from pipeline.manifest.labels import Listed
from pipeline.manifest.rows import stat_image
from pipeline.manifest.table import read_manifest
from pipeline.settings.params import Params
from pipeline.shards.read import ShardReader
from pipeline.work.store import read_mark
from stages import manifest, shards
from tests.no_cluster import use_no_cluster

Workspace = tuple[Path, Params]


def test_every_kept_image_is_packed_byte_for_byte_with_its_label(workspace: Workspace) -> None:
    folder, _ = workspace
    reader, listed = ShardReader(folder / "data/shards"), read_manifest(folder / "data/manifest")
    assert list(reader) == listed.keys
    names, splits = (listed.table[column].to_pylist() for column in ("name", "split"))
    for key, name, split, target in zip(listed.keys, names, splits, listed.targets, strict=True):
        assert reader.read(key, "jpg") == (folder / "images" / name).read_bytes()
        label = {"name": name, "target": target.tolist(), "split": split, "score_range": [1.0, 5.0]}
        assert json.loads(reader.read(key, "json")) == label


def test_shards_hold_as_many_samples_as_asked_for(workspace: Workspace) -> None:
    reader = ShardReader(workspace[0] / "data/shards")
    counts: dict[str, int] = {}
    for key in reader:
        counts[reader.shard_of(key)] = counts.get(reader.shard_of(key), 0) + 1
    assert counts == {"shard-000000": 10, "shard-000001": 10, "shard-000002": 7}


def test_a_second_run_makes_nothing_and_gives_the_same_bytes(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, params = workspace
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "data/shards").iterdir()}
    shards.main(params)
    assert "3 of 3 shards are there, 0 to make" in capsys.readouterr().out
    after = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "data/shards").iterdir()}
    assert after == before


@pytest.mark.parametrize("keeps_stat", [False, True], ids=["noticed", "with the stat of the one before"])
def test_an_image_that_changed_since_it_was_listed_is_refused_and_the_advice_helps(
    keeps_stat: bool, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice is to run the manifest again, which opens the file again, whatever its stat says."""
    folder, params = workspace
    use_no_cluster(monkeypatch)
    monkeypatch.chdir(tmp_path)
    if keeps_stat:
        stat = stat_image(folder / "images", Listed("3.jpg", "3.jpg", (0.0,), None, ""))[1:5]
        monkeypatch.setattr(
            manifest, "stat_image", lambda root, image: [image.path, *stat, read_mark(root, image.path)]
        )
    manifest.main(params)
    image = folder / "images" / "3.jpg"
    original = image.read_bytes()
    try:
        image.write_bytes(original + b"\0")
        with pytest.raises(UserError, match=r"shard-000000: .*3\.jpg has changed since.*--force manifest"):
            shards.main(params)
        manifest.main(params)
        shards.main(params)
    finally:
        image.write_bytes(original)
