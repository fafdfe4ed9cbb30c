"""charm/app/openapi.json says what replies hold, no less and no more: real ones of every route are held against it."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from charm.app.access import Access
from charm.app.limits import SERVER_LIMITS, ServerLimits
from charm.app.server import build_app
from charm.model.config import Calibration, EvaluationConfig, SolvedConfig
from charm.scorer import CharmScorer
from tests.charm.app.conftest import build_scorer
from tests.charm.app.test_server import JPEGS, TEXT, attach, connect
from tests.conftest import ROOT
from tests.serving import run_server

APP = ROOT / "charm" / "app"
TOLD = json.loads((APP / "openapi.json").read_text())
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}


def follow(schema: Any) -> Any:
    """The schema that a reference stands for; parts of one are put together."""
    while "$ref" in schema:
        found = TOLD
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        schema = found
    if "allOf" in schema:
        parts = [follow(part) for part in schema["allOf"]]
        properties = {name: one for part in parts for name, one in part["properties"].items()}
        required = [name for part in parts for name in part["required"]]
        return {"type": "object", "required": required, "properties": properties}
    return schema


def differ(schema: Any, value: Any, where: str, seen: set[str]) -> list[str]:
    """What of a value is not as the schema has it; the documented places that the value has go to `seen`."""
    schema = follow(schema)
    if "oneOf" in schema:
        found = [(differ(one, value, where, places := set()), places) for one in schema["oneOf"]]
        fitting = [places for wrong, places in found if not wrong]
        seen |= fitting[0] if fitting else set()
        return [] if len(fitting) == 1 else [f"{where}: fits {len(fitting)} of {len(found)}: {found}"]
    if "const" in schema or "enum" in schema:
        return [] if value in schema.get("enum", [schema.get("const")]) else [f"{where}: {value}"]
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not any(isinstance(value, TYPES[kind]) for kind in kinds) or isinstance(value, bool):
        return [f"{where}: {value!r} is none of {kinds}"]
    seen |= {f"{where} is {'null' if value is None else 'something'}"} if "null" in kinds else set()
    if isinstance(value, list):
        return [line for one in value for line in differ(schema["items"], one, f"{where}[]", seen)]
    if not isinstance(value, dict):
        return []
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    wrong = [f"{where}: no {name}" for name in schema.get("required", []) if name not in value]
    for name, one in value.items():
        if name in known:
            seen.add(f"{where}.{name}")
            wrong += differ(known[name], one, f"{where}.{name}", seen)
        elif isinstance(others, dict):
            wrong += differ(others, one, f"{where}.*", seen)
        elif not others:
            wrong.append(f"{where}: {name} is not documented")
    return wrong


def list_places(schema: Any, where: str) -> Iterator[str]:
    """Every place that is documented, and both kinds of value where it may be null."""
    schema = follow(schema)
    for one in schema.get("oneOf", []):
        yield from list_places(one, where)
    if "null" in schema.get("type", []) and schema["type"] != "null":
        yield from (f"{where} is null", f"{where} is something")
    for name, one in schema.get("properties", {}).items():
        yield f"{where}.{name}"
        yield from list_places(one, f"{where}.{name}")
    if "items" in schema:
        yield from list_places(schema["items"], f"{where}[]")


def schema_of(reply: httpx.Response) -> tuple[str, Any]:
    """Where the file describes such a reply, and how."""
    told = TOLD["paths"].get(reply.request.url.path, TOLD["paths"]["/health"])
    method = reply.request.method.lower()
    responses = told.get(method, next(iter(told.values())))["responses"]
    status = str(reply.status_code) if str(reply.status_code) in responses else "default"
    content = follow(responses[status])["content"]
    media_type = reply.headers["content-type"].partition(";")[0]
    name = "a refusal" if status == "default" else f"{reply.request.url.path} {status}"
    return name, content[media_type]["schema"]


@pytest.fixture(scope="module")
def replies(scorer: CharmScorer) -> list[httpx.Response]:
    """At least one of every kind: of models with one output and of bins, with draws and an evaluation or without."""
    srcc = {"value": 0.5, "low": 0.25, "high": 0.75}
    undefined: dict[str, float | None] = dict.fromkeys(srcc)
    models = [scorer, build_scorer(num_outputs=5, selection="random", max_edge=100)]
    for metrics in (srcc, undefined):
        rated = EvaluationConfig(9, None, {"srcc": metrics})
        config = replace(
            scorer.config, evaluation=rated, solved=SolvedConfig(2, 1.0, rated) if metrics is srcc else None
        )
        config = replace(config, calibration=Calibration.of([1.0] * 9, [2.0] * 9))
        models.append(CharmScorer(scorer.model, config))
    models.append(build_scorer(tokenizer="standard", max_seq_len=257))
    found = []
    for model in models:
        with run_server(model) as address, connect(address) as client:
            found += [client.get("/health"), client.post("/score", files=attach(JPEGS[0], TEXT))]
            found += [client.post("/score?draws=1", content=JPEGS[0])]
            found += [
                client.post("/explain?draws=1", files=attach(JPEGS[0])),
                client.post("/explain", content=JPEGS[0]),
            ]
            found += [client.get(path) for path in ("/", "/metrics", "/openapi.json")]
            found += [client.get("/metrics", headers={"Accept": "application/json"})]
    limits = replace(SERVER_LIMITS, file_bytes=9000, body_bytes=10_000, files=2)
    with run_server(scorer, limits) as address:  # noqa: SIM117
        with connect(address) as client:
            found += [client.post(path, files=attach(TEXT)) for path in ("/score", "/explain")]
            found += [client.post("/score", files=attach(TEXT, TEXT, TEXT)), client.post("/score", content=bytes(9999))]
            found += [client.post("/score", json={}), client.post("/score", content=b""), client.get("/none")]
            found += [client.get("/score"), client.get("/health", headers={"Host": "example.org"})]
            found += [client.post("/score", headers={"Origin": "null"}), client.post("/score?draws=0", content=b"x")]
    with run_server(scorer, access=Access(token="secret " * 3)) as address, connect(address) as client:
        found.append(client.get("/health"))
    with run_server(scorer, ServerLimits(requests=0)) as address, connect(address) as client:
        found.append(client.post("/score", files=attach(TEXT)))
    return found


def test_replies_hold_what_is_documented_and_nothing_else(replies: list[httpx.Response]) -> None:
    seen: set[str] = set()
    places: set[str] = set()
    wrong = []
    for reply in replies:
        name, schema = schema_of(reply)
        places |= set(list_places(schema, name))
        if "json" in reply.headers["content-type"]:
            wrong += differ(schema, reply.json(), name, seen)
    assert wrong == []
    assert sorted(places - seen) == []
    documented = {
        (path, status) for path, one in TOLD["paths"].items() for m in one.values() for status in m["responses"]
    }
    statuses = {(reply.request.url.path, str(reply.status_code)) for reply in replies}
    assert {one for one in documented if one[1] != "default"} <= statuses


def test_the_routes_are_those_of_the_server(scorer: CharmScorer) -> None:
    guarded: Any = build_app(scorer)
    routes = {(route.path, method.lower()) for route in guarded._app.routes for method in route.methods - {"HEAD"}}
    assert routes == {(path, method) for path, methods in TOLD["paths"].items() for method in methods}


def test_the_codes_are_those_of_the_server() -> None:
    """And each of their statuses is named where refusals are described."""
    own = [path for path in Path(APP).glob("*.py") if path.stem != "teach_page"]  # which is of `charm teach`
    text = "".join(path.read_text() for path in own)
    refusals = set(re.findall(r'Refused\((?:(\d+)|[\w.]+), "(\w+)"', text))
    assert {code for _, code in refusals} == set(
        TOLD["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    )
    said = TOLD["components"]["responses"]["Refused"]["description"]
    assert {status for status, _ in refusals if status} | {"404", "405"} == set(re.findall(r"\d{3}", said))


def test_limits_and_formats_are_those_of_the_server(scorer: CharmScorer) -> None:
    assert TOLD["components"]["parameters"]["draws"]["schema"]["maximum"] == SERVER_LIMITS.draws
    with run_server(scorer) as address, connect(address) as client:
        message = client.post("/score", files=attach(TEXT)).json()["scores"][0]["error"]["message"]
    assert (
        message.removeprefix("not a ").removesuffix(" file")
        in TOLD["components"]["requestBodies"]["Images"]["description"]
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/metrics", {"requests": 1}),
        ("/score", {"scores": [], "score_range": [1, 5], "more": 1}),
        ("/score", {"scores": [{"name": "a"}], "score_range": [1, 5]}),
        ("/score", {"scores": [], "score_range": ["1", 5]}),
    ],
)
def test_this_test_finds_differences(path: str, value: Any) -> None:
    method = TOLD["paths"][path].values()
    (schema,) = (one["responses"]["200"]["content"]["application/json"]["schema"] for one in method)
    assert differ(schema, value, path, set())
