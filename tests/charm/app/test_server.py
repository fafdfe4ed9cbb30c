"""The HTTP API: scores are those of the scorer alone, and whatever else is sent gets an answer and costs little."""

import contextlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import simplejpeg
from starlette.testclient import TestClient

from charm.app.access import Access
from charm.app.explain import attribute_score
from charm.app.limits import SERVER_LIMITS, ServerLimits
from charm.app.server import bind, build_app, make_server, serve
from charm.attribution import Attribution
from charm.images import quarantine
from charm.images.decode import decode_image
from charm.images.reasons import REASONS
from charm.runtime.errors import UserError
from charm.scorer import CharmScorer
from charm.scores import Score
from tests.charm.app.conftest import build_scorer
from tests.conftest import ROOT, draw_image
from tests.faults.bombs import REFUSED
from tests.serving import run_server
from tests.warm_python import WarmPython

JPEGS = [simplejpeg.encode_jpeg(draw_image(120 + 9 * seed, 260 - 11 * seed, seed), quality=90) for seed in range(8)]
TEXT = b"this is no image"
SMALL = ServerLimits(body_bytes=200_000, file_bytes=60_000, files=3, sequences=6)


def connect(address: str) -> httpx.Client:
    return httpx.Client(base_url=address, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def client(scorer: CharmScorer) -> Iterator[httpx.Client]:
    with run_server(scorer) as address, connect(address) as opened:
        yield opened


@pytest.fixture(scope="module")
def strict(scorer: CharmScorer) -> Iterator[httpx.Client]:
    """Of a server with limits that tests can reach."""
    with run_server(scorer, SMALL) as address, connect(address) as opened:
        yield opened


def attach(*files: bytes, name: str = "a.jpg") -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (name, data)) for data in files]


def score_alone(scorer: CharmScorer, data: bytes, draws: int | None = None) -> Score:
    score = scorer(decode_image(data).pixels, draws=draws)
    assert isinstance(score, Score)
    return score


def is_score(row: dict[str, Any], score: Score) -> bool:
    pairs = ((row["score"], score.score), (row["spread"], score.spread), (row["raw"], score.raw))
    return all(found == expected or found == pytest.approx(expected, abs=4e-5) for found, expected in pairs)


def test_health_names_the_model(client: httpx.Client, scorer: CharmScorer) -> None:
    reply = client.get("/health").json()
    assert reply["status"] == "ok"
    assert reply["backbone"] == "charm_demo"
    assert reply["score_range"] == [1, 5]
    assert reply["tokenizer"]["cutter"]["selection"] == "gradient"
    assert reply["dataset"] == "none"
    assert reply["meaning"] == scorer.config.labels.meaning
    assert reply["evaluation"] is None
    assert reply["doubts"] == scorer.config.doubts
    assert reply["weights_sha256"] == scorer.weights_sha256
    assert len(reply["weights_sha256"]) == 64


def test_scores_are_the_scorers_in_the_order_of_the_images(client: httpx.Client, scorer: CharmScorer) -> None:
    reply = client.post("/score", files=[("image", (f"{index}.jpg", data)) for index, data in enumerate(JPEGS)])
    assert reply.status_code == 200
    rows = reply.json()["scores"]
    assert [row["name"] for row in rows] == [f"{index}.jpg" for index in range(len(JPEGS))]
    scores = [score_alone(scorer, data) for data in JPEGS]
    assert len({round(score.raw, 3) for score in scores}) == len(JPEGS)
    assert all(map(is_score, rows, scores))
    assert all(row["distribution"] is None for row in rows)
    assert reply.json()["score_range"] == [1, 5]


@pytest.mark.parametrize("draws", [1, 5, 16])
def test_draws(draws: int, client: httpx.Client, scorer: CharmScorer) -> None:
    row = client.post(f"/score?draws={draws}", files=attach(JPEGS[0])).json()["scores"][0]
    assert is_score(row, score_alone(scorer, JPEGS[0], draws))
    assert (row["spread"] or 0) > 0 if draws > 1 else row["spread"] is None


@pytest.mark.parametrize("media_type", ["image/jpeg", "application/octet-stream", None])
def test_a_image_as_the_body(media_type: str | None, client: httpx.Client, scorer: CharmScorer) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    reply = client.post("/score", content=JPEGS[0], headers=headers)
    assert is_score(reply.json()["scores"][0], score_alone(scorer, JPEGS[0]))


def test_a_distribution_comes_with_its_bins() -> None:
    model = build_scorer(num_outputs=5)
    with run_server(model) as address, connect(address) as client:
        row = client.post("/score", files=attach(JPEGS[0])).json()["scores"][0]
    assert row["distribution"] == pytest.approx(score_alone(model, JPEGS[0]).distribution, abs=1e-5)


def test_bad_images_are_refused_beside_good_ones(client: httpx.Client, scorer: CharmScorer) -> None:
    reply = client.post("/score", files=attach(TEXT, JPEGS[1], b"", JPEGS[2][:900]))
    assert reply.status_code == 200
    rows = reply.json()["scores"]
    assert [row.get("error", {}).get("reason") for row in rows] == ["format", None, "empty", "corrupt"]
    assert rows[0]["error"]["message"] == REASONS["format"]
    assert is_score(rows[1], score_alone(scorer, JPEGS[1]))


@pytest.mark.parametrize("route", ["/score", "/explain"])
def test_nothing_but_bad_images(route: str, client: httpx.Client) -> None:
    reply = client.post(route, files=attach(TEXT, name="notes.txt"))
    assert reply.status_code == 422
    row = reply.json()["scores"][0] if route == "/score" else reply.json()
    assert (row["name"], row["error"]["reason"]) == ("notes.txt", "format")


@pytest.mark.parametrize("bomb", list(REFUSED)[::6])
def test_bombs(bomb: str, client: httpx.Client) -> None:
    started = time.monotonic()
    reply = client.post("/score", files=attach(REFUSED[bomb]))
    assert reply.status_code == 422
    assert reply.json()["scores"][0]["error"]["reason"] in (
        "too_large",
        "too_long",
        "too_many_parts",
        "corrupt",
        "mode",
        "memory",
    )
    assert time.monotonic() - started < 20


def test_a_decoder_that_breaks_down_costs_one_answer(scorer: CharmScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_COMMAND", (sys.executable, "-m", "tests.faults.hostile_child"))
    with run_server(scorer, ServerLimits(decoders=1)) as address, connect(address) as client:
        rows = client.post("/score", files=attach(JPEGS[0], b"segfault", JPEGS[1])).json()["scores"]
    assert [row.get("error", {}).get("reason") for row in rows] == [None, "crashed", None]
    assert is_score(rows[2], score_alone(scorer, JPEGS[1]))


@pytest.mark.parametrize(
    ("request_of", "status", "code"),
    [
        pytest.param({"files": attach(TEXT), "params": {"draws": "0"}}, 400, "malformed", id="no draws"),
        pytest.param({"files": attach(TEXT), "params": {"draws": "17"}}, 400, "malformed", id="17 draws"),
        pytest.param({"files": attach(TEXT), "params": {"draws": "two"}}, 400, "malformed", id="draws in words"),
        pytest.param({"files": attach(TEXT), "params": {"draws": "9" * 5000}}, 400, "malformed", id="endless draws"),
        pytest.param({"files": [("photo", ("a.jpg", TEXT))]}, 400, "malformed", id="another field"),
        pytest.param({"data": {"image": "a.jpg"}, "files": attach(TEXT)}, 400, "malformed", id="text, no file"),
        pytest.param({"content": b""}, 400, "malformed", id="no body"),
        pytest.param(
            {"content": TEXT, "headers": {"Content-Type": "multipart/form-data"}}, 400, "malformed", id="no boundary"
        ),
        pytest.param(
            {"content": TEXT, "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            400,
            "malformed",
            id="no parts",
        ),
        pytest.param({"json": {"image": "a"}}, 415, "media_type", id="JSON"),
        pytest.param({"data": {"image": "a"}}, 415, "media_type", id="a form that is not multipart"),
        pytest.param({"files": attach(TEXT), "headers": {"Origin": "http://example.org"}}, 403, "origin", id="cross"),
        pytest.param({"files": attach(TEXT), "headers": {"Origin": "null"}}, 403, "origin", id="sandboxed page"),
        pytest.param({"files": attach(TEXT), "headers": {"Host": "example.org"}}, 403, "host", id="rebound name"),
    ],
)
def test_requests_that_are_not_served(request_of: dict[str, Any], status: int, code: str, client: httpx.Client) -> None:
    for route in ("/score", "/explain"):
        reply = client.post(route, **request_of)
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        assert reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:9", "[0:0::1]", "[::0001]:65535", "127.0.0.1:00080"]
)
def test_names_of_the_loopback(host: str, client: httpx.Client) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200
    reply = client.post("/score", files=attach(TEXT), headers={"Host": host, "Origin": f"http://{host}"})
    assert reply.status_code == 422


OTHERS = [
    *("", "example.org", "example.org:80", "localhost.", "localhost.evil.com", "evil.localhost", "127.0.0.1.evil.com"),
    *("192.168.0.7", "127.0.0.01", "127.1", "0x7f000001", "2130706433", "127.0.0.1.", "0.0.0.0", "127.0.0.2"),
    *(
        "[::1].evil.com",
        "[::1]evil",
        "[::1]:9evil",
        "[::1",
        "::1",
        "::1]",
        "[::1]]",
        "[[::1]]",
        "[::1]:9:9",
        "[]",
        "[x",
    ),
    *("[::1%25lo]", "[::1%lo]", "[::1%25]", "[fe80::1]", "[127.0.0.1]", "[::ffff:127.0.0.1]", "[localhost]", "[v1.a]"),
    *("a@b", "user@localhost", "localhost@evil.com", "user:pass@127.0.0.1", "localhost/evil.com", "localhost?", "a b"),
    *("localhost:", "localhost:x", "localhost:-1", "localhost:65536", "localhost:999999", "localhost:80:80", ":80"),
    *("localhost:8 0", "localhost,evil.com", "localhost\t.evil.com", "localhost\\evil.com", "localhost%2eevil.com"),
    *("localhost:\xb2", "l\xf6calhost", "127\xb70.0.1"),
]


@pytest.mark.parametrize("host", OTHERS)
def test_other_names(host: str, client: httpx.Client) -> None:
    reply = client.get("/", headers={"Host": host.encode("latin-1")})  # type: ignore[dict-item]
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "host")


@pytest.mark.parametrize(
    "origin",
    ["http://127.0.0.1:9.evil.com", "http://a@127.0.0.1:9", "http://127.0.0.1:99", "127.0.0.1:9", "ws://127.0.0.1:9"],
)
def test_other_origins(origin: str, client: httpx.Client) -> None:
    reply = client.post("/score", files=attach(TEXT), headers={"Host": "127.0.0.1:9", "Origin": origin})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "origin")


def test_a_second_origin_is_not_let_through(client: httpx.Client) -> None:
    origins = [("Host", "localhost"), ("Origin", "http://localhost"), ("Origin", "http://example.org")]
    assert client.post("/score", files=attach(TEXT), headers=origins).status_code == 403


def test_on_all_addresses_any_address_is_ours_and_no_name_is(scorer: CharmScorer) -> None:
    with run_server(scorer, access=Access("0.0.0.0")) as address, connect(address) as client:
        for host in ("192.168.0.7:8000", "[fe80::1]", "[::1]:9", "localhost", socket.gethostname()):
            assert client.get("/health", headers={"Host": host}).status_code == 200
        for host in ("example.org", "[::1].evil.com", "192.168.0.7.evil.com", "fe80::1", "[192.168.0.7]", "3232235527"):
            assert client.get("/health", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["0:0:0::1", "::1%lo"])
def test_an_address_has_many_spellings(host: str, scorer: CharmScorer) -> None:
    with TestClient(build_app(scorer, Access(host))) as client:
        assert client.get("/health", headers={"Host": "[::1]:8000"}).status_code == 200


def test_unknown_routes(client: httpx.Client) -> None:
    reply = client.get("/../etc/passwd")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "no_such_route")
    assert client.get("/score").status_code == 405


def test_bodies_that_are_too_large_are_refused_by_their_header(strict: httpx.Client) -> None:
    reply = strict.post("/score", content=bytes(200_001), headers={"Content-Type": "image/jpeg"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("media_type", "least"),
    [
        pytest.param("image/jpeg", 60_000, id="image"),
        pytest.param("multipart/form-data; boundary=x", 200_000, id="form"),
    ],
)
def test_bodies_without_a_length_are_refused_before_they_are_read(
    media_type: str, least: int, strict: httpx.Client
) -> None:
    """The answer comes to who still sends, and may stop."""
    head = (
        f"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    with socket.create_connection((strict.base_url.host, strict.base_url.port), timeout=60) as client:
        client.sendall(head.encode() + b"%x\r\n%s\r\n" % (len(form), form))
        sent = 0
        while not select.select([client], [], [], 0)[0]:
            client.sendall(b"2710\r\n%s\r\n" % bytes(10_000))
            sent += 10_000
        status, _, answer = client.makefile("rb").read().partition(b"\r\n")
    assert status.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"too_large"' in answer
    assert least < sent < 90_000_000


def test_a_file_that_is_too_large_is_refused_beside_good_ones(strict: httpx.Client) -> None:
    rows = strict.post("/score", files=attach(JPEGS[0].ljust(60_001, b"\0"), JPEGS[1])).json()["scores"]
    assert rows[0]["error"]["reason"] == "too_many_bytes"
    assert "score" in rows[1]


def test_messages_name_the_limits_of_the_server(client: httpx.Client) -> None:
    rows = client.post("/score", files=attach(bytes(40_000_001), REFUSED["TIFF, 4 gigapixels"])).json()["scores"]
    assert [row["error"]["message"] for row in rows] == ["more than 40 MB", "more than 100 million pixels"]


def test_ten_thousand_files(client: httpx.Client) -> None:
    reply = client.post("/score", files=attach(*[b"x"] * 10_000))
    assert reply.status_code == 413
    assert reply.json() == {"error": {"code": "too_many_files", "message": "a request may have at most 64 images"}}


def test_explain_takes_one_image(client: httpx.Client) -> None:
    assert client.post("/explain", files=attach(JPEGS[0], JPEGS[1])).status_code == 400


def test_explain_is_about_the_score(client: httpx.Client, scorer: CharmScorer) -> None:
    card = client.post("/explain?draws=3", files=attach(JPEGS[0], name="a.jpg")).json()
    assert card["name"] == "a.jpg"
    assert is_score(card, score_alone(scorer, JPEGS[0], draws=3))
    first = score_alone(scorer, JPEGS[0], draws=1)
    assert card["contributions"]["score"] == pytest.approx(first.raw, abs=1e-5)
    assert card["image_hw"] == [120, 260]


def test_scores_do_not_wait_for_explanations(scorer: CharmScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def explain_slowly(*arguments: Any) -> Attribution:
        begun.set()
        assert may_end.wait(60)
        return attribute_score(*arguments)

    monkeypatch.setattr("charm.app.explain.attribute_score", explain_slowly)
    with run_server(scorer) as address, connect(address) as client, ThreadPoolExecutor(1) as pool:
        explained = pool.submit(client.post, "/explain", files=attach(JPEGS[0]))
        assert begun.wait(60)
        (row,) = client.post("/score", files=attach(JPEGS[1])).json()["scores"]
        assert is_score(row, score_alone(scorer, JPEGS[1]))
        assert not explained.done()
        may_end.set()
        assert is_score(explained.result().json(), score_alone(scorer, JPEGS[0]))


def test_too_much_at_once_is_to_be_tried_again(scorer: CharmScorer, strict: httpx.Client) -> None:
    replies = [strict.post("/score?draws=7", files=attach(JPEGS[0]))]
    with run_server(scorer, ServerLimits(requests=0)) as address, connect(address) as client:
        replies.append(client.post("/score", files=attach(JPEGS[0])))
    for reply in replies:
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "busy")
        assert reply.headers["Retry-After"] == "2"
    assert strict.post("/score?draws=6", files=attach(JPEGS[0])).status_code == 200


def test_failures_of_the_model_are_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tokens: object) -> list[Score]:
        raise RuntimeError("secret")

    model = build_scorer()
    monkeypatch.setattr(model, "score_tokens", fail)
    monkeypatch.setattr("uvicorn.protocols.http.h11_impl.RequestResponseCycle.run_asgi", _run_quietly)
    with run_server(model) as address, connect(address) as client:
        reply = client.post("/score", files=attach(JPEGS[0]))
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "internal"
    assert "secret" not in reply.text
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


async def _run_quietly(cycle: Any, app: Any) -> None:
    """As uvicorn, but nothing is logged."""
    with contextlib.suppress(RuntimeError):
        await app(cycle.scope, cycle.receive, cycle.send)


@pytest.mark.parametrize("name", ["../../evil.jpg", "/etc/passwd", "<b>.jpg", "a b\n.jpg", "写真.jpg", "x" * 3000])
def test_names_are_echoed_and_are_no_paths(name: str, client: httpx.Client) -> None:
    row = client.post("/score", files=attach(JPEGS[0], name=name)).json()["scores"][0]
    assert row["name"].replace("%0A", "\n") == name  # as httpx writes it
    assert not Path(tempfile.gettempdir(), "evil.jpg").exists()


def test_uploads_leave_nothing_behind(scorer: CharmScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with run_server(scorer) as address, connect(address) as client:
        (spool,) = tmp_path.iterdir()
        assert spool.stat().st_mode & 0o077 == 0
        client.post("/score", files=attach(JPEGS[0], TEXT, bytes(3_000_000), name="evil.jpg"))
        client.post("/explain", files=attach(JPEGS[0]))
        assert list(spool.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_every_reply_is_closed_to_other_pages(client: httpx.Client) -> None:
    replies = [client.get("/"), client.get("/health"), client.post("/score"), client.get("/nothing")]
    replies.append(client.get("/", headers={"Host": "example.org"}))
    for reply in replies:
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in reply.headers


def test_the_page_runs_by_a_nonce_of_its_own(client: httpx.Client) -> None:
    first, second = client.get("/"), client.get("/")
    policy = first.headers["Content-Security-Policy"]
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert len(nonce) >= 20
    assert first.text.count(f'nonce="{nonce}"') == 2
    assert nonce not in second.text
    assert "unsafe" not in policy
    assert "NONCE" not in first.text
    assert " onclick" not in first.text
    assert "innerHTML" not in first.text
    assert "//" not in first.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")  # nothing from elsewhere


def test_metrics(scorer: CharmScorer) -> None:
    with run_server(scorer) as address, connect(address) as client:
        client.post("/score", files=attach(JPEGS[0], TEXT))
        client.post("/score", files=attach(JPEGS[1]))
        found = client.get("/metrics", headers={"Accept": "application/json"}).json()
    assert (found["requests"], found["images"], found["rejected"]) == (2, 2, {"format": 1})
    assert (found["batches"], found["mean_batch"], found["largest_batch"], found["waiting"]) == (2, 1, 1, 0)
    assert found["tokens_per_second"] > 0
    assert 10 < found["memory_mb"] <= found["peak_memory_mb"] * 1.01


def test_many_clients_share_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 at once, 32 images, and a model that takes its time, so that they have to wait for each other."""
    model = build_scorer()
    alone = [score_alone(model, data) for data in JPEGS]
    score = model.score_tokens

    def score_slowly(tokens: Any) -> list[Score]:
        time.sleep(0.3)
        return score(tokens)

    monkeypatch.setattr(model, "score_tokens", score_slowly)

    def ask(number: int) -> dict[str, Any]:
        with connect(address) as client:
            row: dict[str, Any] = client.post("/score", files=attach(JPEGS[number % 8])).json()["scores"][0]
        return row

    with run_server(model) as address:
        with ThreadPoolExecutor(16) as threads:
            rows = list(threads.map(ask, range(32)))
        with connect(address) as client:
            found = client.get("/metrics", headers={"Accept": "application/json"}).json()
    assert all(is_score(row, alone[number % 8]) for number, row in enumerate(rows))
    assert found["images"] == 32
    assert found["batches"] <= 24
    assert found["largest_batch"] >= 2


def test_ends_cleanly_when_told(served_folder: Path, warm: WarmPython, tmp_path: Path) -> None:
    code = f"from charm.app.server import *; serve({str(served_folder)!r}, Access(), 0, 3, 'cpu', 'float32')"
    environment = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    with warm.popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        address = said.split(" at ")[1].split()[0]
        with connect(address) as client:
            while True:
                try:
                    assert client.post("/score", files=attach(JPEGS[0])).status_code == 200
                    assert client.get("/health").json()["draws"] == 3
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
            assert list(tmp_path.glob("charm-*")) != []
            process.terminate()
        rest, errors = process.communicate(timeout=60)
    assert said == f"Scoring photographs at {address} (Ctrl-C ends it)\n"
    assert (process.returncode, rest, errors) == (0, "", "")
    assert list(tmp_path.glob("charm-*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_end_what_is_under_way_and_come_no_third_time(number: int, scorer: CharmScorer) -> None:
    """With uvicorn's own handler: a traceback after two Ctrl-C, and exit code 130 where ending takes a while."""
    came: list[int] = []
    before = signal.signal(number, lambda number, _: came.append(number))
    try:
        server = make_server(build_app(scorer))
        with server.capture_signals():
            signal.raise_signal(number)
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)
    assert (server.should_exit, server.force_exit, came) == (True, False, [])


def test_a_service_needs_no_output(served_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str) -> None:
        raise UserError("closed")

    ran: list[bool] = []
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=refuse, flush=lambda: None))
    monkeypatch.setattr(
        "charm.app.server.make_server", lambda app, log: SimpleNamespace(run=lambda sockets: ran.append(True))
    )
    serve(str(served_folder), Access(), 0, None, "cpu", "float32")
    assert ran == [True]


def test_a_port_in_use(served_folder: Path) -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1 port") as caught:
        serve(str(served_folder), Access(), taken.getsockname()[1], None, "cpu", "float32")
    assert str(caught.value).endswith("choose another with --port")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("host", "port"), [("no-such-host.invalid", 0), ("192.0.2.1", 0)])
def test_addresses_that_are_none(host: str, port: int) -> None:
    with pytest.raises(UserError, match=r"cannot listen on .*--port or --host"):
        bind(host, port).close()


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"name a model's folder, or user/name on the hub"):
        serve(str(tmp_path), Access(), 0, None, "cpu", "float32")


def test_limits_as_promised() -> None:
    limits = SERVER_LIMITS
    assert (limits.body_bytes, limits.file_bytes, limits.pixels, limits.files) == (10**8, 4 * 10**7, 10**8, 64)


def test_a_black_image_is_a_image(client: httpx.Client) -> None:
    data = simplejpeg.encode_jpeg(np.zeros((300, 1, 3), np.uint8))
    assert client.post("/explain", files=attach(data)).status_code == 200


def test_a_refusal_arrives_while_the_body_is_still_being_sent(scorer: CharmScorer) -> None:
    """A connection that is closed on unread data takes the answer with it."""
    with run_server(scorer, replace(SERVER_LIMITS, body_bytes=8_000_000)) as address:
        for _ in range(3):
            for body in (bytes(80_000_000), iter([bytes(1_000_000)] * 80)):
                with connect(address) as client:
                    reply = client.post("/score", content=body)
                assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
