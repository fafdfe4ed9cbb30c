"""Runs one function over many shards with Dask: local processes, or a cluster that is already there.

A task writes its shard to the store and returns nothing: only the files count. A shard that fails is named, the others
are finished and kept.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TypeVar

from charm.runtime.errors import UserError, first_line
from charm.runtime.interrupts import Interrupts
from charm.runtime.progress import Progress
from charm.runtime.waiting import within
from pipeline.settings.params import DaskParams
from pipeline.work.code import code_digest
from pipeline.work.store import locked, read_sidecar, store_folder

_CHECK_EVERY = 0.2  # seconds between two looks for a signal
_TELL_EVERY = 1.0  # seconds between two reports of a worker on its job
_COUNTS = "charm-counts"  # topic of Dask for these reports
_PATIENCE = 20  # seconds for a scheduler to answer and a worker to come
_GONE = 60  # seconds without any worker; one that died is replaced within a few
_LOST = (
    "the Dask scheduler or its last worker is gone; what is made is kept, and the same command goes on with new ones"
)
_SPARE_BYTES = 200_000_000

T = TypeVar("T")
_job: ContextVar[str] = ContextVar("job", default="")  # that this thread of a worker does


@dataclass(frozen=True)
class Job:
    """One shard to make."""

    name: str  # shown to people and used in the output folder, for example "shard-000012"
    fingerprint: str  # sha256 of everything the shard is made from; its name in the store
    arguments: tuple[Any, ...]  # of the work function, before the path to write to
    expected_bytes: int = 0  # rough size of the shard on disk
    images: int = 1  # that are in it


def make_missing(kind: str, jobs: list[Job], work: Callable[..., None], dask: DaskParams) -> dict[str, Path]:
    """Makes the jobs that the store does not have yet.

    Args:
        kind: of artifact; names the folder in the store.
        work: called as work(*arguments, target); writes target.json last, which marks the shard as whole.

    Returns:
        The path of each job's sidecar in the store, by the job's name, in the order of `jobs`.

    Raises:
        UserError: some shards failed; says which and why.
    """
    folder = store_folder(kind)
    with locked(folder):
        targets = {job.name: folder / f"{job.fingerprint}.json" for job in jobs}
        todo = [job for job in jobs if read_sidecar(targets[job.name]) is None]
        print(f"{kind}: {len(jobs) - len(todo)} of {len(jobs)} shards are there, {len(todo)} to make", flush=True)
        if todo:
            _check_space(folder, sum(job.expected_bytes for job in todo))
            failures = []
            counts: dict[str, int] = {}  # images done, by job

            def look() -> None:
                check()
                progress.move(sum(counts.copy().values()) - progress.done)

            progress = Progress(kind, sum(job.images for job in todo), "image")
            with closing(progress), _stopped_between_jobs() as check, connect(dask, len(todo), check) as client:
                check()
                _check_workers(client, folder, check)
                client.subscribe_topic(_COUNTS, lambda event: counts.update([event[1]]))  # (time, (job, images))
                calls = ((job, (*job.arguments, targets[job.name].with_suffix(""))) for job in todo)
                for job, error in _run_bounded(client, work, calls, look):
                    counts[job.name] = job.images
                    look()
                    if error is not None:
                        failures.append(f"  {job.name}: {_explain(error, dask)}")
            if failures:
                listed = "\n".join(failures[:10])
                raise UserError(
                    f"{kind}: {len(failures)} of {len(todo)} shards failed; the others are kept, and the same command "
                    f"makes only these\n{listed}"
                )
            lost = [name for name, target in targets.items() if read_sidecar(target) is None]
            if lost:
                raise UserError(f"{kind}: {lost[0]} was made but is not in {folder}, which all workers have to share")
    return targets


@contextlib.contextmanager
def _stopped_between_jobs() -> Iterator[Callable[[], None]]:
    """Yields a function that raises KeyboardInterrupt if a signal has come; raises it at the end, too.

    Interrupted at any other place, Dask leaves processes behind and says so at length.
    """
    with Interrupts() as interrupts:
        try:
            yield interrupts.check
        except Exception:
            interrupts.check()  # a signal to the whole group kills workers, and Dask fails for that
            raise
        interrupts.check()


def _check_space(folder: Path, expected: int) -> None:
    """Raises UserError if the disk has no room for the shards, before hours of work."""
    free = shutil.disk_usage(folder).free
    if expected + _SPARE_BYTES > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, and about {expected / 1e9:.1f} GB are needed, with "
            f"{_SPARE_BYTES / 1e9:.1f} GB to spare: make room (`python -m pipeline prune` helps), or set CHARM_STORE "
            "to a folder on a larger disk"
        )


def _check_workers(client: Any, folder: Path, check: Callable[[], None]) -> None:
    """Raises UserError unless workers come, and all of them run this code and see this folder."""
    ours = sorted(name for name in sys.modules if name.startswith(("charm.", "pipeline.")))
    address = client.scheduler.address
    try:
        within(_PATIENCE, lambda: client.wait_for_workers(1), check)
    except TimeoutError:
        raise UserError(f"{address}: no Dask worker came within {_PATIENCE} s; start some") from None
    token = folder / f".preflight-{uuid.uuid4().hex}"
    token.touch()
    try:
        found = within(_PATIENCE, lambda: client.run(_prepare_worker, str(token), ours), check)
    except TimeoutError:
        raise UserError(f"{address}: a Dask worker gave no answer within {_PATIENCE} s; start it anew") from None
    except Exception as error:  # a module is missing there, for example, which comes as an Exception of no kind
        remedy = "start workers in a checkout of it, with the same libraries"
        raise UserError(f"a Dask worker cannot run this code ({first_line(error)}): {remedy}") from error
    finally:
        token.unlink()
    for worker, (sees, runs) in found.items():
        if not sees:
            raise UserError(f"the Dask worker {worker} does not see {folder}: all workers have to share this folder")
        if runs != code_digest(*ours):
            raise UserError(f"the Dask worker {worker} runs another version of this code: update it there")


def _prepare_worker(token: str, modules: list[str]) -> tuple[bool, str]:
    """Tells, on a worker, whether it sees a file, and the digest of its code of some modules."""
    import cv2

    cv2.setNumThreads(1)  # one thread per worker process; OpenCV would start one per core in each
    return Path(token).exists(), code_digest(*modules)


@contextlib.contextmanager
def connect(params: DaskParams, num_tasks: int, check: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """Yields a Dask client of the scheduler that params or DASK_SCHEDULER_ADDRESS name, else of local processes.

    `check` is called again and again while a scheduler is waited for, and may raise.
    """
    from dask import config
    from dask.distributed import Client, LocalCluster
    from distributed.utils import silence_logging_cmgr

    address = params.address or os.environ.get("DASK_SCHEDULER_ADDRESS")
    if address:
        try:  # Client's own limit does not hold where a web server listens, or somebody who says nothing
            client = within(_PATIENCE, lambda: Client(address, timeout=_PATIENCE), check)
        except Exception as error:  # another protocol is taken for the size of an array, and there is no memory for it
            raise UserError(
                f"no Dask scheduler answers at {address} (dask.address in params.yaml, or DASK_SCHEDULER_ADDRESS): "
                f"{first_line(error)}"
            ) from error
        with silence_logging_cmgr(logging.CRITICAL), client:
            yield client
        return
    workers = min(params.workers or os.cpu_count() or 1, num_tasks)
    settings = {
        # A task that killed its worker gets one more try; Dask's default, three, kills three workers' other tasks, too.
        "distributed.scheduler.allowed-failures": 1,
        # Workers are forks of one process that has imported Dask and nothing else: a second less for each. On macOS
        # libraries of the system may have begun threads by then, which no fork survives; Windows has no forks.
        "distributed.worker.multiprocessing-method": "forkserver" if sys.platform == "linux" else "spawn",
    }
    with config.set(settings):
        with _hold_back_interrupts():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=params.memory,
                host="127.0.0.1",
                # Dask's default listens on every interface; None asks for port 8787 and warns where it is taken.
                dashboard_address="127.0.0.1:0",
                # Failures come as exceptions; the errors that Dask logs are of workers that miss the closing scheduler.
                silence_logs=logging.CRITICAL,
            )
        with cluster, Client(cluster) as client:
            yield client


@contextlib.contextmanager
def _hold_back_interrupts() -> Iterator[None]:
    """Holds SIGINT back while entered; processes and threads that are started inside never get it.

    A terminal sends Ctrl-C to every process, and each worker would show a traceback. This process stops the workers.
    """
    resource_tracker.ensure_running()  # begun later, it would let signals through
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _run_bounded(
    client: Any, work: Callable[..., None], calls: Iterable[tuple[Job, tuple[Any, ...]]], check: Callable[[], None]
) -> Iterator[tuple[Job, BaseException | None]]:
    """Yields jobs as they finish; at most two per thread are in flight, so memory does not grow with their number.

    `check` is called again and again and may raise.
    """
    calls = iter(calls)
    in_flight: dict[Any, Job] = {}
    finished: Queue[Any] = Queue()
    store = str(store_folder(""))

    def submit(count: int) -> None:
        for job, arguments in islice(calls, count):
            future = client.submit(_do_job, store, job.name, work, *arguments, pure=False)
            in_flight[future] = job
            future.add_done_callback(finished.put)

    submit(2 * max(1, sum(client.nthreads().values())))
    watch = _watching(client)
    while in_flight:
        check()
        try:
            future = finished.get(timeout=_CHECK_EVERY)
        except Empty:
            watch()
            continue
        if future.status not in ("finished", "error"):  # cancelled, as all are whose scheduler is gone
            raise UserError(_LOST)
        job = in_flight.pop(future)
        yield job, future.exception() if future.status == "error" else None
        future.release()
        submit(1)


def _do_job(store: str, name: str, work: Callable[..., None], *arguments: Any) -> None:
    """Does a job on a worker, which may have been started in another folder, and so with another store."""
    os.environ["CHARM_STORE"] = store
    _job.set(name)
    work(*arguments)


def counting(items: Iterable[T]) -> Iterator[T]:
    """Yields the images that a job works on, and tells the process that waits for the job how many are done."""
    told = time.monotonic()
    for done, item in enumerate(items):
        if _job.get() and time.monotonic() - told > _TELL_EVERY:
            from distributed import get_worker

            told = time.monotonic()
            get_worker().log_event(_COUNTS, (_job.get(), done))
        yield item


def _watching(client: Any) -> Callable[[], None]:
    """Returns a function that raises UserError when scheduler or workers are gone; without it Dask waits for ever."""
    seen = looked = time.monotonic()

    def watch() -> None:
        nonlocal seen, looked
        now = time.monotonic()
        if client.status != "closed" and now - looked < _PATIENCE / 4:
            return
        looked = now
        with contextlib.suppress(Exception):  # of a scheduler that does not answer, in many kinds
            seen = now if within(_PATIENCE / 4, client.nthreads) else seen
        if client.status == "closed" or time.monotonic() - seen > _GONE:
            raise UserError(_LOST)

    return watch


def _explain(error: BaseException, params: DaskParams) -> str:
    if type(error).__name__ == "KilledWorker":
        return f"its worker died, often for want of memory (dask.memory is {params.memory})"
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
