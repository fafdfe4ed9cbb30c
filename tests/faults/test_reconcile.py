"""G1: every listed image is packed, or rejected with a reason; every map has exactly the packed ones."""

import csv
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from charm.images.reasons import REASONS
from pipeline.manifest.table import read_manifest
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader
from tests.faults.conftest import Gate
from tests.faults.processes import run_inline, write_workspace

MAPS = ("frequency", "gradient", "entropy", "saliency")


def write_useless(folder: Path) -> list[str]:
    """Images that cannot be used, in several ways; their paths."""
    images = folder / "images"
    whole = (images / "0.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.jpg").write_text("no image")
    (images / "folder.jpg").mkdir()
    os.mkfifo(images / "pipe.jpg")
    (folder / "outside.jpg").write_bytes(whole)
    (images / "link.jpg").symlink_to(folder / "outside.jpg")
    (images / "loop.jpg").symlink_to(images / "loop.jpg")
    here = [f"{name}.jpg" for name in ("cut", "empty", "text", "folder", "pipe", "link", "loop", "missing")]
    return [*here, "../outside.jpg", str(folder / "outside.jpg"), "0.jpg/1.jpg", "x" * 300 + ".jpg"]


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_counts_add_up(encoding: str, tmp_path: Path, gate: Gate) -> None:
    write_workspace(tmp_path, 20, samples_per_shard=6, encoding=encoding)
    labels = tmp_path / "images/labels.csv"
    good = [line.split(",")[0] for line in labels.read_text().splitlines()[1:]]
    useless = write_useless(tmp_path)
    with labels.open("a") as file:
        file.writelines(f"{path},0.5,train\n" for path in useless)
    params = YAML().load(tmp_path / "params.yaml")
    params["manifest"]["max_reject_frac"] = 0.5
    YAML().dump(params, tmp_path / "params.yaml")
    run_inline(tmp_path, "manifest", "shards")

    data = tmp_path / "data"
    manifest = read_manifest(data / "manifest")
    rows = pq.read_table(data / "manifest/manifest.parquet").to_pylist()
    with open(data / "manifest/rejected.csv", newline="") as file:
        rejected = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    images = ShardReader(data / "shards")
    names = [json.loads(images.read(key, "json"))["name"] for key in images]
    facts = manifest.facts
    failures = [
        [row["path"] for row in rows] != good + useless,
        set(rejected) != set(useless),
        not set(rejected.values()) <= REASONS.keys(),
        facts.listed != len(rows),
        facts.listed != facts.packed + sum(facts.rejected.values()),
        sum(facts.rejected.values()) != len(rejected),
        sum(facts.splits.values()) != facts.packed,
        list(images) != manifest.keys,
        names != good,
    ]
    for name in MAPS:
        run_inline(tmp_path, f"importance {name}")
        ColumnReader(data / "importance", images, name)
        failures.append(list(ShardReader(data / "importance")) != manifest.keys)
    assert failures == [False] * len(failures)
    unexplained = facts.listed - len(set(names)) - len(rejected)
    gate("G1", f"listed = packed + rejected, {encoding}", cases=len(rows), failures=unexplained, rejected=len(rejected))
