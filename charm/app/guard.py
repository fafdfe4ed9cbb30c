"""Checks host, origin, token and size of a request before its body is read."""

import asyncio
import contextlib
import json
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from charm.app.access import Access
from charm.app.limits import ServerLimits

_DRAIN_SECONDS = 2  # for the rest of a body that is not wanted
# A page's own policy, with the nonce of its script, replaces this one.
HEADERS = {
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


class Reply(JSONResponse):
    """JSON in ASCII: the names of files in it, which clients choose, do nothing to a terminal that shows it."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def describe_refusal(request: Request | None, error: Exception) -> Reply:
    """Returns the response to a request that was refused, or that failed in the server."""
    if not isinstance(error, Refused):
        error = Refused(500, "internal", "the server failed at this; its log says how")
    # What is left of the body is not wanted, so the connection ends here.
    more = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "2"}}
    headers = {"Connection": "close"} | more.get(error.status, {})
    return Reply({"error": {"code": error.code, "message": str(error)}}, error.status, headers)


class Guard:
    """ASGI middleware: refuses what the limits and `access` rule out, closes what browsers leave open.

    `app` serves what is let through, and turns Refused, which reading a body may raise, into an answer.
    """

    def __init__(self, app: ASGIApp, access: Access, limits: ServerLimits) -> None:
        self._app, self._access, self._limits = app, access, limits
        self._under_way: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, self._end_after_answers(receive), send)

        body = _Body(receive, self._limits)
        status = 0  # until it is answered

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                status = message["status"]
            elif status >= 400 and not message.get("more_body"):
                # The answer first, since who sends may stop then; the end, which may close the connection, comes later.
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body"}
            await send(message)

        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            self._check(scope)
            root = scope["root_path"] = self._access.root
            if root and scope["path"] == root:  # the page's own links start at the slash
                return await RedirectResponse(f"{root}/", 308)(scope, receive, send_guarded)
            await self._app(scope, body.receive, send_guarded)
        except Refused as error:
            await describe_refusal(None, error)(scope, receive, send_guarded)
        except asyncio.CancelledError:  # by the server that ends
            if not status:
                ending = Refused(503, "ending", "the server is ending: try again later")
                await describe_refusal(None, ending)(scope, receive, send_guarded)
        finally:
            self._under_way.discard(task)

    def _end_after_answers(self, receive: Receive) -> Receive:
        """Holds up the end of the application until requests that were stopped are answered."""

        async def receive_end() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and self._under_way:
                await asyncio.wait(self._under_way, timeout=_DRAIN_SECONDS + 1)
            return message

        return receive_end

    def _check(self, scope: Scope) -> None:
        access, headers = self._access, Headers(scope=scope)
        peer, port = scope.get("client") or ("", 0)
        hosts = headers.getlist("host")
        if access.trusts(peer):
            hosts = headers.getlist("x-forwarded-host") or hosts
            if forwarded := headers.getlist("x-forwarded-for"):
                scope["client"] = access.find_client(forwarded, peer), port
        host = hosts[0].lower() if len(hosts) == 1 else ""
        if not access.is_own(host):
            told = "use the address that it printed, an IP address of its machine, or a name given to --allow-host"
            raise Refused(403, "host", f"this server is not called that: {told}")
        method, is_page = scope["method"], scope["path"] in ("/", access.root, f"{access.root}/")
        if access.token and not is_page and not access.has_token(headers.getlist("authorization")):
            raise Refused(401, "token", "this server asks for its token: send `Authorization: Bearer TOKEN`")
        if method == "POST" and not all(access.is_own_page(one, host) for one in headers.getlist("origin")):
            told = "--allow-host takes the name, and the port if it is shown, by which a proxy is reached"
            raise Refused(403, "origin", f"pages of other sites may not use this server: {told}")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.body_bytes:
            raise _too_large(self._limits)


class _Body:
    """What a client sends: no more than a body may be, whatever its header says, and the whole within its time."""

    def __init__(self, receive: Receive, limits: ServerLimits) -> None:
        self._receive, self._limits = receive, limits
        self._left = limits.body_bytes
        self._ends = asyncio.get_running_loop().time() + limits.body_seconds
        self._is_whole = False

    async def receive(self) -> Message:
        """Returns the next part of the body; raises Refused if the body is too long, or takes too long."""
        if self._is_whole:
            return await self._receive()  # waits for the client to leave
        try:
            async with asyncio.timeout_at(self._ends):
                message = await self._take()
        except TimeoutError:
            seconds = self._limits.body_seconds
            raise Refused(408, "too_slow", f"the body of the request took more than {seconds:g} seconds") from None
        if self._left < 0:
            raise _too_large(self._limits)
        return message

    async def drain(self) -> None:
        """Drops what still comes, for some seconds: a connection that is closed on it takes the answer with it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._is_whole:
                    await self._take()

    async def _take(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        return message


def _too_large(limits: ServerLimits) -> Refused:
    return Refused(413, "too_large", f"a request may have at most {limits.body_bytes // 10**6} MB")
