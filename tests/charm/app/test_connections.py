"""Clients that are slow, many, or gone: each wait for them ends, and others are served meanwhile or soon after.

On the loopback alone; each test takes a few seconds at most, by limits that are short.
"""

import contextlib
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charm.app.connections import count_connections
from charm.app.limits import SERVER_LIMITS, ServerLimits
from charm.scorer import CharmScorer
from tests.charm.app.conftest import build_scorer
from tests.charm.app.test_server import JPEGS, attach, connect
from tests.conftest import ROOT
from tests.serving import run_server
from tests.warm_python import WarmPython

SHORT = replace(SERVER_LIMITS, requests=4, connections=20, head_seconds=0.8, body_seconds=0.8, end_seconds=1)
HEAD = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
GOOD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
SECONDS = 20  # no test waits for so long


@pytest.fixture(scope="module")
def address(scorer: CharmScorer) -> Iterator[str]:
    with run_server(scorer, SHORT) as started:
        yield started


def open_socket(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=SECONDS)


def read_all(connection: socket.socket) -> bytes:
    """What the server sends until it ends the connection, however it does."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(2**16):
            found += data
    return found


def parse(reply: bytes) -> tuple[int, str]:
    """Status and code of a refusal."""
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head.lower()
    assert b"\r\nx-content-type-options: nosniff" in head.lower()
    assert f"content-length: {len(body)}" in head.decode().lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def trickle(connection: socket.socket, data: bytes, pause: float = 0.1) -> None:
    """Sends a byte at a time, until all is sent or the server has had enough."""
    with contextlib.suppress(OSError):
        for start in range(len(data)):
            connection.sendall(data[start : start + 1])
            time.sleep(pause)


@pytest.mark.parametrize("before", [b"", GOOD, GOOD + GOOD], ids=["first", "second", "third"])
def test_a_head_has_one_deadline_that_no_byte_renews(before: bytes, address: str) -> None:
    with open_socket(address) as connection:
        connection.sendall(before)
        replies = b""
        while replies.count(b"HTTP/1.1 200 OK") < before.count(b"GET") or not replies.endswith(
            b"}}" if before else b""
        ):
            replies += connection.recv(2**16) or pytest.fail("closed")
        started = time.monotonic()
        trickle(connection, HEAD)
        reply = read_all(connection)
    assert parse(reply) == (408, "too_slow")
    assert 0.7 < time.monotonic() - started < 3


def test_a_head_that_is_pipelined_ends_too(address: str) -> None:
    """Its beginning comes while the request before is answered."""
    with open_socket(address) as connection:
        connection.sendall(GOOD + HEAD)
        time.sleep(0.2)
        connection.sendall(b"X")
        reply = read_all(connection)
    assert parse(reply.partition(b"}}")[2]) == (408, "too_slow")


def test_a_connection_that_says_nothing_is_closed(address: str) -> None:
    started = time.monotonic()
    with open_socket(address) as connection:
        assert read_all(connection) == b""
    assert 0.7 < time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("length", "piece"), [(b"Content-Length: 9999", b"x"), (b"Transfer-Encoding: chunked", b"1\r\nx\r\n")]
)
def test_slow_bodies_hold_their_places_for_their_time_alone(length: bytes, piece: bytes, address: str) -> None:
    """A byte each 0.1 s: as many as there are places; others are told to try again, and are served once they end."""
    connections = [open_socket(address) for _ in range(SHORT.requests)]
    for connection in connections:
        connection.sendall(HEAD + length + b"\r\n\r\n")
    started = time.monotonic()
    threads = [threading.Thread(target=trickle, args=(one, piece * 40)) for one in connections]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    with connect(address) as client:
        reply = client.post("/score", files=attach(JPEGS[0]))
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "busy")
        while reply.status_code == 503:
            assert time.monotonic() - started < 10
            time.sleep(0.1)
            reply = client.post("/score", files=attach(JPEGS[0]))
        assert reply.status_code == 200
    assert time.monotonic() - started < 8  # the deadline, and what is drained of a body that is not wanted
    for connection, thread in zip(connections, threads, strict=True):
        assert parse(read_all(connection)) == (408, "too_slow")
        thread.join()
        connection.close()


def test_no_more_connections_than_the_limit(address: str) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(open_socket(address)) for _ in range(SHORT.connections)]
        for connection in connections:
            connection.sendall(HEAD)
        time.sleep(0.2)
        with open_socket(address) as one_more:
            assert parse(read_all(one_more)) == (503, "busy")
        replies = [read_all(connection) for connection in connections]
        assert {parse(reply) for reply in replies} == {(408, "too_slow")}
        with connect(address) as client:
            assert client.get("/health").status_code == 200


def test_a_client_that_takes_no_reply_is_dropped(address: str) -> None:
    with open_socket(address) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        page = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            connection.settimeout(0.3)
            for _ in range(1_000_000):  # until neither side takes more; a kernel may hold 6 MB back, 160,000 of them
                connection.sendall(page)
                sent += 1
        assert 100 < sent < 1_000_000
        time.sleep(1.5)
        connection.settimeout(SECONDS)
        assert read_all(connection).count(b"</html>") < sent
    with connect(address) as client:
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000, 400),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\nno chunk\r\n", 400),
        (HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx", 422),
    ],
)
def test_what_is_no_http_costs_no_line_in_the_log(
    sent: bytes, status: int, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_socket(address) as connection:
        connection.sendall(sent)
        reply = read_all(connection)
    assert int(reply.split()[1]) == status
    assert reply.count(b"\r\ncontent-type: ") == 1
    with connect(address) as client:
        assert client.get("/health").status_code == 200
    assert [record for record in caplog.records if record.name.startswith(("uvicorn", "asyncio"))] == []


def test_a_client_that_leaves_within_its_body_costs_no_line_in_the_log(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    for sent in (HEAD, HEAD + b"Content-Length: 99\r\n\r\nx", GOOD, GOOD * 9):
        with open_socket(address) as connection:
            connection.sendall(sent)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # a reset
    time.sleep(0.3)
    with connect(address) as client:
        assert client.get("/health").status_code == 200
    assert [record for record in caplog.records if record.name.startswith(("uvicorn", "asyncio"))] == []


def test_requests_take_turns_at_the_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """One form of many slow images, with one decoder; the next request waits for no more than two of them."""
    model, order = build_scorer(), list[tuple[int, ...]]()
    tokenize = model.tokenize

    def tokenize_slowly(image: np.ndarray, *arguments: Any, **settings: Any) -> Any:
        order.append(image.shape[:2])
        time.sleep(0.1)
        return tokenize(image, *arguments, **settings)

    monkeypatch.setattr(model, "tokenize", tokenize_slowly)
    with (
        run_server(model, ServerLimits(decoders=1)) as address,
        ThreadPoolExecutor(1) as pool,
        connect(address) as client,
        connect(address) as other,
    ):
        form = pool.submit(client.post, "/score", files=attach(*[JPEGS[0]] * 20))
        while len(order) < 3:
            time.sleep(0.01)
        before = len(order)
        assert other.post("/score", files=attach(JPEGS[1], JPEGS[2])).status_code == 200
        assert not form.done()
        assert len(form.result(SECONDS).json()["scores"]) == 20
    own = [place for place, shape in enumerate(order) if shape != order[0]]
    assert own[0] - before <= 2
    assert own[1] - own[0] == 2  # in turn


SLOW = """
import resource, time
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
from dataclasses import replace
from charm.app.limits import SERVER_LIMITS
from charm.app.reading import load_scorer
from charm.app.server import bind, build_app, make_server
from charm.runtime.interrupts import Interrupts
scorer = load_scorer({model!r}, "cpu")
tokenize = scorer.tokenize
scorer.tokenize = lambda *given, **named: time.sleep(0.3) or tokenize(*given, **named)
limits = replace(SERVER_LIMITS, end_seconds=1)
with bind("127.0.0.1", 0) as bound, Interrupts():
    print(f"Serving at http://127.0.0.1:{{bound.getsockname()[1]}}/", flush=True)
    make_server(build_app(scorer, limits=limits), limits).run(sockets=[bound])
"""


@contextlib.contextmanager
def serving(warm: WarmPython, code: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    environment = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with warm.popen(command, cwd=ROOT, env=environment, **pipes) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split(" at ")[1].split()[0].rstrip("/")
            with connect(address) as client:
                assert client.get("/health").status_code == 200
            yield process, address
        finally:
            process.kill()


def read_waiting(connection: socket.socket) -> bytes:
    connection.setblocking(False)
    try:
        return connection.recv(2**16)
    except BlockingIOError:
        return b""
    except ConnectionResetError:
        return b" 503 "  # it was sent, and what this side sent afterwards took it away


def test_the_limits_leave_files_for_the_server_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for files in (64, 128, 256, 1024, 4096, 10**6):
        monkeypatch.setattr("charm.app.connections._raise_file_limit", lambda files=files: files)
        connections, backlog = count_connections(SERVER_LIMITS)
        assert 16 <= connections <= SERVER_LIMITS.connections
        assert connections + backlog + min(connections, SERVER_LIMITS.requests) < files


def test_many_connections_and_then_an_end_within_a_form(served_folder: Path, warm: WarmPython, tmp_path: Path) -> None:
    """In a process that may open 200 files; its start takes longer than all of this."""
    with serving(warm, SLOW.format(model=str(served_folder)), tmp_path) as (process, address):
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (200, 200)  # 64 when it began
        check_many(address)
        started = time.monotonic()
        check_end(process, address)
        _, errors = process.communicate(timeout=SECONDS)
        assert time.monotonic() - started < 10
        assert len(errors.splitlines()) == 1  # nor was there any of the many connections
        assert "graceful shutdown" in errors
        assert process.returncode == 0
    assert list(tmp_path.glob("charm-*")) == []


def check_many(address: str) -> None:
    """More connections than open files: those too many are told so, and a request is served once others have ended."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(open_socket(address)) for _ in range(250)]
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(HEAD)
        time.sleep(0.5)
        assert sum(b" 503 " in read_waiting(connection) for connection in connections) >= 150
    with connect(address) as client:
        assert client.post("/score", files=attach(JPEGS[0])).status_code == 200


def check_end(process: subprocess.Popen[str], address: str) -> None:
    """SIGTERM while a form is decoded, another is still sent, and there is half a head."""
    with (
        ThreadPoolExecutor(1) as pool,
        connect(address) as client,
        open_socket(address) as sending,
        open_socket(address) as half,
    ):
        sending.sendall(HEAD + b"Content-Length: 99999\r\n\r\nx")
        half.sendall(HEAD)
        form = pool.submit(client.post, "/score", files=attach(*[JPEGS[0]] * 64))
        time.sleep(0.5)
        process.terminate()
        reply = form.result(SECONDS)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "ending")
        assert parse(read_all(sending)) == (503, "ending")
        assert read_all(half) == b""
