"""Stops a writer at each operation in turn, and looks at what a reader finds and at what the next run makes of it."""

import contextlib
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from charm.runtime.errors import UserError
from tests.faults.disk import EFFECTS, Disk, Stopped

REFUSED = "refused"  # what a reader sees that raises UserError


def tree(folder: Path) -> dict[str, str]:
    """Path -> sha256 of each file, without what begins with a dot: locks, and what killed writers leave."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path: path.relative_to(folder) for path in files}
    return {
        str(name): hashlib.sha256(path.read_bytes()).hexdigest()
        for path, name in names.items()
        if not any(part.startswith(".") for part in name.parts)
    }


@dataclass(frozen=True)
class Writer:
    """A writer under test. Its functions are called with the folder that they work in, which is the current one, too.

    Attributes:
        prepare: makes what is there before, in an empty folder; called once, each stop begins with a copy.
        write: what is stopped.
        read: all that the public readers give; None where nothing is there.
        gap: whether a reader may find nothing, or an error, after a stop; else it finds the old or the new content.
        result: of an uninterrupted run and of one that was stopped and run again; the same.
    """

    prepare: Callable[[Path], object]
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    gap: bool = True
    result: Callable[[Path], object] = tree


def sweep(writer: Writer, folder: Path, share: int = 1) -> dict[str, int]:
    """Stops a writer everywhere, by every effect; or at one in `share` places by each, at others for the next effect.

    Returns:
        Numbers for the gate: operations, cases, refused (how often a reader raised UserError), failures.
    """
    _empty(folder)
    writer.prepare(folder)
    prepared = folder.parent / "prepared"
    _copy(folder, prepared)
    before, empty = _look(writer, folder), writer.result(folder)
    with Disk(folder) as disk:
        writer.write(folder)
    after, whole = _look(writer, folder), writer.result(folder)
    assert after not in (None, REFUSED)
    assert whole != empty
    allowed = [before, after] + ([None, REFUSED] if writer.gap else [])
    found: Counter[str] = Counter(operations=len(disk.operations), cases=0, refused=0, failures=0)
    for turn, effect in enumerate(EFFECTS):
        for stop_at in disk.points(effect)[turn % share :: share]:
            _empty(folder)
            _copy(prepared, folder)
            left_before = set(folder.rglob(".*.part"))
            stopped = _stop(writer, folder, stop_at, effect)
            seen, left = _look(writer, folder), set(folder.rglob(".*.part")) - left_before
            writer.write(folder)
            found["cases"] += 1
            found["refused"] += seen == REFUSED
            if (
                seen not in allowed
                or _look(writer, folder) != after
                or writer.result(folder) != whole
                or (left and effect == "disk full")
            ):
                found["failures"] += 1
                print(f"{effect} at {stop_at}, {stopped.operations[stop_at]}: a reader saw {seen!r:.200}; left {left}")
    return dict(found)


def _stop(writer: Writer, folder: Path, stop_at: int, effect: str) -> Disk:
    expected = (UserError, OSError) if effect == "disk full" else Stopped
    with Disk(folder, stop_at, effect) as disk, contextlib.suppress(expected):
        writer.write(folder)
    assert len(disk.operations) > stop_at, "the writer does not do the same each time"
    return disk


def _empty(folder: Path) -> None:
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    os.chdir(folder)


def _copy(source: Path, target: Path) -> None:
    """As the files were made, with their times; names of one file, as the store and what is published, stay so."""
    copies: dict[int, str] = {}

    def copy_file(old: str, new: str) -> None:
        number = Path(old).lstat().st_ino
        if number in copies:
            os.link(copies[number], new)
        else:
            shutil.copy2(old, new, follow_symlinks=False)
            copies[number] = new

    shutil.copytree(source, target, symlinks=True, copy_function=copy_file, dirs_exist_ok=True)


def _look(writer: Writer, folder: Path) -> object:
    try:
        return writer.read(folder)
    except UserError:
        return REFUSED
