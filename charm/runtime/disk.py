"""Files on disk: written whole or not at all, hashed, locked."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import re
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, BinaryIO

from charm.runtime.errors import UserError

try:
    import fcntl
    import resource as resource  # for those who limit or measure what processes take
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]

_BUFFER = 1 << 20  # bytes; a tar is written in pieces of 10 kB, and each would be a call of the system
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # how formulas begin in spreadsheets; full-width, too
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
_NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


def fingerprint(*parts: Any) -> str:
    """Returns the sha256 of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name_impostor(path: Path) -> str:
    """Names what often lies in the place of a file of weights: a Git LFS pointer, a web page, a text; "" if none does.

    Raises OSError if the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(400)
    if b"\0" in head[:8]:  # the length of safetensors' header, whose first byte may be "<"
        return ""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer and not the file that it stands for: fetch that by `git lfs pull`, or download it"
    if head.lstrip().startswith(b"<"):
        return "a web page, of a login or an error perhaps, that was saved in place of the weights: download them again"
    text = " ".join(head.decode("latin-1").split())
    if text.isprintable() and text.isascii() and text:
        return f"a text and no file of weights; it begins {text[:60]!r}"
    return ""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to be there whole or not at all: it is written aside, flushed to disk, renamed.

    Raises UserError if there is no room for the file; an earlier file at the path stays as it is.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # host and process id do not tell containers apart
    try:
        with open(part, "wb", buffering=_BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        fsync_dir(path.parent)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise UserError(f"{path} cannot be written ({error.strerror}): make room, then run this again") from error
    finally:
        part.unlink(missing_ok=True)


def fsync_dir(folder: Path) -> None:
    """Flushes the names in a folder to disk: a rename is safe from a power cut only after this."""
    if os.name == "nt":  # which opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def guard_name(name: str) -> str:
    """Returns ./name for a name that a spreadsheet would run as a formula: the same path, and no formula."""
    return f"./{name}" if _FORMULA.match(name) else name


def encode_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Encodes a table with a header as CSV, with line feeds alone; None becomes an empty cell.

    Text that a spreadsheet would run as a formula begins with ./ instead; numbers, also written out, stay as they are.
    """
    lines: list[str] = []
    # Before Python 3.13, only what is in the line's end is quoted: with \n alone, a cell with \r would break its row.
    writer = csv.writer(SimpleNamespace(write=lambda line: lines.append(line.removesuffix("\r\n") + "\n")))
    for row in (columns, *rows):
        writer.writerow([guard_name(x) if isinstance(x, str) and not _NUMBER.fullmatch(x) else x for x in row])
    return "".join(lines).encode()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes `encode_csv` of a table to a file."""
    with atomic_write(path) as file:
        file.write(encode_csv(columns, rows))


def lock_file(file: IO[Any], wait: bool = True) -> bool:
    """Takes the lock of an open file, which lasts until the file is closed, however the process ends.

    A system without such locks, as Windows, does not keep two processes apart, which is said once.

    Returns:
        Whether the lock was taken; with `wait` it always is.
    """
    if fcntl is None:
        say_unprotected("two processes at work on one file are not kept apart")
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


_said: set[str] = set()


def say_unprotected(what: str) -> None:
    """Says once on stderr what this system lacks."""
    if what not in _said:
        _said.add(what)
        print(f"charm: on this system {what}", file=sys.stderr)
