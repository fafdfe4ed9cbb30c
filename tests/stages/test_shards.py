import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from charm.runtime.errors import UserError
from pipeline.manifest.labels import Listed
from pipeline.manifest.rows import stat_image
from pipeline.manifest.table import read_manifest
from pipeline.settings.params import Params
from pipeline.shards.read import ShardReader
from pipeline.verify import verify
from pipeline.work.store import read_mark
from stages import manifest, shards
from tests.conftest import draw_image
from tests.imports import ROOT
from tests.no_cluster import use_no_cluster
from tests.stages.conftest import small_params

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


def write_table(file: Path, seed: int = 0) -> None:
    """24 images in groups of 10 rows: JPEG and PNG, one damaged, one absent, one a file beside the table."""
    cells: list[dict[str, object] | None] = []
    for row in range(24):
        sink = io.BytesIO()
        Image.fromarray(draw_image(40 + row, 60, seed + row)).save(sink, "PNG" if row % 6 == 5 else "JPEG")
        cells.append({"bytes": sink.getvalue(), "path": f"{row}.jpg"})
    (file.parent / "beside.jpg").write_bytes(cells[0]["bytes"][:-2] + b"\xff\xfe\0\2\xff\xd9")  # type: ignore[index, operator]
    cells[7:10] = [{"bytes": b"\xff\xd8\xffdamaged", "path": "7.jpg"}, None, {"bytes": None, "path": "beside.jpg"}]
    images = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": images, "stars": [1 + row / 6 for row in range(24)]}), file, row_group_size=10)


def test_images_in_a_table_go_the_way_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use_no_cluster(monkeypatch)
    write_table(tmp_path / "x.parquet")
    params = small_params(tmp_path)
    settings = replace(params.manifest, path_column="image", score_columns=["stars"], split_column=None)
    params = replace(params, labels=str(tmp_path / "x.parquet"), manifest=settings)
    manifest.main(params)
    with open("data/manifest/rejected.csv", newline="") as file:
        rejected = [(row["path"], row["reason"]) for row in csv.DictReader(file)]
    assert rejected == [("x.parquet#image/7", "corrupt"), ("x.parquet#image/8", "missing")]
    shards.main(params)
    reader, table = ShardReader("data/shards"), pq.read_table(tmp_path / "x.parquet")["image"]
    assert len(reader) == 22
    for key in reader:
        expected = table[int(key)]["bytes"].as_py() or (tmp_path / "beside.jpg").read_bytes()
        assert reader.extensions(key) == ["jpg", "json"]  # of both formats: readers take one field for all samples
        assert reader.read(key, "jpg") == expected
        assert reader.read_image(key).shape == (40 + int(key) if int(key) != 9 else 40, 60, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # webdataset's own
        import webdataset

        tars = [str(tar) for tar in sorted(Path("data/shards").glob("*.tar"))]
        decoded = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert [one["jpg"].shape for one in decoded] == [reader.read_image(key).shape for key in reader]
    assert all(one.whole for one in verify(params, full=True))
    min(store.glob("shards/*.json")).unlink()  # as a kill leaves it
    shards.main(params)
    assert "2 of 3 shards are there, 1 to make" in capsys.readouterr().out

    write_table(tmp_path / "x.parquet", seed=1)
    with pytest.raises(UserError, match=r"shard-000000: x\.parquet#image/0 has changed since it was listed"):
        shards.main(replace(params, shards=replace(params.shards, samples_per_shard=11)))
    manifest.main(params)
    shards.main(params)


def test_memory_of_packing_is_that_of_a_page(tmp_path: Path) -> None:
    """A table of 120 MB in groups of 100 rows, as Hugging Face writes it; in a process of its own."""
    noise = os.urandom(200_000)
    images = pa.array(
        [{"bytes": bytes([row % 256]) + noise} for row in range(600)], pa.struct([("bytes", pa.binary())])
    )
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet", row_group_size=100, use_dictionary=False)
    assert (tmp_path / "x.parquet").stat().st_size > 120 * 10**6
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    count, megabytes = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
    assert int(count) == 600
    assert float(megabytes) < 100


MEASURE = """
import pathlib, sys, pyarrow.parquet, pyarrow.compute
from charm.images.limits import LIMITS
from charm.images.quarantine import read_file
def peak():
    # Of this program: ru_maxrss is inherited from who started it.
    return int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1e3
before = peak()
found = [read_file(pathlib.Path(sys.argv[1]), f"x.parquet#image/{row}", LIMITS)[0] for row in range(600)]
assert found == [row % 256 for row in range(600)]
print(len(found), peak() - before)
"""


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
