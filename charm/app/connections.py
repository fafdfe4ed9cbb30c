"""Connections to the server that end, and no more of them than the system has open files for.

uvicorn waits for the rest of a request's head, and for a client to take a reply, for as long as the connection lasts.
"""

import asyncio
import http
import sys
from collections.abc import Callable

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from charm.app.guard import HEADERS, Refused, describe_refusal
from charm.app.limits import ServerLimits
from charm.runtime.disk import resource

_OWN_FILES = 64  # of the interpreter, the event loop and the child processes


def count_connections(limits: ServerLimits) -> tuple[int, int]:
    """Returns how many connections may be open, and how many may wait to be accepted.

    Raises the soft limit of open files to the hard one. Beside its connections, the server opens a file per request;
    connections are accepted in one go and counted only then.
    """
    files = _raise_file_limit()
    backlog = min(128, files // 4)
    return min(limits.connections, max(files // 4, files - limits.requests - backlog - _OWN_FILES)), backlog


def _raise_file_limit() -> int:
    """Returns how many files may be open."""
    if resource is None:
        return sys.maxsize
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (ValueError, OSError):  # macOS: no more than the kernel's own limit, which is not told
        pass
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def make_protocol(limits: ServerLimits, most: int) -> type[H11Protocol]:
    """Returns uvicorn's protocol with the deadlines of `limits`, for at most so many connections."""
    return type("Connection", (_Connection,), {"limits": limits, "most": most})


class _Connection(H11Protocol):
    """uvicorn's side of a connection, with a deadline for each wait for the client but that for a request's body."""

    limits: ServerLimits
    most: int

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        transport.set_write_buffer_limits(0)  # pause_writing means that something is not taken, resume_writing none
        if len(self.connections) > self.most:
            self._refuse(Refused(503, "busy", f"{self.most} connections are open: try again"))
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._timers):
            self._stop(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start("reply", self.limits.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop("reply")
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP. Within a request's body, uvicorn would send this and the request's own answer."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self._refuse(Refused(400, "malformed", "this is no HTTP/1.1 request"))
        else:
            self.transport.close()

    def _watch_head(self) -> None:
        """Starts the head's time when a head begins, and stops it at its end; a byte more does not renew it."""
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._start("head", self.limits.head_seconds, self._end_head)
        else:
            self._stop("head")

    def _end_head(self) -> None:
        if self.conn.trailing_data[0]:
            seconds = self.limits.head_seconds
            self._refuse(Refused(408, "too_slow", f"the head of the request took more than {seconds:g} seconds"))
        else:
            self.transport.close()

    def _refuse(self, error: Refused) -> None:
        """Answers without the application, and closes the connection."""
        response = describe_refusal(None, error)
        response.headers.update(HEADERS)
        start = f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}".encode()
        head = [start, *(b": ".join(header) for header in response.raw_headers)]
        self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        self.transport.close()

    def _start(self, name: str, seconds: float, end: Callable[[], None]) -> None:
        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, end)

    def _stop(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()
