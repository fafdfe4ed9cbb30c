"""Many shards over a real cluster: only what is missing is made, failures are named, and workers leave no trace."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from charm.runtime.disk import fingerprint
from charm.runtime.errors import UserError
from pipeline.importance.make import make_column
from pipeline.settings.params import DaskParams
from pipeline.shards.write import pack_shard
from pipeline.work import executor
from pipeline.work.executor import Job, make_missing
from pipeline.work.store import read_sidecar, store_folder, write_record
from stages.importance import make_columns
from tests.conftest import Small
from tests.silent import serve

HERE = DaskParams(address=None, workers=1, memory="auto")


def record(text: str, log: str, target: Path) -> None:
    """The work of a job: leaves a line each time that it is done."""
    with open(log, "a") as file:
        file.write(f"{text}\n")
    if "bad" in text:
        raise ValueError(f"cannot read {text}")
    write_record(target.with_suffix(".json"), {"text": text})


def forget(text: str, target: Path) -> None:
    """Says that it is done and has written nothing here, as a worker on another machine."""


def count_threads(target: Path) -> None:
    import cv2

    write_record(target.with_suffix(".json"), {"threads": cv2.getNumThreads()})


@pytest.fixture(scope="module")
def two_workers() -> Iterator[DaskParams]:
    """A cluster that is already there."""
    from dask.distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=logging.ERROR
    ) as cluster:
        yield DaskParams(address=cluster.scheduler_address, workers=None, memory="auto")


@pytest.fixture
def make(store: Path, two_workers: DaskParams, tmp_path: Path) -> Callable[..., tuple[dict[str, Path], list[str]]]:
    """Called with texts: makes a job of each; returns what make_missing does and the texts that were worked on."""
    log = tmp_path / "log"

    def make_texts(*texts: str) -> tuple[dict[str, Path], list[str]]:
        log.write_text("")
        jobs = [Job(f"shard-{text}", fingerprint(text), (text, str(log))) for text in texts]
        made = make_missing("texts", jobs, record, two_workers)
        return made, sorted(log.read_text().split())

    return make_texts


def test_only_what_is_missing_is_made(
    make: Callable[..., Any], store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, worked = make("c", "a", "b")
    assert worked == ["a", "b", "c"]
    assert list(made) == ["shard-c", "shard-a", "shard-b"]
    assert all(path.parent == store / "texts" and path.is_file() for path in made.values())
    assert make("c", "a", "b") == (made, [])
    assert "texts: 3 of 3 shards are there, 0 to make" in capsys.readouterr().out
    assert make("c", "a", "b", "d")[1] == ["d"]
    made["shard-a"].write_text("{")
    assert make("a", "b", "c")[1] == ["a"]


def test_more_jobs_than_are_in_flight_at_once(make: Callable[..., Any]) -> None:
    texts = [f"{i:02d}" for i in range(23)]
    assert make(*texts)[1] == texts


def test_failing_jobs_are_named_and_the_others_kept(make: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        make("a", "bad1", "b", "bad2", "c")
    assert "texts: 2 of 5 shards failed" in str(error.value)
    assert "shard-bad1: ValueError: cannot read bad1" in str(error.value)
    assert "shard-bad2: ValueError: cannot read bad2" in str(error.value)
    assert make("a", "b", "c")[1] == []


def test_a_failing_job_is_tried_at_most_twice(make: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        make("bad")
    assert 1 <= (tmp_path / "log").read_text().count("bad") <= 2


def test_workers_that_do_not_share_the_store(store: Path, two_workers: DaskParams) -> None:
    with pytest.raises(UserError, match=r"shard-x was made but is not in .*, which all workers have to share"):
        make_missing("texts", [Job("shard-x", "0" * 64, ("x",))], forget, two_workers)


def test_nothing_to_make_needs_no_cluster(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "connect", lambda *_: pytest.fail("started a cluster"))
    assert make_missing("texts", [], record, HERE) == {}


def list_shards(packed: Small) -> list[Job]:
    chosen = [packed.rows[start : start + 2] for start in range(0, len(packed.rows), 2)]
    settings = (str(packed.root), "jpg", 95, (0.0, 1.0))
    return [Job(f"{len(rows)}-{rows[0]['key']}", fingerprint(rows), (rows, *settings)) for rows in chosen]


def list_columns(packed: Small) -> list[Job]:
    settings = {"coarse_patch_sizes": [28], "fit": "nearest"}
    shards = [path.stem for path in sorted((packed.data / "shards").glob("*.json"))]
    folder = str(packed.data / "shards")
    return [Job(shard, fingerprint(shard), (folder, shard, "entropy", settings)) for shard in shards]


def stored(kind: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store_folder(kind).iterdir() if path.name != ".lock"}


def test_bytes_do_not_depend_on_the_number_of_workers(packed: Small, store: Path, two_workers: DaskParams) -> None:
    """None, two, and one that is started here."""
    for job in list_shards(packed):
        pack_shard(*job.arguments, store_folder("none") / job.fingerprint)
    make_missing("two", list_shards(packed), pack_shard, two_workers)
    assert stored("two") == stored("none")
    assert len(stored("two")) == 2 * 4

    make_missing("one map", list_columns(packed), make_column, HERE)
    make_missing("two maps", list_columns(packed), make_column, two_workers)
    assert stored("two maps") == stored("one map")
    assert len(stored("one map")) == 2 * 2


def test_a_worker_has_one_thread(store: Path, two_workers: DaskParams) -> None:
    made = make_missing("threads", [Job("shard-0", "0" * 64, ())], count_threads, two_workers)
    assert (read_sidecar(made["shard-0"]) or {})["threads"] == 1


def log_an_error() -> None:
    """As a worker does whose scheduler is closed before it: "Failed to communicate with scheduler during heartbeat"."""
    logging.getLogger("distributed.worker").error("the scheduler is gone")


def test_what_dask_logs_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with executor.connect(HERE, 1) as client:
        client.run(log_an_error)
        log_an_error()
    assert capfd.readouterr().err == ""


def test_the_environment_names_a_cluster(store: Path, two_workers: DaskParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", str(two_workers.address))
    with executor.connect(HERE, 1) as client:
        assert client.scheduler.address == two_workers.address
        assert len(client.nthreads()) == 2


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x"])
def test_a_scheduler_that_does_not_answer(address: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dask.distributed

    def refuse(address: str, timeout: float) -> None:
        raise ValueError("unknown scheme") if "nonsense" in address else OSError("timed out")

    monkeypatch.setattr(dask.distributed, "Client", refuse)
    with (
        pytest.raises(UserError, match=f"no Dask scheduler answers at {address}"),
        executor.connect(DaskParams(address=address, workers=None, memory="auto"), 1),
    ):
        pass


@pytest.mark.parametrize("first", [b"", b"SSH-2.0-OpenSSH_9.0\r\n"], ids=["silent", "of another protocol"])
def test_a_scheduler_that_is_none(first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask itself waits for minutes for the first, a web server among them, and runs out of memory at the second."""
    monkeypatch.setattr(executor, "_PATIENCE", 1)
    started = time.monotonic()
    with (
        serve(first) as address,
        pytest.raises(UserError, match=f"no Dask scheduler answers at {address} .*: (no answer within 1 s|Unable to)"),
        executor.connect(DaskParams(address=address, workers=None, memory="auto"), 1),
    ):
        pass
    assert time.monotonic() - started < 5


def test_a_worker_without_this_code_is_one_line(
    store: Path, two_workers: DaskParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent to it names a module that is only here."""
    only_here = ModuleType("only_here")
    exec("def prepare(token, modules): pass", only_here.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", only_here)
    monkeypatch.setattr(executor, "_prepare_worker", only_here.prepare)
    with pytest.raises(
        UserError, match=r"^a Dask worker cannot run this code \(.*only_here.*\): start workers in"
    ) as error:
        make_missing("maps", [Job("shard-0", "0" * 64, ())], count_threads, two_workers)
    assert "\n" not in str(error.value)


def sleep(target: Path) -> None:
    target.with_suffix(".begun").touch()
    time.sleep(600)


@pytest.mark.parametrize("gone", ["scheduler", "worker"])
def test_a_cluster_that_goes_away_is_not_waited_for(gone: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dask import config
    from dask.distributed import LocalCluster

    monkeypatch.setattr(executor, "_PATIENCE", 8)
    monkeypatch.setattr(executor, "_GONE", 2)
    with (
        config.set({"distributed.comm.timeouts.connect": "2s"}),
        LocalCluster(n_workers=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
    ):
        params = DaskParams(address=cluster.scheduler_address, workers=None, memory="auto")
        close = partial(cluster.loop.add_callback, cluster.scheduler.close)

        def go_once_it_works() -> None:
            while not list(store.glob("maps/*.begun")):
                time.sleep(0.05)
            close() if gone == "scheduler" else cluster.scale(0)

        go = Thread(target=go_once_it_works, daemon=True)
        go.start()
        with pytest.raises(UserError, match="the Dask scheduler or its last worker is gone; what is made is kept"):
            make_missing("maps", [Job("shard-0", "0" * 64, ())], sleep, params)
        go.join()


def say_store(target: Path) -> None:
    write_record(target.with_suffix(".json"), {"store": str(store_folder(""))})


def test_workers_may_be_started_in_any_folder(
    packed: Small, store: Path, two_workers: DaskParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage names its folders as it sees them, its store included."""
    monkeypatch.chdir(packed.data.parent)  # where data/shards is
    (tmp_path / "elsewhere").mkdir()
    with executor.connect(two_workers, 1) as client:
        (before,) = set(client.run(os.getcwd).values())
        client.run(os.chdir, str(tmp_path / "elsewhere"))
    try:
        made = make_columns("entropy", "entropy", {"coarse_patch_sizes": [28], "fit": "nearest"}, {}, two_workers)
        (told,) = make_missing("stores", [Job("shard-0", "0" * 64, ())], say_store, two_workers).values()
    finally:
        with executor.connect(two_workers, 1) as client:
            client.run(os.chdir, before)
    assert len(made) == 2
    assert (read_sidecar(told) or {})["store"] == str(store)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_work_that_the_disk_has_no_room_for(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Job("shard-0", "0" * 64, (), 3 * 10**9), Job("shard-1", "1" * 64, (), 2 * 10**9)]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5_100_000_000))
    with pytest.raises(UserError, match=r"has 5\.1 GB free, and about 5\.0 GB are needed, with 0\.2 GB to spare"):
        make_missing("maps", jobs, count_threads, HERE)


def stop_looking_around(token: str, modules: list[str]) -> tuple[bool, str]:
    return False, ""


def run_old_code(token: str, modules: list[str]) -> tuple[bool, str]:
    return True, "of another day"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (stop_looking_around, "does not see .*/store/maps: all workers have to share this folder"),
        (run_old_code, "runs another version of this code"),
    ],
)
def test_workers_that_cannot_do_the_work_are_told_apart(
    answer: Callable[..., Any], message: str, store: Path, two_workers: DaskParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_prepare_worker", answer)
    with pytest.raises(UserError, match=rf"the Dask worker tcp://\S+ {message}"):
        make_missing("maps", [Job("shard-0", "0" * 64, ())], count_threads, two_workers)
    assert [path.name for path in (store / "maps").iterdir()] == [".lock"]


def test_a_scheduler_without_workers(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dask.distributed import LocalCluster

    monkeypatch.setattr(executor, "_PATIENCE", 1)
    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        params = DaskParams(address=cluster.scheduler_address, workers=None, memory="auto")
        with pytest.raises(UserError, match="no Dask worker came within 1 s"):
            make_missing("maps", [Job("shard-0", "0" * 64, ())], count_threads, params)


def die(target: Path) -> None:
    os._exit(9)


def test_a_task_that_kills_its_worker_is_named_and_the_others_are_kept(store: Path) -> None:
    poison = Job("shard-0", "0" * 64, ())
    with pytest.raises(UserError, match=r"1 of 1 shards failed(.|\n)*shard-0: its worker died, often for want of mem"):
        make_missing("maps", [poison], die, HERE)


def test_a_killed_worker_is_put_in_words() -> None:
    from distributed.scheduler import KilledWorker

    error = KilledWorker("task", None, 3)
    assert executor._explain(error, HERE) == "its worker died, often for want of memory (dask.memory is auto)"


def count_slowly(target: Path) -> None:
    for _ in executor.counting(range(4)):
        time.sleep(0.4)
    write_record(target.with_suffix(".json"), {})


def test_a_long_job_tells_how_many_of_its_images_are_done(
    store: Path, monkeypatch: pytest.MonkeyPatch, two_workers: DaskParams
) -> None:
    """Before it is finished, whose images then count as done."""
    shown: list[int] = []

    class Shown(executor.Progress):
        def move(self, count: int = 1, note: str = "") -> None:
            super().move(count, note)
            shown.append(self.done)

    monkeypatch.setattr(executor, "Progress", Shown)
    make_missing("maps", [Job("shard-0", "0" * 64, (), images=4)], count_slowly, two_workers)
    assert shown == sorted(shown)
    assert {0, 4} < set(shown)
