"""A disk that fails at one chosen operation, as SQLite tests its own writers: at every operation, one after another.

Counted is what changes the disk: opening to write, writing, flushing, renaming, linking, removing, making folders.
Files are written without a buffer, so that each write of the program is one operation.
"""

import builtins
import contextlib
import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch

# What happens at the chosen operation:
#   killed       the process is gone before it
#   torn         the process is gone when half of a write is on the disk
#   power cut    the same as killed, and files that were not flushed are empty
#   disk full    no room, for this operation and all later ones that take some; the process lives
EFFECTS = ("killed", "torn", "power cut", "disk full")
_TAKES_ROOM = ("create", "write", "mkdir", "link")
# Function of `os` -> name of the operation.
_WATCHED = {
    "open": "create",
    "write": "write",
    "fsync": "flush",
    "replace": "rename",
    "rename": "rename",
    "link": "link",
    "unlink": "remove",
    "remove": "remove",
    "mkdir": "mkdir",
    "rmdir": "rmdir",
}


class Stopped(BaseException):
    """The process is gone. Whatever it still tries comes to nothing."""


class Disk:
    """Used as `with Disk(folder, 7, "killed") as disk: write(...)`.

    Args:
        root: operations outside of this folder are let through.
        stop_at: number of the operation that fails, from 0; None only counts.
        effect: see above.

    Attributes:
        operations: what was tried, "<operation> <file>" each.
        gone: whether the process is.
        not_flushed: inodes of files that hold bytes which a power cut would lose.
    """

    def __init__(self, root: Path, stop_at: int | None = None, effect: str = "killed") -> None:
        self._root, self._stop_at, self._effect = root.resolve(), stop_at, effect
        self.operations: list[str] = []
        self.gone = False
        self.not_flushed: set[int] = set()
        self._real_open, self._real_truncate = builtins.open, os.truncate
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> "Disk":
        for patch in (
            mock.patch.multiple(os, **{function: self._watch(function) for function in _WATCHED}),
            mock.patch.object(builtins, "open", self._open_file),
            mock.patch.object(io, "open", self._open_file),
            mock.patch.object(shutil, "_USE_CP_SENDFILE", False),  # copies without a write
            mock.patch.object(safetensors.torch, "serialize_file", _serialize_file),  # writes in Rust
        ):
            self._patches.enter_context(patch)
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def points(self, effect: str) -> list[int]:
        """Numbers of the operations at which an effect differs from that of "killed"."""
        names = {"torn": ("write",), "disk full": _TAKES_ROOM}.get(effect)
        return [number for number, what in enumerate(self.operations) if names is None or what.split()[0] in names]

    def do(self, name: str, path: Path, act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Does one operation, unless it is the one to fail at; `half` does the first half of it."""
        if not path.is_relative_to(self._root):
            return act()
        if self.gone:
            raise Stopped
        self.operations.append(f"{name} {path.name}")
        if self._stop_at is None or len(self.operations) <= self._stop_at:
            return act()
        if self._effect == "disk full":
            if name in _TAKES_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return act()
        if self._effect == "torn" and half:
            half()
        if self._effect == "power cut":
            for file in self._root.rglob("*"):
                if file.stat().st_ino in self.not_flushed:
                    self._real_truncate(file, 0)
        self.gone = True
        raise Stopped

    def _watch(self, function: str) -> Callable[..., Any]:
        """What stands in for a function of `os`."""
        real = getattr(os, function)

        def watched(first: Any, *arguments: Any, **named: Any) -> Any:
            def act() -> Any:
                if function == "fsync":
                    self.not_flushed.discard(os.fstat(first).st_ino)
                return real(first, *arguments, **named)

            if function == "open" and not arguments[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return act()
            return self.do(_WATCHED[function], _path_of(first, named.get("dir_fd")), act)

        return watched

    def _open_file(self, file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        """What stands in for `open`."""
        path = _path_of(file)
        if not set(mode) & set("wax+") or not path.is_relative_to(self._root):
            return self._real_open(file, mode, *arguments, **named)
        plain = mode.replace("b", "").replace("t", "")
        opened = self.do("open" if path.exists() else "create", path, lambda: _WatchedFile(self, path, plain))
        if "b" in mode:
            return opened
        return io.TextIOWrapper(io.BufferedRandom(opened) if "+" in mode else io.BufferedWriter(opened))


class _WatchedFile(io.FileIO):
    """Without a buffer, which a killed process would lose."""

    def __init__(self, disk: Disk, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._disk, self._path = disk, path

    def write(self, data: Any) -> int:
        if self._disk.gone:  # closing what a process leaves open
            return len(data)
        self._disk.not_flushed.add(os.fstat(self.fileno()).st_ino)
        whole, write = memoryview(data).cast("B"), super().write
        written: int = self._disk.do("write", self._path, lambda: write(whole), lambda: write(whole[: len(whole) // 2]))
        return written


def _path_of(file: Any, folder: int | None = None) -> Path:
    """The absolute path of what a function of `os`, or `open`, was called with."""
    if isinstance(file, int):
        return _path_of_descriptor(file)
    return (Path.cwd() if folder is None else _path_of_descriptor(folder)) / os.fsdecode(file)


def _path_of_descriptor(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _serialize_file(tensors: Any, filename: Any, metadata: Any = None) -> None:
    Path(filename).write_bytes(safetensors.serialize(tensors, metadata))
