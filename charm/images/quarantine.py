"""First contact with files that nobody has opened before, in a child process that may die of them.

    parent -> child   a line of JSON with the root, limits and bounds; then a line per path
    child -> parent   "ready"; then a line of JSON per path: {"reason": ...} or the facts of a good image

The child opens, hashes and decodes; the parent blames each path with what happens to the child while it has it. A child
that was lost in any way is replaced, and the rest goes on in the next.
"""

import contextlib
import hashlib
import json
import os
import resource
import select
import signal
import stat
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from charm.images.decode import Limits, Rejected, decode_image
from charm.images.reasons import REASONS

_COMMAND = (sys.executable, "-m", "charm.images.quarantine")
_ROOT = Path(__file__).parents[2]
# What the child needs to run at all; not the keys and addresses that an environment may hold besides.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE")
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # numpy would start one per core
_LONGEST_REPLY = 2**16
_START_SECONDS = 120  # for its imports, on a busy machine with a slow disk
_END_SECONDS = 5
_LOST = ("timeout", "memory", "crashed")


@dataclass(frozen=True)
class Bounds:
    """What one file may cost.

    Attributes:
        cpu_seconds: of computing, which does not depend on what else the machine does.
        wall_seconds: of waiting, for example for a disk that does not answer.
        megabytes: of memory, beyond what the child has before the first file.
    """

    cpu_seconds: float = 10.0
    wall_seconds: float = 60.0
    megabytes: int = 1500


def inspect_file(root: Path, path: str, limits: Limits) -> dict[str, Any]:
    """Opens, hashes and decodes one file in this process: {"reason": ...}, with the facts where it is ""."""
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
    """The bytes of a regular file below the root; of nothing else, whatever the path is made of.

    Raises:
        Rejected: missing, outside, unreadable, too_many_bytes.
    """
    try:
        file = (root / path).resolve()
        if not file.is_relative_to(root.resolve()):
            raise Rejected("outside")
        # Neither waits for the other end of a pipe nor follows a link that was put there since.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
        with open(descriptor, "rb") as opened:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise Rejected("unreadable")
            if facts.st_size > limits.max_bytes:
                raise Rejected("too_many_bytes")
            return opened.read(facts.st_size)
    except (FileNotFoundError, NotADirectoryError):
        raise Rejected("missing") from None
    except (OSError, ValueError, RuntimeError):  # no permission, a NUL in the name, links in a circle
        raise Rejected("unreadable") from None


def inspect_in_child(root: Path, paths: list[str], limits: Limits, bounds: Bounds = Bounds()) -> list[dict[str, Any]]:
    """As look_at, for each path, in a child process; a file that this process does not survive costs only itself.

    Raises:
        RuntimeError: the child does not start.
    """
    with contextlib.closing(Quarantine(root, limits, bounds)) as child:
        return [child.inspect_file(path) for path in paths]


class Quarantine:
    """The parent's side: one child process at a time, started when there is something to look at. One thread's own.

    Args:
        root: a folder; nothing outside of it is opened.
        limits: what a file may ask for.
        bounds: what it may cost.
    """

    def __init__(self, root: Path, limits: Limits, bounds: Bounds = Bounds()) -> None:
        self._settings = {"root": str(root.absolute()), "limits": asdict(limits), "bounds": asdict(bounds)}
        self._wall_seconds = bounds.wall_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def inspect_file(self, path: str) -> dict[str, Any]:
        """As the function, for a path from the root or an absolute one below it, in the child process.

        Raises:
            RuntimeError: the child does not start.
        """
        while True:
            is_fresh = self._process is None
            facts = self._ask(self._process or self._start(), path)
            if facts["reason"] not in _LOST:
                return facts
            self.close()
            if is_fresh:  # blamed only where it fails as the first one, too: earlier files may have worn the child out
                return facts

    def _start(self) -> subprocess.Popen[bytes]:
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
        if not _send(process, self._settings) or _receive(process, _START_SECONDS) != b"ready":
            self.close()
            raise RuntimeError(f"cannot open images: `{' '.join(_COMMAND)}` does not start in {_ROOT}")
        return process

    def _ask(self, process: subprocess.Popen[bytes], path: str) -> dict[str, Any]:
        reply = _receive(process, self._wall_seconds) if _send(process, path) else b""
        if reply is None:
            return {"reason": "timeout"}
        try:
            facts: dict[str, Any] = json.loads(reply)
            if facts["reason"] in REASONS or not facts["reason"]:
                return facts
        except (ValueError, LookupError, TypeError):
            pass
        process.kill()
        return {"reason": "timeout" if process.wait() == -signal.SIGPROF else "crashed"}

    def close(self) -> None:
        """Ends the child; the next file starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a disk that does not answer
            process.wait(_END_SECONDS)


def _send(process: subprocess.Popen[bytes], value: Any) -> bool:
    """Whether the child is there to read it."""
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(value).encode() + b"\n")
    except BrokenPipeError:
        return False
    return True


def _receive(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """The next line without its end; what there is of it where the child died; None after so many seconds."""
    assert process.stdout is not None
    ends = time.monotonic() + seconds
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    line = b""
    while len(line) < _LONGEST_REPLY:
        if not poll.poll(max(0, ends - time.monotonic()) * 1000):
            return None
        part = os.read(process.stdout.fileno(), _LONGEST_REPLY)
        line += part
        if not part or part.endswith(b"\n"):
            break
    return line.removesuffix(b"\n")


def serve() -> None:
    """The child's side, until the parent closes the pipe or is gone."""
    replies = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what libraries print is no reply
    requests = sys.stdin.buffer
    settings = json.loads(requests.readline())
    root, limits, bounds = Path(settings["root"]), Limits(**settings["limits"]), Bounds(**settings["bounds"])
    _limit_resources(bounds.megabytes)
    os.write(replies, b"ready\n")
    for line in requests:
        # Both end the process where nothing else could; the second one only where the parent is gone.
        signal.setitimer(signal.ITIMER_PROF, bounds.cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, 2 * bounds.wall_seconds)
        facts = inspect_file(root, json.loads(line), limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(replies, json.dumps(facts).encode() + b"\n")


def _limit_resources(megabytes: int) -> None:
    """No files written, no core dumps, and so much memory beyond what is in use now."""
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
