"""G7: the same bytes for any number of workers, order of listing, seed of hashes, time zone, locale and place."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.faults.conftest import Gate
from tests.faults.processes import finish, made, run_inline, start_stage, write_workspace

STAGES = ("manifest", "shards", "importance")


class Backwards:
    """os.scandir, in the opposite order."""

    def __init__(self, listed: Any) -> None:
        self._entries = list(listed)[::-1]

    def __enter__(self) -> "Backwards":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)


def backwards(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: Backwards(real(*arguments))


def test_the_same_bytes(tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process; by two workers of another one; with folders listed backwards."""
    reference, two, listed = (tmp_path / name for name in ("reference", "two workers", "listed backwards"))
    for folder in (reference, two, listed):
        write_workspace(folder, 40, samples_per_shard=6)
    run_inline(reference, *STAGES)

    params = YAML().load(two / "params.yaml")
    params["dask"]["workers"] = 2
    YAML().dump(params, two / "params.yaml")
    run_inline(two, "manifest")
    for name in ("shards", "importance"):
        place = {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"}
        ended = finish(start_stage(two, name, **place))
        assert ended.code == 0, ended

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", backwards(os.scandir))
        patch.setattr(os, "listdir", lambda *arguments, real=os.listdir: real(*arguments)[::-1])
        run_inline(listed, *STAGES)

    expected = made(reference)
    assert len(expected) == 3 + 2 * 7 + 2 * 7 + 1  # of the manifest, the shards, the maps
    different = [folder.name for folder in (two, listed) if made(folder) != expected]
    assert different == []
    gate("G7", "workers, hash seed, time zone, locale, folder, order of listing", cases=2, failures=len(different))
