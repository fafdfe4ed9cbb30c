"""A run in a tracker: stopped, gone on with and evaluated, each epoch is there once.

wandb and mlflow are not among the requirements of the tests: `uv run --with wandb --with mlflow pytest <this file>`.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from charm.runtime.errors import UserError
from charm.runtime.schema import field_hints
from pipeline.settings.params import Params
from pipeline.training import tracker
from pipeline.training.tracker import TRACKERS, Tracker, open_tracker

HISTORY = [{"epoch": n, "train_loss": 1 / n, "val_srcc": math.nan if n == 1 else n / 10} for n in (1, 2, 3)]
RUN = "0123456789abcdef"
Found = dict[str, list[tuple[int, float]]]  # (epoch, value)


def read_tensorboard() -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(f"runs/tensorboard/{RUN}").Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def scan_leveldb(data: bytes) -> Iterator[bytes]:
    """Records of wandb's files: after 7 bytes a log of LevelDB, blocks of 32 KiB of (checksum, length, kind), bytes."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of it
            yield whole
            whole = b""


def read_wandb() -> Found:
    """Of the offline runs together, which have one id: the server takes no epoch that it has."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, dict[int, float]] = {}
    for path in sorted(Path("runs/wandb").glob(f"offline-run-*{RUN}*/*.wandb")):
        for data in scan_leveldb(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            for part in (record.history.item, record.summary.update):
                items = {one.key or one.nested_key[0]: float(json.loads(one.value_json)) for one in part}
                for name, value in items.items():
                    if not name.startswith("_") and (part is record.history.item or name.startswith("test_")):
                        found.setdefault(name, {})[int(items.get("_step", 0))] = value
    return {name: sorted(values.items()) for name, values in found.items()}


def read_mlflow() -> Found:
    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///runs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("charm").experiment_id])
    assert run.data.params["train.epochs"] == "20"
    return {
        name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def with_tracker(params: Params, kind: Any) -> Params:
    return replace(params, hardware=replace(params.hardware, tracker=kind))


@pytest.mark.parametrize(
    ("kind", "read"), [("tensorboard", read_tensorboard), ("wandb", read_wandb), ("mlflow", read_mlflow)]
)
@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_each_epoch_is_there_once(
    kind: str,
    read: Callable[[], Found],
    shipped_params: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(kind)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    params = with_tracker(shipped_params, kind)
    with closing(open_tracker(RUN, "train", params)) as run:
        run.add_history(HISTORY[:1])
        run.add_history(HISTORY[:2])
    with closing(open_tracker(RUN, "train", params)) as run:  # resumed after a kill: the state is an epoch behind
        run.add_history(HISTORY[:1])
        run.add_history(HISTORY)
    with closing(open_tracker(RUN, "evaluate", params)) as run:
        run.add_metrics({"srcc": 0.5, "dataset": "demo", "val_acc": None})
    found = read()
    for name in ("train_loss", "val_srcc"):
        assert [epoch for epoch, _ in found[name]] == [1, 2, 3]
        assert [value for _, value in found[name]] == pytest.approx([one[name] for one in HISTORY], nan_ok=True)
    assert [value for _, value in found["test_srcc"]] == [0.5]
    assert found.keys().isdisjoint({"test_dataset", "test_val_acc", "epoch"})


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow"])
def test_a_queued_experiment_writes_into_the_repository(
    kind: str, shipped_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs in a copy of the repository, which DVC removes at its end."""
    pytest.importorskip(kind)
    copy = tmp_path / ".dvc/tmp/exps/x1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(copy))
    monkeypatch.setenv("WANDB_MODE", "offline")
    with closing(open_tracker(RUN, "train", with_tracker(shipped_params, kind))) as run:
        run.add_history(HISTORY)
    assert any((tmp_path / "runs").rglob(f"*{kind}*"))
    assert list(copy.iterdir()) == []


def test_a_tracker_that_fails_stops_no_training(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Tracker):
        sent: list[int | None]
        is_up = False

        def _send(self, values: dict[str, float], epoch: int | None) -> None:
            if not self.is_up:
                raise ConnectionError("no route to host")
            self.sent.append(epoch)

    run = Broken()
    run.sent = []
    run.add_history(HISTORY[:2])
    assert capsys.readouterr().out == "warning: the tracker has not taken what was sent: no route to host\n"
    run.is_up = True
    run.add_history(HISTORY)
    assert run.sent == [1, 2, 3]


def test_a_tracker_that_cannot_be_opened_is_said_before_any_work(
    shipped_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: str, part: str, params: Params) -> Tracker:
        raise ConnectionError("api.wandb.ai does not answer")

    monkeypatch.setitem(tracker.TRACKERS, "wandb", fail)
    with pytest.raises(UserError, match=r"hardware.tracker: wandb cannot be opened: api.wandb.ai does not answer"):
        open_tracker(RUN, "train", with_tracker(shipped_params, "wandb"))


def test_params_know_the_trackers(shipped_params: Params) -> None:
    assert get_args(field_hints(type(shipped_params.hardware))["tracker"]) == tuple(TRACKERS)
