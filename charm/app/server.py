"""A page and an HTTP API that score photographs with a trained model, as `charm serve` runs them.

openapi.json has the routes, and requests and replies field by field.
"""

import asyncio
import json
import logging
import secrets
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from charm.app import explain as cards
from charm.app.access import EVERYWHERE, Access
from charm.app.batcher import Batcher, Turns
from charm.app.connections import count_connections, make_protocol
from charm.app.counts import CONTENT_TYPE_LATEST, format_counts
from charm.app.guard import Guard, Refused, Reply, describe_refusal
from charm.app.limits import SERVER_LIMITS, ServerLimits
from charm.app.reading import find_mask, load_scorer
from charm.app.uploads import Uploads
from charm.drawing import SHARED_STYLE
from charm.images.limits import FORMATS, list_formats
from charm.images.reasons import Rejected
from charm.inputs.settings import SETTINGS
from charm.runtime.disk import resource
from charm.runtime.errors import UserError
from charm.scorer import CharmScorer
from charm.tokenization.tokens import Tokens

_ALONE = Access()  # this machine's alone
_PAGE, _OPENAPI = (Path(__file__).with_name(name) for name in ("page.html", "openapi.json"))


def serve(folder: str, access: Access, port: int, draws: int | None, device: str, precision: str) -> None:
    """Serves the model of a folder until SIGTERM or Ctrl-C. Port 0 is any free one; the address is printed. `draws` are
    those of a score where a request does not say; None = as many as `evaluate` took. Raises UserError if there is no
    such model or device, or the address cannot be had.
    """
    host = access.host
    with bind(host, port) as bound:
        scorer = load_scorer(folder, device, precision)
        find_mask(scorer, np.zeros((64, 64, 3), np.uint8))  # says now, and not to a client, what is missing for that
        scorer.draws = draws or scorer.draws
        app = build_app(scorer, access)
        name = socket.gethostname() if host in EVERYWHERE else host
        shown = f"[{name}]" if ":" in name else name
        with suppress(UserError):  # a service may have no output
            print(
                f"Scoring photographs at http://{shown}:{bound.getsockname()[1]}{access.root}/ (Ctrl-C ends it)",
                flush=True,
            )
        make_server(app, log=access.log).run(sockets=[bound])


def bind(host: str, port: int) -> socket.socket:
    """Opens a socket that listens; raises UserError if the port is in use, or the host is none of this machine."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        remedy = "--port" if host == "127.0.0.1" else "--port or --host"  # charm teach has no other host
        raise UserError(f"cannot listen on {host} port {port} ({error}): choose another with {remedy}") from error


class _Server(uvicorn.Server):
    """uvicorn's server, which a signal tells to end; a second one is for charm.runtime.interrupts to see.

    uvicorn's own would skip the shut-down after a second Ctrl-C, with a traceback, and raise each signal again at its
    end, which would then be taken for the second one.
    """

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True


def make_server(app: ASGIApp, limits: ServerLimits = SERVER_LIMITS, log: bool = False) -> uvicorn.Server:
    most, backlog = count_connections(limits)
    config = uvicorn.Config(
        app,
        http=make_protocol(limits, most),
        ws="none",
        lifespan="on",
        log_level="error",  # warnings are about requests: a client could fill a disk with them
        access_log=log,
        proxy_headers=False,  # which are the guard's to believe or not
        server_header=False,
        backlog=backlog,
        timeout_graceful_shutdown=limits.end_seconds,
    )
    if log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    return _Server(config)


def build_app(scorer: CharmScorer, access: Access = _ALONE, limits: ServerLimits = SERVER_LIMITS) -> ASGIApp:
    """Builds the application; its threads and child processes live from its start-up to its shut-down."""
    service = Service(scorer, limits)
    routes = [
        Route("/", service.page),
        Route("/health", service.health),
        Route("/metrics", service.metrics),
        Route("/openapi.json", service.openapi),
        Route("/score", service.score, methods=["POST"]),
        Route("/explain", service.explain, methods=["POST"]),
    ]
    return guard_routes(routes, access, limits, service.run)


def guard_routes(
    routes: Sequence[Route], access: Access, limits: ServerLimits, lifespan: Callable[[Starlette], Any] | None = None
) -> ASGIApp:
    """Builds an application of routes that turns every failure into an answer, behind a Guard."""
    app = Starlette(
        routes=routes,
        exception_handlers={
            Refused: describe_refusal,
            HTTPException: _describe_http,
            ClientDisconnect: lambda request, error: Response(status_code=400),  # it has left, and reads nothing
            Exception: describe_refusal,
        },
        lifespan=lifespan,
    )
    return Guard(app, access, limits)  # outermost: what it adds to replies is on those about failures, too


def send_page(html: str, images: str) -> Response:
    """Returns a page whose NONCE lets its own script and style run, and nothing else; `images` come from there."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src {images}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(html.replace("NONCE", nonce), headers={"Content-Security-Policy": policy})


def _describe_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    response = describe_refusal(request, Refused(error.status_code, "no_such_route", message))
    response.headers.update(error.headers or {})
    return response


class Service:
    """What the routes do."""

    def __init__(self, scorer: CharmScorer, limits: ServerLimits) -> None:
        self._scorer, self._limits = scorer, limits
        # Phones turn HEIC into JPEG for a page that does not ask for it.
        readable = [one for one in FORMATS.values() if one.is_readable]
        accepted = ",".join([*(one.media_type for one in readable), *(end for one in readable for end in one.endings)])
        texts = {"SHARED": SHARED_STYLE.read_text(), "ACCEPTED": accepted, "FORMATS": list_formats("or")}
        self._page = _PAGE.read_text()
        for name, text in texts.items():
            self._page = self._page.replace(name, text)
        self._under_way, self._done, self._rejected = Counter[str](), Counter[str](), Counter[str]()

    @asynccontextmanager
    async def run(self, app: Starlette) -> AsyncIterator[None]:
        self._uploads = Uploads(self._limits, self._scorer.colour)
        self._batcher = Batcher(self._scorer.score_tokens)
        # One at a time, for its memory; beside the scores, which must not wait for the seconds that it takes.
        self._explainer = ThreadPoolExecutor(1, "explain")
        try:
            yield
        finally:
            await asyncio.to_thread(self._uploads.close)
            await asyncio.to_thread(self._batcher.close)
            await asyncio.to_thread(self._explainer.shutdown, cancel_futures=True)

    async def page(self, request: Request) -> Response:
        return send_page(self._page, "data:")

    async def health(self, request: Request) -> Response:
        scorer, limits = self._scorer, self._limits
        crossed = scorer.config.solved and scorer.config.solved.cross_validation
        rated, by = (crossed, "cross-validation") if crossed else (scorer.config.evaluation, "test images")
        return Reply(
            {
                "status": "ok",
                "model": cards.describe_backbone(scorer.config.model.backbone),
                "backbone": scorer.config.model.backbone,
                "tokenizer": asdict(scorer.settings) | {"shows": SETTINGS[scorer.settings.name].shows},
                "score_range": scorer.score_range,
                "draws": scorer.draws,
                "dataset": scorer.config.data.dataset,
                "meaning": scorer.config.labels.meaning,
                "evaluation": rated and {"by": by, "scored": rated.scored, "srcc": rated.metrics["srcc"]},
                "doubts": scorer.config.doubts,
                "weights_sha256": scorer.weights_sha256,
                "limits": {"files": limits.files, "file_bytes": limits.file_bytes, "body_bytes": limits.body_bytes},
            }
        )

    async def openapi(self, request: Request) -> Response:
        return Response(_OPENAPI.read_bytes(), media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        served = self._batcher.served
        counts = {
            "requests": self._done["requests"],
            "images": served.images,
            "rejected": dict(self._rejected),
            "batches": served.batches,
            "mean_batch": served.images / served.batches if served.batches else 0.0,
            "largest_batch": served.largest_batch,
            "tokens": served.tokens,
            "model_seconds": served.busy_seconds,
            "tokens_per_second": served.tokens / served.busy_seconds if served.busy_seconds else 0.0,
            "waiting": len(self._batcher),
            **_measure_memory(),
        }
        if "application/json" in request.headers.get("accept", ""):
            return Reply(counts)
        descriptions = json.loads(_OPENAPI.read_bytes())["components"]["schemas"]["Metrics"]["properties"]
        return Response(format_counts(counts, descriptions), media_type=CONTENT_TYPE_LATEST)

    async def score(self, request: Request) -> Response:
        draws = self._read_draws(request)
        # Requests take turns: at the decoders, whose queue holds only as many images of each as are decoded at once.
        decoders, turns = asyncio.Semaphore(self._limits.decoders), Turns()

        async def score_file(name: str, path: Path) -> dict[str, Any]:
            try:
                async with decoders:
                    tokens = await self._uploads.use(path, cut)
            except Rejected as error:
                return {"name": name, "error": self._reject(error.reason)}
            return {"name": name} | cards.describe_score(await asyncio.wrap_future(self._batcher.submit(tokens, turns)))

        def cut(image: np.ndarray) -> list[Tokens]:
            return self._scorer.tokenize(image, find_mask(self._scorer, image), draws=draws)

        with self._admit("requests", 1, "are being answered"):
            async with self._uploads.receive(request) as files:
                with self._admit("sequences", len(files) * draws, "of patches are waiting"):
                    rows = await asyncio.gather(*(score_file(*file) for file in files))
        reply = {"scores": rows, "score_range": self._scorer.score_range}
        return Reply(reply, 200 if any("score" in row for row in rows) else 422)

    async def explain(self, request: Request) -> Response:
        draws = self._read_draws(request)

        def cut(image: np.ndarray) -> tuple[list[Tokens], cards.Shown]:
            mask = find_mask(self._scorer, image)
            tokens = self._scorer.tokenize(image, mask, draws=draws)
            return tokens, cards.show_tokens(self._scorer, image, tokens[0], mask)

        with (
            self._admit("requests", 1, "are being answered"),
            self._admit("sequences", draws, "of patches are waiting"),
        ):
            async with self._uploads.receive(request) as files:
                if len(files) > 1:
                    raise Refused(400, "malformed", f"{len(files)} images: /explain takes one")
                ((name, path),) = files
                try:
                    tokens, shown = await self._uploads.use(path, cut)
                except Rejected as error:
                    return Reply({"name": name, "error": self._reject(error.reason)}, 422)
            score = await asyncio.wrap_future(self._batcher.submit(tokens))
            attribution = await asyncio.get_running_loop().run_in_executor(
                self._explainer, cards.attribute_score, self._scorer, tokens[0]
            )
        contributions = cards.show_contributions(self._scorer, tokens[0], attribution)
        card = cards.describe_card(score, shown, contributions)
        return Reply({"name": name, "score_range": self._scorer.score_range} | card)

    def _reject(self, reason: str) -> dict[str, str]:
        self._rejected[reason] += 1
        return {"reason": reason, "message": self._uploads.explain(reason)}

    def _read_draws(self, request: Request) -> int:
        given = request.query_params.get("draws")
        if given is None:
            return int(self._scorer.draws)
        draws = int(given) if given.isascii() and given.isdecimal() and len(given) < 9 else 0
        if not 1 <= draws <= self._limits.draws:
            raise Refused(400, "malformed", f"draws={given[:20]!r}: expected a number from 1 to {self._limits.draws}")
        return draws

    @contextmanager
    def _admit(self, what: str, count: int, doing: str) -> Iterator[None]:
        """Counts requests or sequences while they are under way; raises Refused if they would be too many."""
        if self._under_way[what] + count > getattr(self._limits, what):
            raise Refused(503, "busy", f"{self._under_way[what]} {what} {doing}: try again")
        self._under_way[what] += count
        try:
            yield
        finally:
            self._under_way[what] -= count
            self._done[what] += count


def _measure_memory() -> dict[str, float]:
    """Megabytes of this process: now, where the system tells, and at most so far; nothing where it tells neither."""
    if resource is None:
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    pages = Path("/proc/self/statm")
    now = int(pages.read_text().split()[1]) * resource.getpagesize() / 1e6 if pages.exists() else peak
    return {"memory_mb": now, "peak_memory_mb": peak}
