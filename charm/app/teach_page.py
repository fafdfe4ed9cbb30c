"""The page of `charm teach` and what it asks for.

    GET  /              the page (charm/app/teach.html.jinja)
    GET  /state         counts, the images to answer next, the agreement, the best and the worst of the ranking
    GET  /image/KEY     an image's preview
    POST /answer        {"key": ..., "stars": 1 to 5, or null to skip} -> the state
    POST /undo          -> the state without the last answer
    POST /finish        ends the page

Requests are let in and refused as those of `charm serve` (charm/app/guard.py); this machine alone is served.
"""

import asyncio
import heapq
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from charm.app.access import Access
from charm.app.answers import STARS
from charm.app.guard import Refused, Reply
from charm.app.learner import ENOUGH, Learner
from charm.app.limits import ServerLimits
from charm.app.server import guard_routes, send_page
from charm.drawing import render_page
from charm.images.find import escape_path

LIMITS = ServerLimits(body_bytes=1_000_000)
_AHEAD = 5  # images whose previews the page loads before they are asked for
_SHOWN = 12  # of the best, and of the worst
_PAGE = Path(__file__).with_name("teach.html.jinja")


def build_teach_app(learner: Learner, finish: Callable[[], None]) -> ASGIApp:
    """Builds the application; `finish` is called when the page asks for the end."""
    page = TeachPage(learner, finish)
    routes = [
        Route("/", page.page),
        Route("/state", page.state),
        Route("/image/{key}", page.image),
        Route("/answer", page.answer, methods=["POST"]),
        Route("/undo", page.undo, methods=["POST"]),
        Route("/finish", page.finish, methods=["POST"]),
    ]
    return guard_routes(routes, Access(), LIMITS)


class TeachPage:
    """What the routes do."""

    def __init__(self, learner: Learner, finish: Callable[[], None]) -> None:
        self._learner, self._folder, self._answers, self._finish = learner, learner.folder, learner.answers, finish
        self._page = render_page(_PAGE, enough=ENOUGH).replace("<style>", '<style nonce="NONCE">')

    async def page(self, request: Request) -> Response:
        return send_page(self._page, "'self'")

    async def state(self, request: Request) -> Response:
        return Reply(self._describe())

    async def image(self, request: Request) -> Response:
        key = request.path_params["key"]
        if key not in self._folder.paths:
            raise Refused(404, "no_such_image", "there is no such image")
        headers = {"Cache-Control": "private, max-age=86400, immutable"}  # a key is of an image's bytes
        try:
            data = await asyncio.to_thread(self._folder.preview(key).read_bytes)
        except OSError as error:
            raise Refused(404, "no_such_image", f"its preview cannot be read: {error.strerror}") from error
        return Response(data, media_type="image/jpeg", headers=headers)

    async def answer(self, request: Request) -> Response:
        try:
            given = json.loads(await request.body())
            key, stars = given["key"], given["stars"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise Refused(400, "malformed", 'expected {"key": ..., "stars": 1 to 5, or null to skip}') from None
        if not isinstance(key, str) or key not in self._folder.paths:
            raise Refused(404, "no_such_image", "there is no such image: it may have been changed or removed")
        try:
            await self._keep(self._answers.give, key, stars)
        except ValueError:
            raise Refused(400, "malformed", f"expected stars from {STARS[0]} to {STARS[-1]}, or null") from None
        return Reply(self._describe())

    async def undo(self, request: Request) -> Response:
        await self._keep(self._answers.undo)
        return Reply(self._describe())

    async def finish(self, request: Request) -> Response:
        self._finish()
        return Reply({})

    async def _keep(self, change: Callable[..., Any], *arguments: object) -> Any:
        """Changes the answers in a thread, since the disk may take its time; they are safe once this returns."""
        try:
            return await asyncio.to_thread(change, *arguments)
        except OSError as error:
            raise Refused(507, "disk", f"the answer cannot be kept: {error.strerror}") from error
        finally:
            self._learner.tell()

    def _describe(self) -> dict[str, Any]:
        learner, folder, stars = self._learner, self._folder, self._answers.stars
        labels, ranking = learner.list_labels(), learner.ranking
        agreement = None if learner.solved is None else learner.solved.agreement
        half = min(_SHOWN, (len(ranking) + 1) // 2)
        left = folder.paths.keys() - stars.keys() - labels.keys()
        ends = {"best": ranking[:half], "worst": ranking[: -half - 1 : -1]}
        shown = {end: [self._name(key, stars, learner.to_score(x)) for key, x in found] for end, found in ends.items()}
        return shown | {
            "files": len(folder.files),
            "done": folder.done,
            "rejected": len(folder.reasons),
            "answered": sum(one is not None for one in stars.values()),
            "skipped": sum(one is None for one in stars.values()),
            "labels": len(labels),
            "scale": learner.scale.score_range,
            "next": [self._name(key, stars) for key in heapq.nsmallest(_AHEAD, left, key=folder.place)],
            "agreement": agreement and {"scored": agreement.scored, **agreement.metrics["srcc"]},
            "ranked": len(ranking),
        }

    def _name(self, key: str, stars: dict[str, int | None], score: float | None = None) -> dict[str, Any]:
        path = self._folder.name(self._folder.paths[key][0])
        return {"key": key, "name": escape_path(path), "stars": stars.get(key), "score": score}
