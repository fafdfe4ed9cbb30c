"""A `python` that starts in a few hundredths of a second: a fork of a process that has imported the libraries.

Most stages and commands import torch and timm, which takes longer than what a test has them do. What they do is not
changed by where their libraries were imported; the project's own modules are imported anew by each fork, from its
working folder.

    python = find_warm_python(folder, owner)
    python.popen(["python", "-m", "stages.train"], cwd=...)  # as subprocess.Popen, whatever python is named
    [python.command, "-m", "stages.train"]  # an executable; no signal reaches what it runs

The server is this file as a script: python warm_python.py SOCKET OWNER
"""

import atexit
import contextlib
import fcntl
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
import traceback
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

# Third-party modules that a stage, a command or `dvc` imports; none of the project's own.
LIBRARIES = (
    *("cv2", "dask.distributed", "huggingface_hub", "jinja2", "numpy", "pyarrow.parquet", "ruamel.yaml", "safetensors"),
    *("safetensors.torch", "scipy.optimize", "scipy.stats", "simplejpeg", "timm", "torch", "torch.utils.data", "tqdm"),
    *("dvc.cli", "dvc.commands.experiments.run", "dvc.commands.repro", "dvc.repo", "dvc.repo.experiments"),
    *("dvc.repo.reproduce", "dvc.stage.run", "dvc_data.index", "dvc_render", "funcy"),
)
_MESSAGE_BYTES = 1_000_000  # of a request: arguments, working folder and environment


def serve(path: str, owner: int) -> None:
    """Imports LIBRARIES, then answers each connection with a fork, as long as the process `owner` lives."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # a fork that collects garbage would copy all pages of the libraries
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(8)
        listener.settimeout(1)
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the runs
        while True:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                os.kill(owner, 0)  # an error when it is gone
                continue
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> NoReturn:
    """Runs what is asked for in a child; sends its number, and when it has ended its status, as os.waitpid gives it."""
    data, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
    request = json.loads(data)
    child = os.fork()
    if child:
        connection.send(str(child).encode())
        for descriptor in descriptors:
            os.close(descriptor)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(BrokenPipeError):
            connection.send(str(status).encode())
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
request["session"] = False
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
server.recv(16)
os._exit(os.waitstatus_to_exitcode(int(server.recv(16))) % 256)
"""


class _Popen(subprocess.Popen[Any]):
    """A Popen whose command is run by a fork of the server, which tells how it ended."""

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
            "session": start_new_session,
        }
        pipes = [own if own >= 0 else number for number, own in enumerate((p2cread, c2pwrite, errwrite))]
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE_BYTES)
        self._server.connect(self.path)
        socket.send_fds(self._server, [json.dumps(request).encode()], pipes)
        self.pid = int(self._server.recv(16))
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """As os.waitpid, of which it takes the place in Popen.wait."""
        self._server.setblocking(not wait_flags)
        try:
            status = int(self._server.recv(16))
        except BlockingIOError:
            return 0, 0
        self._server.close()
        return self.pid, status

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        with self._waitpid_lock:
            if self.returncode is None:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
        return self.returncode


@dataclass(frozen=True)
class WarmPython:
    """command: the executable; popen: as subprocess.Popen, whose first argument may be any python."""

    command: Path
    popen: type[subprocess.Popen[Any]]


def find_warm_python(folder: Path, owner: int) -> WarmPython:
    """Returns what runs forks of the server of a folder; it is started where there is none, and ends with `owner`.

    Elsewhere than on Linux, whose sockets it needs, it is Python as ever.
    """
    if sys.platform != "linux":
        return WarmPython(Path(sys.executable), subprocess.Popen)
    path, command = str(folder / "socket"), folder / "bin" / "python"
    command.parent.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not command.exists():
            told, tells = os.pipe()
            started = [sys.executable, __file__, path, str(owner)]
            os.posix_spawn(sys.executable, started, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, tells, 1)])
            os.close(tells)
            with open(told) as said:
                assert said.readline() == "ready\n"
            command.write_text(CLIENT.format(python=sys.executable, path=path, message_bytes=_MESSAGE_BYTES))
            command.chmod(0o755)
    return WarmPython(command, type("Popen", (_Popen,), {"path": path}))


if __name__ == "__main__":
    with contextlib.suppress(ProcessLookupError):
        serve(sys.argv[1], int(sys.argv[2]))
