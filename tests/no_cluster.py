"""The stages up to the maps in this process, without Dask and without the child that opens images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from charm.images.decode import Limits
from charm.images.quarantine import inspect_file
from pipeline.manifest import rows
from pipeline.settings.params import DaskParams
from pipeline.work import executor

_code_digest = cache(executor.code_digest)  # of a hundred modules, which stay as they are


class Future:
    """A task that was done when it was handed over."""

    def __init__(self, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.status, self._error = "finished", None
        try:
            work(*arguments)
        except Exception as error:
            self.status, self._error = "error", error

    def exception(self) -> Exception | None:
        return self._error

    def add_done_callback(self, function: Callable[["Future"], None]) -> None:
        function(self)

    def release(self) -> None:
        pass


def use_no_cluster(patch: pytest.MonkeyPatch) -> None:
    """Lets make_missing do its tasks in this process, one after another.

    Images are opened in this process, too: a child takes a third of a second to come, and a sweep runs a stage 658
    times. tests/charm/images/test_quarantine.py shows that both find the same.
    """
    client = SimpleNamespace(
        scheduler=SimpleNamespace(address="here"),
        wait_for_workers=lambda count: None,
        run=lambda function, *arguments: {"here": function(*arguments)},
        nthreads=lambda: {"here": 1},
        submit=lambda do_job, store, name, work, *arguments, pure: Future(work, arguments),
        subscribe_topic=lambda topic, handler: None,
    )

    @contextmanager
    def connect(params: DaskParams, num_tasks: int, check: Callable[[], None]) -> Iterator[Any]:
        yield client

    def inspect_here(root: Path, paths: list[str], limits: Limits) -> list[dict[str, Any]]:
        return [inspect_file(root, path, limits) for path in paths]

    patch.setattr(rows, "inspect_in_child", inspect_here)
    patch.setattr(executor, "connect", connect)
    patch.setattr(executor, "code_digest", _code_digest)
