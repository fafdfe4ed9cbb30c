"""What a run of the command `score` has finished, so that the same command goes on after any end.

<out>.partial holds lines of JSON: first what the rows were made with, then one per row. A line is there whole or not,
so that no row is lost or comes twice, however a run ends.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

from charm.app.rows import Row
from charm.images.find import ImageFile, escape_path
from charm.images.reasons import PASSING
from charm.runtime.columns import split_cell
from charm.runtime.disk import fsync_dir, lock_file
from charm.runtime.errors import UserError


class Journal:
    """Opened by `open_journal`, for one process at a time.

    Args:
        path: of the file, which is open as `file`.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._about: dict[str, Any] = {}

    def resume(self, image_files: Sequence[ImageFile], about: dict[str, Any]) -> dict[str, Row]:
        """Returns path -> row of the photographs that are finished and have not changed since.

        Args:
            photographs: in any order.
            about: what rows are made with; where it differs, they are of no use.

        Raises:
            UserError: the rows were made with something else, or the journal is damaged.
        """
        self._about = about
        lines = self._read_lines()
        if not lines:
            return {}
        try:
            found, *kept = (json.loads(line) for line in lines)
            rows = {row["path"]: Row(**row | {"state": tuple(row["state"])}) for row in kept}
            differing = [name for name in {**found, **about} if found.get(name) != about.get(name)]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{escape_path(str(self._path))} is damaged: remove it, then run this again") from error
        if differing:
            told = ", ".join(f"{name} {found.get(name)!r} (now {about.get(name)!r})" for name in differing)
            name = escape_path(str(self._path))
            raise UserError(f"{name} is of a run with {told}: remove it to start anew, or choose another --out")
        known = ((one, rows.get(one.place)) for one in image_files)
        return {
            one.path: replace(row, path=one.path)
            for one, row in known
            if row is not None and row.state == read_state(one)
        }

    def _read_lines(self) -> list[bytes]:
        """Returns the whole lines of the journal and cuts off a last line that is incomplete."""
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            self._file.truncate(len(whole))
        return whole.splitlines()

    def append(self, rows: Sequence[Row], image_files: Sequence[ImageFile]) -> None:
        """Keeps the rows of some photographs for good; what may go better the next time is left out."""
        places = {one.path: one.place for one in image_files}
        kept = [
            asdict(row) | {"path": places[row.path]}
            for row in rows
            if row.state is not None and row.reason not in PASSING
        ]
        lines = [self._about] if self._file.seek(0, os.SEEK_END) == 0 else []
        rest = b"".join(json.dumps(line).encode() + b"\n" for line in [*lines, *kept])
        while rest:  # on a disk that is nearly full a part is written, and only the next call says so
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Removes the journal once the table is written."""
        self._path.unlink()


@contextmanager
def open_journal(out: Path) -> Iterator[Journal]:
    """Opens the journal of a table and locks it.

    Raises:
        UserError: another process has it.
    """
    path = out.with_name(f"{out.name}.partial")
    with _lock(path) as file:
        try:
            yield Journal(path, file)
        finally:
            if os.fstat(file.fileno()).st_size == 0 and os.fstat(file.fileno()).st_nlink:
                path.unlink()  # nothing was finished


def _lock(path: Path) -> BinaryIO:
    """Opens the file for reading and appending, for this process alone."""
    while True:
        is_new = not path.exists()
        file = open(path, "a+b", buffering=0)  # noqa: SIM115
        if not lock_file(file, wait=False):
            file.close()
            name = escape_path(str(path))
            raise UserError(f"another process is at work on {name}: wait for it, or choose another --out")
        if os.fstat(file.fileno()).st_nlink:  # 0 where another process has just finished with it
            if is_new:
                fsync_dir(path.parent)
            file.seek(0)
            return file
        file.close()


def read_state(image_file: ImageFile) -> tuple[int, int] | None:
    """Returns the size of the file in bytes and the time of its last change in ns."""
    try:
        found = Path(split_cell(image_file.path)[0]).stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
