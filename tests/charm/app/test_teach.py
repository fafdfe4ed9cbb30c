"""`charm teach`: no answer is lost, features are of the files as they are, and the model scores what they say."""

import csv
import io
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import simplejpeg
from huggingface_hub import constants
from typer.testing import CliRunner

from charm.app import image_folder, teach
from charm.app.answers import Answers
from charm.app.command import app
from charm.app.image_folder import ImageFolder
from charm.app.journal import open_lines
from charm.app.learner import ENOUGH, Learner
from charm.app.server import bind, make_server
from charm.app.teach_page import LIMITS, build_teach_app
from charm.images.find import escape_path, find_image_files
from charm.model.solving import Features
from charm.runtime.errors import UserError
from charm.scorer import CharmScorer
from tests.conftest import draw_image

HOSTILE = "<img src=x onerror=alert(1)>\u202e.jpg"
NAMES = [*(f"{number:02d}.jpg" for number in range(27)), "=1+1.jpg", HOSTILE, "line\nbreak\udcff.jpg"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `write_photos`; read only."""
    folder = tmp_path_factory.mktemp("teach") / "photos"
    write_photos(folder)
    return folder


def write_photos(folder: Path) -> None:
    """Thirty images, the last ones with hostile names, a broken file and a text."""
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        pixels = draw_image(60 + 3 * number, 150 - 2 * number, number)
        place = folder / "below" if number % 3 else folder
        (place / name).write_bytes(simplejpeg.encode_jpeg(pixels, quality=90))
    (folder / "broken.jpg").write_bytes((folder / "00.jpg").read_bytes()[:500])
    (folder / "notes.txt").write_text("no image")


@contextmanager
def open_learner(
    scorer: CharmScorer, photos: Path, out: Path, ratings: dict[str, float] | None = None
) -> Iterator[Learner]:
    """All images are looked at."""
    out.mkdir(exist_ok=True)
    with open_lines(out / "answers.jsonl", Answers) as answers:
        answers.load()
        files, _ = find_image_files([str(photos)])
        learner = Learner(ImageFolder(scorer, str(photos), files, out), answers, ratings or {})
        learner.folder.look(threading.Event(), lambda: None)
        yield learner


@pytest.fixture(scope="module")
def made(scorer: CharmScorer, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features and previews of the images, without answers; read only."""
    out = tmp_path_factory.mktemp("out")
    with open_learner(scorer, photos, out):
        pass
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change; links, which whole files replace."""
    for folder, _, names in os.walk(made):
        target = tmp_path / "out" / Path(folder).relative_to(made)
        target.mkdir()
        for name in names:
            (target / name).hardlink_to(Path(folder, name))
    return tmp_path / "out"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened, not known from before."""
    found: list[str] = []
    read = image_folder.ImageFileReader.read

    def note(self: Any, one: Any) -> bytes:
        found.append(Path(one.path).name)
        return read(self, one)

    monkeypatch.setattr(image_folder.ImageFileReader, "read", note)
    return found


def test_a_journal_gives_back_the_answers_wherever_it_is_cut(tmp_path: Path) -> None:
    """After each byte, and so within each line: the answers are those of the whole lines."""
    path = tmp_path / "answers.jsonl"
    states: list[dict[str, int | None]] = [{}]
    with open_lines(path, Answers) as answers:
        answers.load()
        answers.undo()
        assert not answers.stars
        steps: list[tuple[str, int | None] | None]
        steps = [("a", 5), ("b", None), None, ("c", 1), ("a", 2), None, None, ("b", 3), None, None, None]
        for step in steps:
            answers.undo() if step is None else answers.give(*step)
            states.append(answers.stars)
        assert states[5:] == [{"a": 2, "c": 1}, {"a": 5, "c": 1}, {"a": 5}, {"a": 5, "b": 3}, {"a": 5}, {}, {}]
        for stars in (0, 6, True, 2.5, float("nan"), "4"):
            with pytest.raises(ValueError, match="expected one of"):
                answers.give("a", stars)  # type: ignore[arg-type]
    whole = path.read_bytes()
    assert whole.count(b"\n") == len(steps)  # the first line, and none for the last step, which had nothing to undo
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        with open_lines(path, Answers) as answers:
            answers.load()
            assert answers.stars == states[max(0, whole[:end].count(b"\n") - 1)]
            answers.give("z", 4)
        with open_lines(path, Answers) as answers:
            answers.load()
            assert answers.stars["z"] == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"made_by": "charm teach", "version": 1}\n{"key": "a", "stars": 6}\n', "is damaged: take out the line"),
        ('{"made_by": "charm teach", "version": 1}\n{"undo": "a"}\n', "is damaged: take out the line"),
        ('{"made_by": "charm teach", "version": 1}\n[]\n', "is damaged: take out the line"),
        ('{"made_by": "charm teach", "version": 1}\n{"key\n', "is damaged: take out the line"),
        ('{"made_by": "charm teach", "version": 9}\n', r"is of a run with version 9 \(now 1\)"),
        ("[1]\n", "is damaged"),
    ],
)
def test_a_journal_that_is_none_is_refused_in_a_line(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with open_lines(path, Answers) as answers, pytest.raises(UserError, match=says):
        answers.load()
    assert path.read_text() == content
    with open_lines(path, Answers), pytest.raises(UserError, match="another process"):
        open_lines(path, Answers).__enter__()


def test_a_full_disk_loses_the_answer_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_lines(tmp_path / "answers.jsonl", Answers) as answers:
        answers.load()
        answers.give("a", 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match="No space"):
                answers.give("b", 2)
        answers.give("c", 3)
        assert answers.stars == {"a": 1, "c": 3}
    with open_lines(tmp_path / "answers.jsonl", Answers) as answers:
        answers.load()
        assert answers.stars == {"a": 1, "c": 3}


def test_features_are_made_once_and_again_of_what_has_changed(
    scorer: CharmScorer, photos: Path, tmp_path: Path, opened: list[str]
) -> None:
    """Of a file that was changed, added, renamed or removed, of a block that was damaged, and with another model."""
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for name in NAMES[:12]:
        found = next(photos.rglob(name))
        (folder / name).write_bytes(found.read_bytes())
    with open_learner(scorer, folder, out) as learner:
        before = dict(learner.folder.values)
        stars = {key: 1 + place % 5 for place, key in enumerate(learner.folder.paths)}
        for key, given in stars.items():
            learner.answers.give(key, given)
    keys = {Path(paths[0]).name: key for key, paths in learner.folder.paths.items()}
    assert sorted(opened) == sorted(NAMES[:12])
    assert len(before) == 12

    opened.clear()
    with open_learner(scorer, folder, out) as learner:
        assert (opened, learner.folder.values.keys()) == ([], before.keys())

    (out / ".previews" / "mine.jpg").write_text("no preview")
    (folder / "03.jpg").write_bytes(next(photos.rglob("20.jpg")).read_bytes())
    (folder / "04.jpg").rename(folder / "renamed.jpg")
    (folder / "05.jpg").unlink()
    os.utime(folder / "06.jpg", ns=(1, 1))
    (folder / "copy.jpg").write_bytes((folder / "07.jpg").read_bytes())
    with open_learner(scorer, folder, out) as learner:
        assert sorted(opened) == ["03.jpg", "06.jpg", "copy.jpg", "renamed.jpg"]
        found = learner.folder
        new = {key for key, paths in found.paths.items() if paths == [str(folder / "03.jpg")]}
        assert found.values.keys() == before.keys() - {keys["03.jpg"], keys["05.jpg"]} | new
        assert found.paths[keys["04.jpg"]] == [str(folder / "renamed.jpg")]
        assert sorted(found.paths[keys["07.jpg"]]) == [str(folder / "07.jpg"), str(folder / "copy.jpg")]
        # Stars are of what was seen: they went with the name, and not to the new image of the old one.
        assert learner.list_labels() == {key: (stars[key] - 1) / 4 for key in found.values.keys() & stars.keys()}
        assert {path.stem for path in (out / ".previews").iterdir()} == {*found.paths, "mine"}

    (block, *_) = (out / "features").rglob("*.npz")
    data = bytearray(block.read_bytes())
    data[-100] ^= 1
    block.write_bytes(data)
    opened.clear()
    with open_learner(scorer, folder, out) as learner:
        assert 0 < len(opened) <= image_folder.BLOCK
        np.testing.assert_allclose(learner.folder.values[keys["00.jpg"]], before[keys["00.jpg"]], atol=1e-5)
    opened.clear()
    with open_learner(teach.start_scorer("charm_demo"), folder, out):
        assert len(opened) == len(list(folder.iterdir()))


def test_a_stop_between_two_blocks_keeps_the_finished_ones(
    scorer: CharmScorer, photos: Path, tmp_path: Path, opened: list[str]
) -> None:
    files, _ = find_image_files([str(photos)])
    stop, told = threading.Event(), []

    def tell() -> None:
        told.append(1)
        stop.set()

    (tmp_path / "out").mkdir()
    ImageFolder(scorer, str(photos), files, tmp_path / "out").look(stop, tell)
    assert len(told) == 2  # before the first block, and after it
    opened.clear()
    with open_learner(scorer, photos, tmp_path / "out") as learner:
        kept = {Path(one.path).name for one in learner.folder.files[: image_folder.BLOCK]} - {"broken.jpg"}
        assert sorted(opened) == sorted({Path(one.path).name for one in files} - kept)
        assert (len(learner.folder.values), list(learner.folder.reasons.values())) == (30, ["corrupt"])


def test_the_order_follows_from_names_and_covers_the_folder(scorer: CharmScorer, tmp_path: Path) -> None:
    """An added file moves no other; each stretch of names has its share of the first answers."""
    for number in range(400):
        (tmp_path / f"{number:04d}.jpg").write_bytes(b"")
    files, _ = find_image_files([str(tmp_path)])
    orders = [
        [Path(one.path).name for one in ImageFolder(scorer, str(tmp_path), some, tmp_path / "out").files]
        for some in (files, files[::-1], files[::2])
    ]
    assert orders[0] == orders[1]
    assert [name for name in orders[0] if name in orders[2]] == orders[2]
    counts = np.histogram([int(name[:4]) for name in orders[0][:100]], bins=8, range=(0, 400))[0]
    assert counts.min() >= 4  # of 12.5; uniform draws without replacement have a standard deviation of 2.9
    assert counts.max() <= 22


def answer_all(learner: Learner, count: int = 30) -> dict[str, int]:
    """Gives the first images stars that follow from a feature."""
    keys = sorted(learner.folder.values)[:count]
    shown = Features(
        learner.folder.layers, learner.folder.parts, np.stack([learner.folder.values[key] for key in keys])
    )
    order = np.argsort(np.argsort(shown.of(2, "native")[:, 3]))
    stars = {key: 1 + int(place * 5 // count) for key, place in zip(keys, order, strict=True)}
    for key, given in stars.items():
        learner.answers.give(key, given)
    return stars


def test_the_model_scores_what_the_ranking_says(scorer: CharmScorer, photos: Path, out: Path) -> None:
    """And is one as any other: loaded, with a card, without traces of the model that it was made of."""
    with open_learner(scorer, photos, out) as learner:
        answer_all(learner, ENOUGH - 1)
        learner.learn()
        assert (learner.solved, learner.ranking) == (None, [])
        stars = answer_all(learner, 24)
        learner.learn()
        learner.write(scorer, out)
    taught = CharmScorer.from_pretrained(out / "model")
    with (out / "ranking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 31
    assert [row["reason"] for row in rows] == [""] * 30 + ["corrupt"]
    scores = [float(row["score"]) for row in rows[:30]]
    assert scores == sorted(scores, reverse=True)
    assert np.ptp(scores) > 0.1
    written = {row["path"]: row for row in rows}
    for key, paths in learner.folder.paths.items():
        (row,) = [written[escape_path(path)] for path in paths]
        assert float(row["score"]) == pytest.approx(taught(paths[0]).score, abs=4e-5)  # 1e-5 of the range
        assert row["given"] == (f"{float(stars[key])}" if key in stars else "")
    assert all(not any(char in name for char in "\n\u202e\udcff") for name in written)
    config = taught.config
    assert (config.labels.score_range, config.labels.num_bins, config.evaluation) == ((1.0, 5.0), 1, None)
    assert config.solved is not None
    assert config.solved.cross_validation == learner.solved.agreement  # type: ignore[union-attr]
    assert config.solved.cross_validation.scored == 24  # type: ignore[union-attr]
    assert config.training.started_from == "charm_demo trained on none"
    card = (out / "model" / "README.md").read_text()
    assert "Over all 24 images of `own-photographs` by cross-validation" in card
    assert "``" not in card.replace("```", "")  # no value that is missing


def test_the_agreement_is_what_cross_validation_says(scorer: CharmScorer, photos: Path, out: Path) -> None:
    """Of stars that follow from a feature it is high; it is computed anew for other answers alone."""
    with open_learner(scorer, photos, out) as learner:
        keys = list(answer_all(learner))
        learner.learn()
        first = learner.solved
        assert first is not None
        srcc = first.agreement.metrics["srcc"]
        assert srcc["low"] is not None
        assert srcc["low"] > 0.2
        learner.learn()
        assert learner.solved is first  # not solved again for nothing
        learner.answers.undo()
        learner.learn()
        assert learner.solved is not first
        for key in keys:
            learner.answers.give(key, 3)
        learner.learn()
        assert (learner.solved, learner.ranking) == (None, [])  # equal stars order nothing


def write_ratings(path: Path, ratings: dict[str, float]) -> Path:
    path.write_text("path,score\n" + "".join(f'"{name}",{rating}\n' for name, rating in ratings.items()))
    return path


def test_ratings_count_as_stars_or_on_their_own_scale(
    scorer: CharmScorer, photos: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, _ = find_image_files([str(photos)])
    names = [os.path.relpath(one.path, photos) for one in files if "broken" not in one.path]
    for scale, given in (((1.0, 5.0), [1.5, 2, 4]), ((0.0, 100.0), [0, 25, 100])):
        table = write_ratings(
            tmp_path / "labels.csv",
            {name: given[place % 3] for place, name in enumerate(names[:24])} | {"elsewhere.jpg": given[0]},
        )
        ratings = teach.read_ratings(table, ("path", "score"), str(photos), files)
        assert len(ratings) == 24
        assert capsys.readouterr().out.endswith("photos: 1\n")
        with open_learner(scorer, photos, out, ratings) as learner:
            assert learner.scale.score_range == scale
            low, high = scale
            wanted = {(rating - low) / (high - low) for rating in given}
            assert {round(label, 9) for label in learner.list_labels().values()} == {round(one, 9) for one in wanted}
            rated = next(key for key, paths in learner.folder.paths.items() if paths[0] in ratings)
            learner.answers.give(rated, 3)  # which counts more, and lies in the middle of any scale
            assert learner.list_labels()[rated] == 0.5
            learner.learn()
            learner.write(scorer, out)
            assert CharmScorer.from_pretrained(out / "model").score_range == scale
            learner.answers.undo()
    with pytest.raises(UserError, match="none of its 1 photographs is in"):
        teach.read_ratings(write_ratings(table, {"x.jpg": 1}), ("path", "score"), str(photos), files)


@pytest.mark.parametrize("ratings", [[7.0], [-1.5e308, 1.4e308], [1e308, math.inf]])
def test_ratings_without_a_range_are_refused(
    ratings: list[float], scorer: CharmScorer, photos: Path, tmp_path: Path
) -> None:
    folder = ImageFolder(scorer, str(photos), [], tmp_path)
    with pytest.raises(UserError, match="--ratings: ratings are from"):
        Learner(folder, Answers(tmp_path, io.BytesIO()), dict(zip("ab", ratings, strict=False)))


@contextmanager
def serve_page(learner: Learner) -> Iterator[tuple[httpx.Client, list[str]]]:
    """A client of the page, and what has ended it; the learner learns meanwhile."""
    stop, ended = threading.Event(), list[str]()
    with bind("127.0.0.1", 0) as bound, ThreadPoolExecutor(2) as threads:
        server = make_server(build_teach_app(learner, lambda: ended.append("finish")), LIMITS)
        threads.submit(server.run, sockets=[bound])
        learning = threads.submit(learner.run, stop)
        try:
            address = f"http://127.0.0.1:{bound.getsockname()[1]}"
            with httpx.Client(base_url=address, trust_env=False, timeout=60) as client:
                yield client, ended
        finally:
            server.should_exit = True
            stop.set()
            learner.tell()
    learning.result()


def test_answers_by_http_are_kept_before_the_reply(scorer: CharmScorer, photos: Path, out: Path) -> None:
    with open_learner(scorer, photos, out) as learner, serve_page(learner) as (client, ended):
        state = client.get("/state").json()
        assert (state["files"], state["done"], state["rejected"], state["agreement"]) == (31, 31, 1, None)
        first, second = (one["key"] for one in state["next"][:2])
        learner.folder.preview(second).unlink()
        gone = client.get(f"/image/{second}")
        assert (gone.status_code, gone.json()["error"]["message"]) == (
            404,
            "its preview cannot be read: No such file or directory",
        )
        preview = client.get(f"/image/{first}")
        assert preview.content == learner.folder.preview(first).read_bytes()
        assert "immutable" in preview.headers["cache-control"]
        state = client.post("/answer", json={"key": first, "stars": 4}).json()
        assert (state["answered"], state["next"][0]["key"]) == (1, second)
        assert json.loads((out / "answers.jsonl").read_text().splitlines()[-1]) == {"key": first, "stars": 4}
        state = client.post("/answer", json={"key": second, "stars": None}).json()
        assert (state["answered"], state["skipped"], len(state["next"])) == (1, 1, 5)
        state = client.post("/undo").json()
        assert (state["skipped"], state["next"][0]["key"]) == (0, second)
        state = client.post("/undo").json()
        assert (state["answered"], [one["key"] for one in state["next"][:2]]) == (0, [first, second])
        assert client.post("/undo").json()["answered"] == 0
        seen = []
        for _ in range(30):
            (one, *_) = state["next"]
            seen.append(one["key"])
            state = client.post("/answer", json={"key": one["key"], "stars": 1 + len(seen) % 5}).json()
        assert (len(set(seen)), state["next"]) == (30, [])
        end = time.monotonic() + 60
        while (state := client.get("/state").json())["agreement"] is None or state["agreement"]["scored"] < 30:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert (state["ranked"], len(state["best"]), len(state["worst"])) == (30, 12, 12)
        scores = [one["score"] for one in state["best"] + state["worst"][::-1]]
        assert scores == sorted(scores, reverse=True)
        assert ended == []
        assert client.post("/finish").status_code == 200
        assert ended == ["finish"]


HOSTILE_REQUESTS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "another key": ("POST", "/answer", {"json": {"key": "0" * 32, "stars": 3}}, 404),
    "a key that is a path": ("POST", "/answer", {"json": {"key": "../answers.jsonl", "stars": 3}}, 404),
    "a key that is a list": ("POST", "/answer", {"json": {"key": ["a"], "stars": 3}}, 404),
    "no stars": ("POST", "/answer", {"json": {"key": "KEY"}}, 400),
    "0 stars": ("POST", "/answer", {"json": {"key": "KEY", "stars": 0}}, 400),
    "6 stars": ("POST", "/answer", {"json": {"key": "KEY", "stars": 6}}, 400),
    "half a star": ("POST", "/answer", {"json": {"key": "KEY", "stars": 3.5}}, 400),
    "true": ("POST", "/answer", {"json": {"key": "KEY", "stars": True}}, 400),
    "nan": ("POST", "/answer", {"content": b'{"key": "KEY", "stars": NaN}'}, 400),
    "text": ("POST", "/answer", {"json": {"key": "KEY", "stars": "4"}}, 400),
    "no JSON": ("POST", "/answer", {"content": b"\xff\x00"}, 400),
    "a tower": ("POST", "/answer", {"content": b"[" * 100_000}, 400),
    "too large": ("POST", "/answer", {"content": b" " * 1_000_001}, 413),
    "another page": (
        "POST",
        "/answer",
        {"json": {"key": "KEY", "stars": 5}, "headers": {"Origin": "http://x.org"}},
        403,
    ),
    "another page's end": ("POST", "/finish", {"headers": {"Origin": "null"}}, 403),
    "another name": ("GET", "/state", {"headers": {"Host": "photos.example.org"}}, 403),
    "a path": ("GET", "/image/../answers.jsonl", {}, 404),
    "an escaped path": ("GET", "/image/..%2f..%2fanswers.jsonl", {}, 404),
    "a file's name": ("GET", "/image/KEY.jpg", {}, 404),
    "an answer by GET": ("GET", "/answer", {}, 405),
}


def test_hostile_requests_are_refused_and_change_nothing(scorer: CharmScorer, photos: Path, out: Path) -> None:
    with open_learner(scorer, photos, out) as learner, serve_page(learner) as (client, ended):
        key = next(iter(learner.folder.paths))
        assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
        found = {}
        for name, (method, path, more, _) in HOSTILE_REQUESTS.items():
            given = {kind: _put_key(value, key) for kind, value in more.items()}
            reply = client.request(method, path.replace("KEY", key), **given)
            found[name] = reply.status_code if reply.json()["error"]["message"] else None
        assert found == {name: expected for name, (*_, expected) in HOSTILE_REQUESTS.items()}
        assert (learner.answers.stars, ended) == ({}, [])


def _put_key(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _put_key(one, key) for name, one in value.items()}
    if isinstance(value, bytes):
        return value.replace(b"KEY", key.encode())
    return key if value == "KEY" else value


def run_command(photos: Path, out: Path, act: Any, *more: str) -> tuple[int, str]:
    """Runs the command in this process while `act` is called with the address; its exit code and output."""
    hosts: list[str] = []

    def meet(host: str, port: int) -> Any:
        bound = bind(host, port)
        hosts.append(f"http://{host}:{bound.getsockname()[1]}")
        return bound

    def watch() -> None:
        while not hosts:
            time.sleep(0.01)
        with httpx.Client(base_url=hosts[0], trust_env=False, timeout=60) as client:
            act(client)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as threads:
        patch.setattr(teach, "bind", meet)
        watching = threads.submit(watch)
        ended = CliRunner().invoke(app, ["teach", str(photos), "--out", str(out), "--port", "0", *more])
        watching.result()
    return ended.exit_code, ended.output


def test_the_command_goes_on_after_a_signal_and_ends_by_the_page(
    photos: Path, made: Path, tmp_path: Path, served_folder: Path
) -> None:
    """Also where all that is kept lies among the photographs, beside what was kept by another run."""
    out = tmp_path / "photos"
    shutil.copytree(photos, out)
    shutil.copytree(made, out, dirs_exist_ok=True)
    shutil.copytree(made, out / "earlier")
    photos = out

    def answer(client: httpx.Client, count: int) -> None:
        state = client.get("/state").json()
        for number in range(count):
            while not state["next"]:
                state = client.get("/state").json()
            state = client.post("/answer", json={"key": state["next"][0]["key"], "stars": 1 + number % 5}).json()

    def stop(client: httpx.Client) -> None:
        answer(client, 5)
        os.kill(os.getpid(), signal.SIGTERM)

    def finish(client: httpx.Client) -> None:
        answer(client, 20)
        client.post("/finish")

    code, said = run_command(photos, out, stop, "--model", str(served_folder))
    assert code == 3  # of the broken file
    assert "photographs with stars or ratings: 5; a model takes 20" in said
    assert not (out / "model").exists()
    code, said = run_command(photos, out, finish, "--model", str(served_folder))
    assert code == 3
    assert "by cross-validation on 25 photographs" in said
    assert "model, and ranking.csv of 30 photographs" in said
    assert "rejected, corrupt" in said
    assert CharmScorer.from_pretrained(out / "model").score_range == (1.0, 5.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing"], "missing: expected a folder of photographs"),
        (["photos", "--ratings", "none.csv"], "none.csv: No such file or directory"),
        (["photos", "--backbone", "no_such_vit"], "backbone='no_such_vit' is not a model of timm"),
        (["photos", "--backbone", "resnet18.a1_in1k"], "resnet18.a1_in1k"),
        (["photos", "--model", "nowhere"], "nowhere/config.json: No such file or directory"),
        (["photos", "--out", "run"], "--out run: holds a model or a ranking.csv made otherwise"),
        (["photos", "--out", "table"], "--out table: holds a model or a ranking.csv made otherwise"),
        (["photos/00.jpg"], "photos/00.jpg: expected a folder of photographs"),
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: list[str], says: str, photos: Path, served_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(photos)
    shutil.copytree(served_folder, "run/model")
    Path("table").mkdir()
    Path("table/ranking.csv").write_text("name,place\n")
    ended = CliRunner().invoke(app, ["teach", *arguments, "--port", "0"])
    assert ended.exit_code == 2
    (line,) = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert says in line
    assert not Path("taught/model").exists()


def test_without_a_network_a_line_says_what_to_do(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    ended = CliRunner().invoke(app, ["teach", str(photos), "--out", str(tmp_path / "out"), "--port", "0"])
    assert ended.exit_code == 2
    (line,) = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert "vit_small_patch14_dinov2.lvd142m cannot be downloaded" in line
    assert line.endswith("or with --model, which takes a model's folder")
    assert "weights are downloaded unless" in ended.output
