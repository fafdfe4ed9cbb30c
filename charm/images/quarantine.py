"""Opens files that have never been opened before in a child process, which may die of them.

    parent -> child   a line of JSON with the root, limits and bounds; then a line per path
    child -> parent   "ready"; then a line of JSON per path: {"reason": ...} or the facts of a good image

The child opens, hashes and decodes. A child that dies or hangs is replaced. That becomes the reason of the path that it
had if the path was its first one; else the path is tried again in the next child.
"""

import contextlib
import hashlib
import json
import os
import queue
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from charm.images.cells import read_cell
from charm.images.decode import decode_image
from charm.images.limits import BOUNDS, Bounds, Limits
from charm.images.reasons import REASONS, Rejected
from charm.runtime.columns import split_cell
from charm.runtime.disk import resource, say_unprotected

_COMMAND = (sys.executable, "-m", "charm.images.quarantine")
_ROOT = Path(__file__).parents[2]
# The child gets the variables that it needs to run, not the keys and addresses that an environment may hold.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE")
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # numpy would start one per core
_LONGEST_REPLY = 2**16  # bytes; a child that writes without end must not fill the memory of the parent
_OUT_OF_TIME = -getattr(signal, "SIGPROF", 0) or None  # exit code of a child whose timer ended it
_START_SECONDS = 120  # for its imports, on a busy machine with a slow disk
_END_SECONDS = 5
_LOST = ("timeout", "memory", "crashed")
# Opening neither waits for the other end of a pipe nor follows a link that was put there after the path was resolved.
_OPEN_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_NOFOLLOW", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):
    _OPEN_FLAGS |= getattr(os, _name, 0)


def inspect_file(root: Path, path: str, limits: Limits) -> dict[str, Any]:
    """Opens, hashes and decodes a file in this process; returns {"reason": ...}, with the facts where it is ""."""
    try:
        data = read_file(root, path, limits)
        decoded = decode_image(data, limits)
    except Rejected as error:
        return {"reason": error.reason}
    except MemoryError:
        return {"reason": "memory"}
    height, width = decoded.pixels.shape[:2]
    return {
        "reason": "",
        "extension": decoded.extension,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "raw_height": height,
        "raw_width": width,
        "notes": list(decoded.notes),
    }


def read_file(root: Path, path: str, limits: Limits) -> bytes:
    """Reads a regular file below the root, or a cell of one (charm.images.cells).

    Links that lead out of the root, devices and pipes are refused. Raises Rejected: missing, outside,
    unreadable, too_many_bytes; of a cell also corrupt.
    """
    try:
        name, cell = split_cell(path)
        file = (root / name).resolve()
        if not file.is_relative_to(root.resolve()):
            raise Rejected("outside")
        descriptor = os.open(file, _OPEN_FLAGS)
        with open(descriptor, "rb") as opened:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise Rejected("unreadable")
            if cell:
                state = facts.st_ino, facts.st_size, facts.st_mtime_ns
                found = read_cell(file, state, *cell, limits.max_bytes)
                return found if isinstance(found, bytes) else read_file(root, found, limits)
            if facts.st_size > limits.max_bytes:
                raise Rejected("too_many_bytes")
            return opened.read(facts.st_size)
    except Rejected:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise Rejected("missing") from None
    except (OSError, ValueError, RuntimeError):  # no permission, a NUL in the name, links in a circle
        raise Rejected("unreadable") from None


def inspect_in_child(root: Path, paths: list[str], limits: Limits, bounds: Bounds = BOUNDS) -> list[dict[str, Any]]:
    """Inspects each path as `inspect_file` does, in a child process; a file that kills the child costs only itself.

    Raises RuntimeError if the child does not start.
    """
    with contextlib.closing(Quarantine(root, limits, bounds)) as child:
        return [child.inspect_file(path) for path in paths]


class Quarantine:
    """The parent's side: one child process at a time, started for the first file. To be used by one thread.

    Nothing outside of the folder `root` is opened; `bounds` are those of the time and memory that a file may take.
    """

    def __init__(self, root: Path, limits: Limits, bounds: Bounds = BOUNDS) -> None:
        self._settings = {"root": str(root.absolute()), "limits": asdict(limits), "bounds": asdict(bounds)}
        self._wall_seconds = bounds.wall_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.Queue[bytes] = queue.Queue()

    def inspect_file(self, path: str) -> dict[str, Any]:
        """Inspects a file in the child process; the path is relative to the root, or absolute and below it.

        Raises RuntimeError if the child does not start.
        """
        while True:
            is_fresh = self._process is None
            facts = self._ask(self._process or self._start(), path)
            if facts["reason"] not in _LOST:
                return facts
            self.close()
            if is_fresh:  # a file is blamed only if it also fails in a fresh process: earlier files may have done harm
                return facts

    def _start(self) -> subprocess.Popen[bytes]:
        if resource is None:
            say_unprotected("a file that is opened has no limit of memory and of computing time")
        self._process = process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=_ROOT,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | _ONE_THREAD,
            start_new_session=True,  # Ctrl-C is for the parent; a child that died of it would blame its file
        )
        self._replies = queue.Queue()
        threading.Thread(target=_read_lines, args=(process.stdout, self._replies), daemon=True).start()
        if not _send(process, self._settings) or self._receive(_START_SECONDS) != b"ready":
            self.close()
            raise RuntimeError(f"cannot open images: `{' '.join(_COMMAND)}` does not start in {_ROOT}")
        return process

    def _ask(self, process: subprocess.Popen[bytes], path: str) -> dict[str, Any]:
        reply = self._receive(self._wall_seconds) if _send(process, path) else b""
        if reply is None:
            return {"reason": "timeout"}
        try:
            facts: dict[str, Any] = json.loads(reply)
            if facts["reason"] in REASONS or not facts["reason"]:
                return facts
        except (ValueError, LookupError, TypeError):
            pass
        process.kill()
        return {"reason": "timeout" if process.wait() == _OUT_OF_TIME else "crashed"}

    def _receive(self, seconds: float) -> bytes | None:
        """Returns the next line; only its beginning if the child died; None after so many seconds."""
        try:
            return self._replies.get(timeout=seconds)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Ends the child; the next file starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None  # its stdout is closed by the thread that reads it
        process.stdin.close()
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a disk that does not answer
            process.wait(_END_SECONDS)


def _send(process: subprocess.Popen[bytes], value: Any) -> bool:
    """Sends a value to the child as a line of JSON; returns False if the child is gone."""
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(value).encode() + b"\n")
    except BrokenPipeError:
        return False
    return True


def _read_lines(stream: IO[bytes], lines: "queue.Queue[bytes]") -> None:
    """Puts each line of a stream into a queue, the unfinished one last; runs in a thread, as a read cannot time out."""
    with stream:
        rest = b""
        while part := stream.read(_LONGEST_REPLY):
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                lines.put(line)
            if len(rest) > _LONGEST_REPLY:
                break
        lines.put(rest)


def serve() -> None:
    """Runs the child's side until the parent closes the pipe or is gone."""
    replies = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # output of libraries must not be taken for a reply
    requests = sys.stdin.buffer
    settings = json.loads(requests.readline())
    root, limits, bounds = Path(settings["root"]), Limits(**settings["limits"]), Bounds(**settings["bounds"])
    _limit_resources(bounds.megabytes)
    os.write(replies, b"ready\n")
    for line in requests:
        # Both end a process that hangs in a decoder; the second acts only if the parent, which waits less, is gone.
        _set_timers(bounds.cpu_seconds, 2 * bounds.wall_seconds)
        facts = inspect_file(root, json.loads(line), limits)
        _set_timers(0, 0)
        os.write(replies, json.dumps(facts).encode() + b"\n")


def _set_timers(cpu_seconds: float, wall_seconds: float) -> None:
    if resource is not None:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def _limit_resources(megabytes: int) -> None:
    """Forbids this process to write files and core dumps, and limits its memory to `megabytes` more than now."""
    if resource is None:
        return
    # The mask is inherited: a blocked signal of a timer would not end a decoder that hangs.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    pages = Path("/proc/self/statm")
    if pages.exists():  # not on macOS, which does not enforce the limit either
        used = int(pages.read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = used + megabytes * 10**6
        resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


if __name__ == "__main__":
    serve()
