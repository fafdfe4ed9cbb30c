"""Checks host, origin and size of a request before its body is read."""

import asyncio
import contextlib
import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from charm.app.limits import ServerLimits

_DRAIN_SECONDS = 2  # for the rest of a body that is not wanted
EVERYWHERE = ("", "0.0.0.0", "::")  # what a server listens on to be reached under all of a machine's addresses
# A page's own policy, with the nonce of its script, replaces this one.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is not served: HTTP status, a code for programs, a message for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def describe_refusal(request: Request, error: Exception) -> JSONResponse:
    """Returns the response to a request that was refused, or that failed in the server."""
    if not isinstance(error, Refused):
        error = Refused(500, "internal", "the server failed at this; its log says how")
    # What is left of the body is not wanted, so the connection ends here.
    headers = {"Connection": "close"} | ({"Retry-After": "2"} if error.status == 503 else {})
    return JSONResponse({"error": {"code": error.code, "message": str(error)}}, error.status, headers)


class Guard:
    """ASGI middleware: refuses what the limits and this host's names rule out, closes what browsers leave open.

    Args:
        app: serves what is let through; turns Refused, which reading a body may raise, into an answer.
        host: that the server listens on. Other names are refused, or a page elsewhere whose name is made to point
            here could read the answers ("DNS rebinding"). An address is no such name: on all addresses, all are taken.
    """

    def __init__(self, app: ASGIApp, host: str, limits: ServerLimits) -> None:
        self._app, self._limits = app, limits
        self._names = {"localhost", "127.0.0.1", "::1", host.lower()}
        self._takes_addresses = host in EVERYWHERE
        if self._takes_addresses:
            self._names.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        body = _Body(receive, self._limits)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if message["status"] >= 400:
                    await body.drain()
            await send(message)

        try:
            self._check(scope["method"], Headers(scope=scope))
        except Refused as error:
            return await describe_refusal(Request(scope), error)(scope, receive, send_guarded)
        return await self._app(scope, body.receive, send_guarded)

    def _check(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._is_here(host):
            told = "this server is not called that: use the address that it printed, or an IP address of its machine"
            raise Refused(403, "host", told)
        origin = headers.get("origin")
        if method == "POST" and origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(403, "origin", "pages of other sites may not use this server")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.body_bytes:
            raise _too_large(self._limits)

    def _is_here(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            return self._takes_addresses and bool(ipaddress.ip_address(name))
        except ValueError:
            return False


class _Body:
    """What a client sends: no more than a body may be, whatever its header says, and not waited for without end."""

    def __init__(self, receive: Receive, limits: ServerLimits) -> None:
        self._receive, self._limits = receive, limits
        self._left = limits.body_bytes
        self._is_whole = False

    async def receive(self) -> Message:
        """Returns the next part of the body.

        Raises:
            Refused: the body is too long, or does not go on.
        """
        if self._is_whole:
            return await self._receive()  # waits for the client to leave
        try:
            async with asyncio.timeout(self._limits.stall_seconds):
                message = await self._take()
        except TimeoutError:
            raise Refused(408, "stalled", "the request did not go on") from None
        if self._left < 0:
            raise _too_large(self._limits)
        return message

    async def drain(self) -> None:
        """Drops what is still to come, within limits: a connection that is closed before takes the answer with it."""
        self._left = self._limits.body_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._is_whole and self._left >= 0:
                    await self._take()

    async def _take(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        return message


def _too_large(limits: ServerLimits) -> Refused:
    return Refused(413, "too_large", f"a request may have at most {limits.body_bytes // 10**6} MB")
