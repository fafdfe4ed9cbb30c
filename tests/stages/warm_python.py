"""A `python` that starts in a few hundredths of a second: a fork of a process that has imported the libraries.

`dvc repro` starts seven stages, most of which import torch and timm, six seconds each before they begin. What a stage
does is not changed by where its libraries were imported; the project's own modules are imported anew by each fork, from
its working folder.

    server:  python warm_python.py SOCKET
    client:  the script that `write_client` makes; takes `-m MODULE ARGUMENTS...`, as python does
"""

import atexit
import contextlib
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

# Third-party modules that a stage or `dvc` imports; none of the project's own.
LIBRARIES = (
    *("cv2", "dask.distributed", "huggingface_hub", "jinja2", "numpy", "pyarrow.parquet", "ruamel.yaml", "safetensors"),
    *("safetensors.torch", "scipy.optimize", "scipy.stats", "simplejpeg", "timm", "torch", "torch.utils.data", "tqdm"),
    *("dvc.cli", "dvc.commands.experiments.run", "dvc.commands.repro", "dvc.repo", "dvc.repo.experiments"),
    *("dvc.repo.reproduce", "dvc.stage.run", "dvc_data.index", "dvc_render", "funcy"),
)
_MESSAGE_BYTES = 1_000_000  # of a request: arguments, working folder and environment


def serve(path: str) -> None:
    """Imports LIBRARIES, then answers each connection with a fork, until it is terminated."""
    for name in LIBRARIES:
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
    """Runs what is asked for in a child, and sends its exit code."""
    data, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        connection.send(str(os.waitstatus_to_exitcode(status) % 256).encode())
        os._exit(0)
    connection.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    code = _run(json.loads(data))
    # As an interpreter ends, but without taking its modules apart: with these, that takes three seconds.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _run(request: dict[str, Any]) -> int:
    """Returns the exit code of a module."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    option, module, *arguments = request["arguments"]
    assert option == "-m", request["arguments"]
    sys.path[0] = request["folder"]
    sys.argv = ["-m", *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
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
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
os._exit(int(server.recv(16) or 1))
"""


@contextlib.contextmanager
def warm_python(folder: Path) -> Iterator[Path]:
    """Gives a folder for PATH whose `python` is quick, while a server is at work there."""
    path, folder_of_command = str(folder / "socket"), folder / "bin"
    folder_of_command.mkdir()
    command = folder_of_command / "python"
    command.write_text(CLIENT.format(python=sys.executable, path=path, message_bytes=_MESSAGE_BYTES))
    command.chmod(0o755)
    with subprocess.Popen([sys.executable, __file__, path], cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        try:
            yield folder_of_command
        finally:
            server.terminate()


if __name__ == "__main__":
    serve(sys.argv[1])
