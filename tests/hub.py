"""A hub on loopback, as huggingface_hub speaks to it: repositories of files in memory, one commit each."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40


@dataclass
class StubHub:
    """What it holds, and what it was asked.

    Attributes:
        repositories: name -> file -> content.
        revisions: branches, tags and commits that each has.
        asked: method and path of each request.
        tokens: of each request, None without one.
        needed: the token that every request must have; "" for none.
    """

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", COMMIT)
    asked: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    needed: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of an answer."""
        path = path.split("?")[0]
        if method == "POST" and path == "/api/repos/create":
            self.created.append(json.loads(body))
            name = f"{self.created[-1].get('organization') or 'me'}/{self.created[-1]['name']}"
            self.repositories.setdefault(name, {})
            return self._json({"url": f"{self.address}/{name}", "name": name, "id": name})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)/([^/]+))?", path):
            return self._describe(match[1], match[2] or "revision", match[3] or "main", body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self.repositories.get(match[1], {})
            if match[3] not in files or match[2] not in self.revisions:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            content = files[match[3]]
            commit = match[2] if len(match[2]) == len(COMMIT) else COMMIT
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content
        return (200, {}, b"{}") if path in ("/", "", "/api/validate-yaml") else (404, {}, b"")

    def _describe(self, name: str, kind: str, revision: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in self.revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files = self.repositories[name]
        if kind == "tree":
            oids = {path: hashlib.sha1(content).hexdigest() for path, content in files.items()}
            listed = [{"type": "file", "path": path, "size": len(files[path]), "oid": oids[path]} for path in files]
            return self._json(listed)
        if kind == "preupload":
            named = [one["path"] for one in json.loads(body)["files"]]
            return self._json({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in named]})
        if kind == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._json({"commitUrl": f"{self.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        siblings = [{"rfilename": path} for path in files]
        return self._json({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False})

    def _json(self, value: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def serve_hub() -> Iterator[StubHub]:
    """Yields a hub that answers until the block ends."""
    hub = StubHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            hub.asked.append(f"{self.command} {self.path}")
            hub.tokens.append(token)
            status, headers, content = hub.answer(self.command, self.path, body)
            if hub.needed and token != hub.needed and self.path != "/":
                status, headers, content = 401, {}, b""
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = answer

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
        thread.join()
