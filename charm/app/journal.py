"""Lines of JSON on disk that survive any end of a process: the rows of `charm score`, the answers of `charm teach`.

A journal's first line says what the others were made with. A line is there whole or not, so that none is lost or comes
twice, however a run ends.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from charm.app.rows import Row
from charm.images.find import ImageFile, escape_path
from charm.images.reasons import PASSING
from charm.runtime.columns import split_cell
from charm.runtime.disk import fsync_dir, lock_file
from charm.runtime.errors import UserError


class Lines:
    """A journal, opened by `open_lines` for one process at a time.

    Args:
        path: of the file, which is open as `file`.
    """

    remedy = "remove it, then run this again"  # for a damaged file

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._about: dict[str, Any] = {}

    def read(self, about: dict[str, Any]) -> list[Any]:
        """Returns the kept lines, without the first, and cuts off a last line that is incomplete.

        Args:
            about: what lines are made with; where it differs, they are of no use.

        Raises:
            UserError: the lines were made with something else, or the journal is damaged.
        """
        self._about = about
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            self._file.truncate(len(whole))
        try:
            found, *kept = [json.loads(line) for line in whole.splitlines()] or [about]
            differing = [name for name in {**found, **about} if found.get(name) != about.get(name)]
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self.damaged() from error
        if differing:
            told = ", ".join(f"{name} {found.get(name)!r} (now {about.get(name)!r})" for name in differing)
            name = escape_path(str(self._path))
            raise UserError(f"{name} is of a run with {told}: remove it to start anew, or choose another --out")
        return kept

    def damaged(self) -> UserError:
        """Returns the error about a journal that holds what nobody wrote."""
        return UserError(f"{escape_path(str(self._path))} is damaged: {self.remedy}")

    def add(self, lines: Sequence[Any]) -> None:
        """Keeps lines for good, all of them or, where the disk is full, none."""
        end = self._file.seek(0, os.SEEK_END)
        rest = b"".join(json.dumps(line).encode() + b"\n" for line in [*([] if end else [self._about]), *lines])
        try:
            while rest:  # on a disk that is nearly full a part is written, and only the next call says so
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def remove(self) -> None:
        """Removes the journal once its lines are not needed any more."""
        self._path.unlink()


class Journal(Lines):
    """What a run of `charm score` has finished, <out>.partial: a line per row."""

    def resume(self, image_files: Sequence[ImageFile], about: dict[str, Any]) -> dict[str, Row]:
        """Returns path -> row of the images, in any order, that are finished and have not changed since.

        Raises:
            UserError: as of `read`.
        """
        try:
            rows = {row["path"]: Row(**row | {"state": tuple(row["state"])}) for row in self.read(about)}
        except (LookupError, TypeError) as error:
            raise self.damaged() from error
        known = ((one, rows.get(one.place)) for one in image_files)
        return {
            one.path: replace(row, path=one.path)
            for one, row in known
            if row is not None and row.state == read_state(one)
        }

    def append(self, rows: Sequence[Row], image_files: Sequence[ImageFile]) -> None:
        """Keeps the rows of some images for good; what may go better the next time is left out."""
        places = {one.path: one.place for one in image_files}
        self.add(
            [
                asdict(row) | {"path": places[row.path]}
                for row in rows
                if row.state is not None and row.reason not in PASSING
            ]
        )


Kind = TypeVar("Kind", bound=Lines)


@contextmanager
def open_lines(path: Path, kind: type[Kind]) -> Iterator[Kind]:
    """Opens a kind of journal and locks it; what nothing was added to is removed in the end.

    Raises:
        UserError: another process has it.
    """
    with _lock(path) as file:
        try:
            yield kind(path, file)
        finally:
            if os.fstat(file.fileno()).st_size == 0 and os.fstat(file.fileno()).st_nlink:
                path.unlink()  # nothing was finished


@contextmanager
def open_journal(out: Path) -> Iterator[Journal]:
    """Opens the journal of a table, as `open_lines`."""
    with open_lines(out.with_name(f"{out.name}.partial"), Journal) as journal:
        yield journal


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
