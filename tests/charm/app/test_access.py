"""Who is served: every combination of Host, Origin, token and forwarded headers, and the commands of the container."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from ruamel.yaml import YAML
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from typer.testing import CliRunner

from charm.app import server as served
from charm.app.access import Access
from charm.app.command import app
from charm.app.guard import Guard
from charm.app.limits import SERVER_LIMITS
from charm.scorer import CharmScorer
from tests.charm.app.test_server import JPEGS, attach, connect
from tests.conftest import ROOT
from tests.serving import run_server
from tests.test_requirements import EXTRA

TOKEN = "0123456789abcdef0123"
NAME, PROXY = "photos.example.org", "10.0.0.2"
OWN: dict[str, Any] = {"host": "0.0.0.0"}
NAMED = OWN | {"allow_hosts": (NAME, "charm", "Other.example.org:8443")}
TRUSTING = NAMED | {"trust_proxies": ("10.0.0.0/24", "::1")}
SECRET = NAMED | {"token": TOKEN}
HTTPS = f"https://{NAME}"
RIGHT = {"Authorization": f"Bearer {TOKEN}"}


async def echo(request: Request) -> JSONResponse:
    assert request.client is not None
    return JSONResponse({"client": request.client.host, "root": request.scope["root_path"]})


def guard(access: Access) -> Guard:
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in ("/", "/score")]
    return Guard(Starlette(routes=routes), access, SERVER_LIMITS)


def ask(access: dict[str, Any], headers: dict[str, str], peer: str = PROXY, path: str = "/score") -> httpx.Response:
    client = TestClient(guard(Access(**access)), client=(peer, 5000), follow_redirects=False)
    return client.post(path, headers={"Host": NAME} | headers)


PASSES = None
# Access, headers (Host is NAME unless said; "peer" is the address of who asks) -> code of the refusal.
MATRIX: dict[str, tuple[dict[str, Any], dict[str, str], str | None]] = {
    "a name that nobody allowed": (OWN, {}, "host"),
    "an address": (OWN, {"Host": "192.168.0.7:8000"}, PASSES),
    "an allowed name": (NAMED, {}, PASSES),
    "in capitals, at any port": (NAMED, {"Host": "PHOTOS.example.org:8443"}, PASSES),
    "a service's name": (NAMED, {"Host": "charm:8000"}, PASSES),
    "a name below an allowed one": (NAMED, {"Host": f"a.{NAME}"}, "host"),
    "an allowed name in another": (NAMED, {"Host": f"{NAME}.evil.com"}, "host"),
    "its page": (NAMED, {"Origin": HTTPS}, PASSES),
    "its page at a port that the Host has": (NAMED, {"Host": f"{NAME}:81", "Origin": f"http://{NAME}:81"}, PASSES),
    "its page at a port that was allowed": (NAMED, {"Origin": "https://other.example.org:8443"}, PASSES),
    "its page, where nginx sends its own name": (NAMED, {"Host": "127.0.0.1:8000", "Origin": HTTPS}, PASSES),
    "a page of another port": (NAMED, {"Origin": f"{HTTPS}:9999"}, "origin"),
    "a page of another site": (NAMED, {"Origin": "https://evil.com"}, "origin"),
    "a page of nowhere": (NAMED, {"Origin": "null"}, "origin"),
    "a page of another scheme": (NAMED, {"Origin": f"ftp://{NAME}"}, "origin"),
    "a forwarded name of nobody who is trusted": (NAMED, {"Host": "x", "X-Forwarded-Host": NAME}, "host"),
    "and it does no harm": (NAMED, {"X-Forwarded-Host": "evil.com"}, PASSES),
    "a forwarded name": (TRUSTING, {"Host": "upstream", "X-Forwarded-Host": NAME, "Origin": HTTPS}, PASSES),
    "a forwarded name that is not ours": (TRUSTING, {"X-Forwarded-Host": "evil.com"}, "host"),
    "two forwarded names": (TRUSTING, {"X-Forwarded-Host": f"{NAME}, evil.com"}, "host"),
    "by a neighbour": (TRUSTING, {"Host": "x", "X-Forwarded-Host": NAME, "peer": "10.0.1.2"}, "host"),
    "by a proxy at IPv6's loopback": (TRUSTING, {"Host": "x", "X-Forwarded-Host": NAME, "peer": "::1"}, PASSES),
    "no token": (SECRET, {}, "token"),
    "the token": (SECRET, RIGHT, PASSES),
    "the token, scheme in small letters": (SECRET, {"Authorization": f"bearer {TOKEN}"}, PASSES),
    "another token": (SECRET, {"Authorization": f"Bearer {TOKEN}0"}, "token"),
    "a part of the token": (SECRET, {"Authorization": f"Bearer {TOKEN[:-1]}"}, "token"),
    "an empty token": (SECRET, {"Authorization": "Bearer "}, "token"),
    "the token by another scheme": (SECRET, {"Authorization": f"Basic {TOKEN}"}, "token"),
    "a token that is no ASCII": (SECRET, {"Authorization": "Bearer \xff\xe9"}, "token"),
    "the token and another site's page": (SECRET, RIGHT | {"Origin": "https://evil.com"}, "origin"),
    "the token and a rebound name": (SECRET, RIGHT | {"Host": "evil.com"}, "host"),
    "a token that nobody asked for": (NAMED, {"Authorization": "Bearer x"}, PASSES),
}


@pytest.mark.parametrize("name", MATRIX)
def test_requests(name: str) -> None:
    access, headers, code = MATRIX[name]
    encoded = {key: value.encode("latin-1") for key, value in headers.items() if key != "peer"}
    reply = ask(access, encoded, headers.get("peer", PROXY))  # type: ignore[arg-type]
    assert reply.status_code == {PASSES: 200, "token": 401}.get(code, 403)
    assert reply.json().get("error", {}).get("code") == code
    assert reply.headers.get("www-authenticate") == ("Bearer" if code == "token" else None)


@pytest.mark.parametrize(
    ("forwarded", "peer", "client"),
    [
        ("198.51.100.1, 203.0.113.9, 10.0.0.3", PROXY, "203.0.113.9"),
        ("203.0.113.9", "203.0.113.50", "203.0.113.50"),
        ("2001:DB8::9", PROXY, "2001:db8::9"),
        ("10.0.0.3", PROXY, PROXY),
        ("203.0.113.9, unknown", PROXY, PROXY),
    ],
)
def test_the_client_is_whom_a_trusted_proxy_names(forwarded: str, peer: str, client: str) -> None:
    assert ask(TRUSTING, {"X-Forwarded-For": forwarded}, peer).json()["client"] == client


@pytest.mark.parametrize("root", ["/charm", "/charm/", "/a/b"])
def test_below_a_path_whether_the_proxy_takes_it_off_or_not(root: str) -> None:
    access, prefix = NAMED | {"root_path": root}, root.removesuffix("/")
    for path in ("/", "/score", f"{prefix}/", f"{prefix}/score"):
        assert (ask(access, {}, path=path).status_code, path) == (200, path)
    moved = ask(access, {}, path=prefix)
    assert (moved.status_code, moved.headers["location"]) == (308, f"{prefix}/")
    assert ask(access, {}, path=f"{prefix}x/score").status_code == 404
    assert ask(access | {"token": TOKEN}, {}, path=f"{prefix}/").status_code == 200
    assert ask(access | {"token": TOKEN}, {}, path=f"{prefix}/score").status_code == 401


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        *[("--allow-host", value, "expected a name as in the address") for value in ("https://a.org/", "*", "a b", "")],
        *[("--root-path", value, "expected a path that begins with /") for value in ("charm", "/../x", "//evil.com")],
        ("--trust-proxy", "nginx", "expected an address or a network"),
        ("--token-file", "short", "expected one line of 16 characters or more"),
        ("--token-file", "missing", "No such file"),
    ],
)
def test_what_an_option_cannot_be(option: str, value: str, told: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("secret\n")
    ended = CliRunner().invoke(app, ["serve", option, value])
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
    assert told in ended.stderr


def test_metrics_are_what_prometheus_reads(scorer: CharmScorer, capfd: pytest.CaptureFixture[str]) -> None:
    access = Access(root_path="/charm", log=True)
    with run_server(scorer, access=access) as address, connect(address) as client:
        client.post("/charm/score", files=attach(JPEGS[0], b"a text"))
        reply = client.get("/metrics", headers={"Accept": "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"})
    assert reply.headers["content-type"].startswith("text/plain; version=")
    found = dict(line.rsplit(" ", 1) for line in reply.text.splitlines() if not line.startswith("#"))
    assert found["charm_requests_total"] == found["charm_images_total"] == "1.0"
    assert found['charm_rejected_total{reason="format"}'] == "1.0"
    assert float(found["charm_model_seconds_total"]) > 0
    assert float(found["charm_memory_mb"]) > 10
    assert "# TYPE charm_tokens_total counter" in reply.text
    assert re.search(r'127\.0\.0\.1:\d+ - "POST /charm/score HTTP/1\.1" 200', capfd.readouterr().out)


DOCKERFILE = (ROOT / "charm/app/Dockerfile").read_text().replace("\\\n", " ")
COMPOSE = YAML(typ="safe").load(ROOT / "charm/app/compose.yaml")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def test_the_image_is_built_from_the_wheel(tmp_path: Path) -> None:
    """The RUN lines as a script, with stand-ins for what changes the system: pip is asked for one wheel's extra."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "charm_vit-0.1.0-py3-none-any.whl").touch()
    for name in ("pip", "useradd"):
        (tmp_path / name).write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> {tmp_path}/called\n')
        (tmp_path / name).chmod(0o755)
    script = "\n".join(["set -e", *instructions("RUN")]).replace("/tmp/", f"{tmp_path}/tmp/")
    subprocess.run(["sh", "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
    called = (tmp_path / "called").read_text().splitlines()
    wheel, extra = re.fullmatch(r"(.*\.whl)\[(.*)\]", called[called.index("useradd") - 1]).groups()  # type: ignore[union-attr]
    assert Path(wheel).name == "charm_vit-0.1.0-py3-none-any.whl"
    assert {"uvicorn", "starlette", "prometheus-client"} <= EXTRA[extra]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert instructions("USER") == [called[-1]]  # and not root


@pytest.mark.parametrize(
    ("command", "name", "token"),
    [
        pytest.param(json.loads(instructions("CMD")[0]), "192.168.0.7", "", id="Dockerfile"),
        pytest.param(COMPOSE["services"]["charm"]["command"], NAME, TOKEN, id="compose"),
    ],
)
def test_the_container_serves(
    command: list[str], name: str, token: str, served_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command as it stands, with the folders of this machine; then the health check, and a client's requests."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    places = {"/model": str(served_folder), "/run/secrets/token": str(tmp_path / "token")}
    make_server, seen = served.make_server, []

    def ask_while_it_runs(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = sockets[0].getsockname()[1]
        (check,) = instructions("HEALTHCHECK")
        python, *rest = json.loads(check.partition("CMD ")[2].replace("8000", str(port)))
        healthy = subprocess.run([sys.executable, *rest], check=False).returncode
        with connect(f"http://127.0.0.1:{port}") as client:
            right = {"Authorization": f"Bearer {token}"} if token else {}
            asked = [{"Host": name} | right, {"Host": name}, {"Host": "evil.com"} | right]
            seen.extend([python, healthy, *(client.get("/health", headers=one).status_code for one in asked)])
        server.should_exit = True
        thread.join()

    def stand_in(*given: Any, **named: Any) -> Any:
        server = make_server(*given, **named)
        return SimpleNamespace(run=lambda sockets: ask_while_it_runs(server, sockets))

    monkeypatch.setattr(served, "make_server", stand_in)
    program, *arguments = [places.get(word, word) for word in command]
    ended = CliRunner().invoke(app, [*arguments, "--port", "0"])
    assert (program, ended.exit_code) == ("charm", 0), ended.output
    assert seen == ["python", 0, 200, 401 if token else 200, 403]
