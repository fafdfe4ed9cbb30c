"""A `python` that starts in a few hundredths of a second: a fork of a process that has imported the libraries.

Most stages and commands import torch and timm, which takes longer than what a test has them do. What they do is not
changed by where their libraries were imported; the project's own modules are imported anew by each fork, from its
working folder.

    with warm_python(folder) as python:
        python.popen(["-m", "stages.train"], cwd=...)  # a subprocess.Popen, whose process is a child of this one
        [python.command, "-m", "stages.train"]  # an executable; no signal reaches what it runs

The server is this file as a script: python warm_python.py SOCKET LIBRARY...
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

# Third-party modules that a stage or a command imports; none of the project's own.
LIBRARIES = (
    *("cv2", "dask.distributed", "huggingface_hub", "jinja2", "numpy", "pyarrow.parquet", "ruamel.yaml", "safetensors"),
    *("safetensors.torch", "scipy.optimize", "scipy.stats", "simplejpeg", "timm", "torch", "torch.utils.data", "tqdm"),
)
_MESSAGE_BYTES = 1_000_000  # of a request: arguments, working folder and environment


def serve(path: str, *libraries: str) -> None:
    """Imports libraries, then answers each connection with a fork, until it is terminated."""
    for name in libraries:
        importlib.import_module(name)
    gc.freeze()  # a fork that collects garbage would copy all pages of the libraries
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(8)
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the runs
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> NoReturn:
    """Runs what is asked for in a child; sends its exit code, or its number where it is to be whose parent's parent."""
    data, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
    request = json.loads(data)
    child = os.fork()
    if child:
        if request["adopted"]:
            connection.send(str(child).encode())
        else:
            _, status = os.waitpid(child, 0)
            connection.send(str(os.waitstatus_to_exitcode(status) % 256).encode())
        os._exit(0)
    connection.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request["session"]:
        os.setsid()
    code = _run(request)
    # As an interpreter ends, but without taking its modules apart: with these, that takes three seconds.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _run(request: dict[str, Any]) -> int:
    """Returns the exit code of `-m MODULE ...`, `-c CODE ...` or `FILE ...`; `-u` may come first."""
    os.chdir(request["folder"])
    environment, arguments = request["environment"], request["arguments"]
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:  # read when torch was loaded
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.path[:1] = [request["folder"], *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    if arguments[0] == "-u":
        arguments.pop(0)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    option = arguments.pop(0) if arguments[0].startswith("-") else ""
    sys.argv = [option, *arguments[1:]] if option else arguments
    try:
        if option == "-m":
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        elif option == "-c":
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(arguments[0], main.__dict__)
        else:
            assert not option, option
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


CLIENT = """#!{python} -ISS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, {message_bytes})
server.connect({path!r})
request = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
request |= {{"adopted": False, "session": False}}
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
os._exit(int(server.recv(16) or 1))
"""


class _Popen(subprocess.Popen[Any]):
    """A Popen whose command is a fork of the server."""

    path: str  # of the socket

    def _execute_child(  # type: ignore[override]
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
        start_new_session, process_group,
    ) -> None:  # fmt: skip
        request = {
            "arguments": [str(argument) for argument in args[1:]],
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "adopted": True,
            "session": start_new_session,
        }
        pipes = [own if own >= 0 else number for number, own in enumerate((p2cread, c2pwrite, errwrite))]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE_BYTES)
            server.connect(self.path)
            _become_subreaper(True)
            socket.send_fds(server, [json.dumps(request).encode()], pipes)
            self.pid = int(server.recv(16))
        while int(Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[1]) != os.getpid():
            time.sleep(0.001)
        _become_subreaper(False)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def _become_subreaper(is_one: bool) -> None:
    """Makes this process, or init again, the parent of a descendant whose own parent ends."""
    assert ctypes.CDLL(None).prctl(36, int(is_one), 0, 0, 0) == 0


@dataclass(frozen=True)
class WarmPython:
    """command: the executable; popen: as subprocess.Popen, whose first argument may be any python."""

    command: Path
    popen: type[subprocess.Popen[Any]]


@contextlib.contextmanager
def warm_python(folder: Path, *more: str) -> Iterator[WarmPython]:
    """Yields what runs forks of a server that has imported LIBRARIES and `more`; its files are in the folder."""
    path, command = str(folder / "socket"), folder / "bin" / "python"
    command.parent.mkdir()
    command.write_text(CLIENT.format(python=sys.executable, path=path, message_bytes=_MESSAGE_BYTES))
    command.chmod(0o755)
    started = [sys.executable, __file__, path, *LIBRARIES, *more]
    with subprocess.Popen(started, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        try:
            yield WarmPython(command, type("Popen", (_Popen,), {"path": path}))
        finally:
            server.terminate()


if __name__ == "__main__":
    serve(*sys.argv[1:])
