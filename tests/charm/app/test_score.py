"""`charm score`: what it writes, in which order, and that a stop at any moment loses nothing and does nothing twice."""

import csv
import fcntl
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from typer.testing import CliRunner

from charm.app import score as score_files
from charm.app.command import app
from charm.app.journal import open_journal, read_state
from charm.app.rows import Row
from charm.app.score import Clock, read_ahead, stream_rows
from charm.hub import write_model_folder
from charm.images.decode import decode_image
from charm.images.find import find_image_files
from charm.scorer import CharmScorer
from charm.scores import rank
from tests.conftest import ROOT, draw_image
from tests.faults.bombs import REFUSED
from tests.untrained import build_scorer, describe, write_model
from tests.warm_python import WarmPython

BAD = {"c.jpg": "format", "e.jpg": "empty", "g.jpg": "corrupt", "i.png": "too_large"}
NAMES = [f"{letter}.{'png' if letter == 'i' else 'jpg'}" for letter in "abcdefghijklm"]
GOOD = [name for name in NAMES if name not in BAD]
GROUPS = [NAMES[start : start + 3] for start in range(0, len(NAMES), 3)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen files of NAMES, of which four are BAD; read only."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder


def write_photos(folder: Path) -> None:
    for index, name in enumerate(NAMES):
        (folder / name).write_bytes(simplejpeg.encode_jpeg(draw_image(60 + 9 * index, 150 - 7 * index, index)))
    (folder / "c.jpg").write_text("a text")
    (folder / "e.jpg").write_bytes(b"")
    (folder / "g.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-60])
    (folder / "i.png").write_bytes(REFUSED["PNG, 1 bit, 60000 x 60000"])


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> Path:
    """The current folder: `photos` is a link to the photographs, and three at a time are scored."""
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(photos)
    monkeypatch.setattr(score_files, "GROUP", 3)
    return tmp_path


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(work: Path, model_folder: Path) -> Run:
    """Called with arguments after `charm score photos --model ...`."""

    def run_command(*arguments: str, paths: tuple[str, ...] = ("photos",)) -> Ended:
        ended = CliRunner().invoke(app, ["score", *paths, "--model", str(model_folder), *arguments])
        assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
        return Ended(ended.exit_code, ended.stdout, ended.stderr)

    return run_command


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of photographs of each call of the model."""
    calls: list[int] = []
    score_tokens = CharmScorer.score_tokens

    def count(self: CharmScorer, tokens: Any) -> Any:
        calls.append(len(tokens))
        return score_tokens(self, tokens)

    monkeypatch.setattr(CharmScorer, "score_tokens", count)
    return calls


@pytest.fixture(scope="module")
def whole(photos: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(score_files, "GROUP", 3)
        Path("photos").symlink_to(photos)
        arguments = ["score", "photos", "--model", str(model_folder), "--out", "out.csv"]
        assert CliRunner().invoke(app, arguments).exit_code == 3
    return (folder / "out.csv").read_bytes()


@pytest.mark.parametrize("out", [[], ["--out", "best.csv"]], ids=["lines", "table"])
def test_the_best_come_first_and_alone(out: list[str], run: Run, whole: bytes, work: Path) -> None:
    ended = run("--top", "3", *out)
    best = sorted((row for row in read_csv(whole) if row["raw"]), key=lambda row: -float(row["raw"]))[:3]
    rows = read_csv(Path("best.csv").read_bytes()) if out else []
    found = [row["path"] for row in rows] or [line.split("\t")[2] for line in ended.out.splitlines()]
    assert found == [row["path"] for row in best]
    assert ended.code == 3  # and the rejected ones are named
    assert "c.jpg" in ended.err


def test_percentiles_are_among_the_validation_images(work: Path, run: Run, whole: bytes) -> None:
    refused = run("--percentile")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "holds no validation scores" in refused.err
    assert "dvc" not in refused.err  # which the wheel does not have
    raw = sorted(float(row["raw"]) for row in read_csv(whole) if row["raw"])
    known = replace(describe(), val_percentiles=np.percentile(raw, np.arange(101)).tolist())
    write_model_folder("known", build_scorer().model.state_dict(), known)
    for out in ("found.csv", "found.parquet"):
        assert run("--percentile", "--model", "known", "--out", out).code == 3
    rows = read_csv(Path("found.csv").read_bytes())
    assert list(rows[0])[:5] == ["path", "score", "spread", "raw", "percentile"]
    places = sorted(float(row["percentile"]) for row in rows if row["raw"])
    assert places == pytest.approx(np.linspace(0, 100, len(raw)), abs=0.5)
    assert pq.read_table("found.parquet")["percentile"].to_pylist()[0] == pytest.approx(float(rows[0]["percentile"]))
    line = run("--percentile", "--model", "known", "--top", "1").out
    assert line.split("\t")[2] == "100.0"


@pytest.mark.parametrize(
    ("raw", "percentiles", "expected"),
    [
        (3.0, None, None),
        (-9.0, list(range(101)), 0),
        (900.0, list(range(101)), 100),
        (2.0, [2.0] * 101, 50),
    ],
)
def test_rank(raw: float, percentiles: list[float] | None, expected: float | None) -> None:
    assert rank(raw, percentiles) == expected


def read_csv(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def test_one_row_each_in_order_with_a_score_or_a_reason(whole: bytes) -> None:
    rows = read_csv(whole)
    assert list(rows[0]) == ["path", "score", "spread", "raw", "downscaled_to", "reason"]
    assert [row["path"] for row in rows] == [f"photos/{name}" for name in NAMES]
    assert {row["path"][7:]: row["reason"] for row in rows if row["reason"]} == BAD
    assert all(bool(row["score"]) == bool(row["raw"]) == (not row["reason"]) for row in rows)
    assert {row["spread"] for row in rows} == {""}  # of one draw nobody knows


def test_scores_are_those_of_the_library_in_any_order_and_company(work: Path, whole: bytes, model_folder: Path) -> None:
    scorer = CharmScorer.from_pretrained(str(model_folder))
    images = [decode_image((Path("photos") / name).read_bytes()).pixels for name in GOOD]
    expected = {f"photos/{name}": score.score for name, score in zip(GOOD, scorer(images), strict=True)}
    assert {row["path"]: float(row["score"]) for row in read_csv(whole) if row["score"]} == pytest.approx(
        expected, abs=1e-5
    )
    paths = list(expected)
    random.Random(3).shuffle(paths)
    for some in (paths, paths[:1], paths[4:6]):
        stream = stream_rows(scorer, find_image_files(some)[0], 1, Clock(0.0))
        rows = [row for _, group in stream for row in group]
        assert [row.path for row in rows] == some
        assert [row.score for row in rows] == pytest.approx([expected[path] for path in some], abs=1e-5)


def test_lines_and_what_is_said_of_the_rejected(run: Run, whole: bytes) -> None:
    ended = run()
    assert ended.code == 3
    rows = [row for row in read_csv(whole) if row["score"]]
    assert ended.out.splitlines() == [f"{float(row['score']):.4f}\t\t{row['path']}" for row in rows]
    lines = ended.err.splitlines()
    assert lines[:4] == [
        "rejected, empty: the file has no bytes",
        "  photos/e.jpg",
        "rejected, format: not a JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC or JPEG 2000 file",
        "  photos/c.jpg",
    ]
    assert "  photos/i.png" in lines
    assert lines[-1].startswith("9 photographs scored, 4 rejected, ")
    assert lines[-1].endswith("% of the time")
    assert run(paths=("photos/a.jpg",)).code == 0


def test_formats_hold_the_same(work: Path, photos: Path) -> None:
    """Of a model that gives distributions, and of several draws."""
    write_model(Path("model"), num_outputs=5)
    tables = {}
    for ending in ("parquet", "csv", "jsonl"):
        arguments = ["score", "photos", "--model", "model", "--draws", "2", "--out", f"out.{ending}"]
        assert CliRunner().invoke(app, arguments).exit_code == 3
    tables["parquet"] = pq.read_table("out.parquet").to_pylist()
    tables["jsonl"] = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    tables["csv"] = [
        row
        | {name: float(row[name]) if row[name] else None for name in ("score", "spread", "raw")}
        | {name: json.loads(row[name] or "null") for name in ("downscaled_to", "distribution")}
        for row in read_csv(Path("out.csv").read_bytes())
    ]
    assert tables["csv"] == tables["jsonl"] == tables["parquet"]
    assert list(tables["parquet"][0]) == ["path", "score", "spread", "raw", "downscaled_to", "distribution", "reason"]
    good = [row for row in tables["parquet"] if not row["reason"]]
    assert np.allclose([sum(row["distribution"]) for row in good], 1)
    assert max(row["spread"] for row in good) > 0


def test_odd_names_stay_in_their_line(run: Run, photos: Path) -> None:
    Path("odd").mkdir()
    for name in ("two\nlines.jpg", os.fsdecode(b"\xff.jpg"), 'quo"te,.jpg'):
        (Path("odd") / name).write_bytes((photos / "a.jpg").read_bytes())
    Path("odd/bad\n.jpg").write_bytes(b"")
    ended = run("--out", "out.csv", paths=("odd",))
    assert ended.code == 3
    assert r"  odd/bad\n.jpg" in ended.err.splitlines()
    assert [line.split(",")[0] for line in Path("out.csv").read_text().splitlines()] == [
        "path",
        r"odd/bad\n.jpg",
        '"odd/quo""te',
        r"odd/two\nlines.jpg",
        r"odd/\xff.jpg",
    ]
    assert [line.split("\t")[2] for line in run(paths=("odd",)).out.splitlines()][1:] == [
        r"odd/two\nlines.jpg",
        r"odd/\xff.jpg",
    ]


def test_what_is_passed_over_is_said_and_nothing_else_is_exit_code_3(run: Run, photos: Path) -> None:
    Path("in").mkdir()
    for name in ("a.psd", "b.PSD", "c.cr2"):
        (Path("in") / name).touch()
    ended = run("--out", "out.csv", paths=("in",))
    assert (ended.code, Path("out.csv").exists()) == (3, False)
    assert ended.err.startswith("no photographs: 2 .psd, 1 .cr2 passed over: ")
    assert ended.err.count("\n") == 1
    (Path("in") / "d.jfif").write_bytes((photos / "a.jpg").read_bytes())
    ended = run(paths=("in",))
    assert (ended.code, ended.out.count("\n")) == (0, 1)
    assert ended.err.splitlines()[0].startswith("2 .psd, 1 .cr2 passed over: ")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_names_are_no_formulas_in_any_table(ending: str, run: Run, photos: Path) -> None:
    Path("@in").mkdir()
    for name in ("@in/a.jpg", "=1+1.jpg", "photo\u202egpj.jpg"):
        Path(name).write_bytes((photos / "a.jpg").read_bytes())
    assert run("--out", f"out.{ending}", paths=("@in", "=1+1.jpg", "photo\u202egpj.jpg")).code == 0
    data = Path(f"out.{ending}").read_bytes()
    rows = {
        "csv": lambda: read_csv(data),
        "jsonl": lambda: [json.loads(line) for line in data.splitlines()],
        "parquet": lambda: pq.read_table(io.BytesIO(data)).to_pylist(),
    }[ending]()
    assert [row["path"] for row in rows] == ["./@in/a.jpg", "./=1+1.jpg", r"photo\u202egpj.jpg"]


def assert_same_table(data: bytes, whole: bytes) -> None:
    """But for rounding, which depends on who is in a batch."""
    found, expected = read_csv(data), read_csv(whole)
    assert [(row["path"], row["reason"]) for row in found] == [(row["path"], row["reason"]) for row in expected]
    scores = [[float(row["score"]) for row in table if row["score"]] for table in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=4e-5)


def journal_names() -> list[str]:
    lines = Path("out.csv.partial").read_text().splitlines()[1:]
    return [Path(json.loads(line)["path"]).name for line in lines]


def test_a_stopped_run_goes_on_without_rows_lost_or_twice(run: Run, whole: bytes, scored: list[int]) -> None:
    """At every group; with the last line whole, and cut short as a power cut may leave it."""
    for groups, cut in ((0, 0), (1, 0), (3, 0), (4, 40)):
        Path("out.csv").unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            stop(patch, groups)
            ended = run("--out", "out.csv")
        assert (ended.code, ended.err.splitlines()[-1]) == (
            130,
            "stopped; what is made is kept, and the same command goes on from here",
        )
        assert not Path("out.csv").exists()
        assert Path("out.csv.partial").exists() == (groups > 0)
        done = 3 * groups
        if groups:
            assert journal_names() == NAMES[:done]
        if cut:
            partial = Path("out.csv.partial")
            partial.write_bytes(partial.read_bytes()[:-cut])
            done -= 1
        scored.clear()
        ended = run("--out", "out.csv")
        assert ended.code == 3
        assert sum(scored) == len([name for name in NAMES[done:] if name in GOOD])
        assert (f"{done} of 13 photographs are done" in ended.err) == (done > 0)
        assert_same_table(Path("out.csv").read_bytes(), whole)
        assert not Path("out.csv.partial").exists()


def stop(patch: pytest.MonkeyPatch, groups: int) -> None:
    """SIGTERM to this process in the place of the group after so many."""
    score_tokens, left = CharmScorer.score_tokens, iter(range(groups))

    def score_some(self: CharmScorer, tokens: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        return score_tokens(self, tokens)

    patch.setattr(CharmScorer, "score_tokens", score_some)


KILLED = """
import os, signal, sys
from charm.hub import write_model_folder
from charm.scorer import CharmScorer
from charm.scores import rank
from charm.app import score as score_files
from charm.app.command import main

score_files.GROUP = 3
score_tokens, left = CharmScorer.score_tokens, iter(range(2))

def score_some(self, tokens):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return score_tokens(self, tokens)

CharmScorer.score_tokens = score_some
main()
"""


def test_a_killed_run_goes_on_without_rows_lost_or_twice(
    run: Run, whole: bytes, scored: list[int], model_folder: Path, warm: WarmPython
) -> None:
    command = [sys.executable, "-c", KILLED, "score", "photos", "--model", str(model_folder), "--out", "out.csv"]
    with warm.popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE) as killed:
        _, said = killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL, said
    assert journal_names() == NAMES[:6]
    assert run("--out", "out.csv").code == 3
    assert sum(scored) == len(GOOD) - len([name for name in NAMES[:6] if name in GOOD])
    assert_same_table(Path("out.csv").read_bytes(), whole)


def test_a_full_disk_ends_the_run_and_not_the_journal(run: Run, whole: bytes) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, before[1]))  # the kernel lets no file grow larger
    try:
        ended = run("--out", "out.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (ended.code, ended.err) == (2, "error: [Errno 27] File too large\n")
    assert Path("out.csv.partial").read_bytes().endswith(b"\n")  # lines are there whole or not
    ended = run("--out", "out.csv")
    assert re.search(r"[1-9] of 13 photographs are done", ended.err)
    assert_same_table(Path("out.csv").read_bytes(), whole)


def test_what_changed_or_came_since_is_scored(
    run: Run, work: Path, scored: list[int], tmp_path: Path, photos: Path
) -> None:
    Path("own").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        (Path("own") / name).write_bytes((photos / name).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, 1)
        run("--out", "out.csv", paths=("own",))
    Path("own/a.jpg").write_bytes((photos / "h.jpg").read_bytes())
    os.utime("own/b.jpg", ns=(1, 1))
    Path("own/aa.jpg").write_bytes((photos / "j.jpg").read_bytes())
    scored.clear()
    assert run("--out", "out.csv", paths=("own",)).code == 3
    assert sum(scored) == 4  # a, aa, b, d; c is no image, still
    rows = {row["path"]: row["score"] for row in read_csv(Path("out.csv").read_bytes())}
    assert list(rows) == ["own/a.jpg", "own/aa.jpg", "own/b.jpg", "own/c.jpg", "own/d.jpg"]
    alone = run(paths=("photos/h.jpg",)).out.split("\t")[0]
    assert float(rows["own/a.jpg"]) == pytest.approx(float(alone), abs=1e-3)


def test_rows_of_another_run_are_refused(run: Run, whole: bytes, work: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, 1)
        run("--out", "out.csv")
    kept = Path("out.csv.partial").read_bytes()
    ended = run("--out", "out.csv", "--draws", "3", "--precision", "bfloat16")
    assert ended.code == 2
    assert ended.err == (
        "error: out.csv.partial is of a run with draws 1 (now 3), precision 'float32' (now 'bfloat16'): remove it to "
        "start anew, or choose another --out\n"
    )
    write_model(Path("other"), num_outputs=2)
    ended = run("--out", "out.csv", "--model", "other")
    assert ended.code == 2
    assert "weights_sha256 '" in ended.err
    assert Path("out.csv.partial").read_bytes() == kept
    Path("out.csv.partial").write_bytes(kept.replace(b"[", b"(", 1))
    assert run("--out", "out.csv").err == "error: out.csv.partial is damaged: remove it, then run this again\n"


def test_a_finished_table_is_not_replaced_unasked(run: Run, scored: list[int]) -> None:
    Path("out.csv").write_text("precious")
    ended = run("--out", "out.csv", paths=("photos/a.jpg",))
    assert (ended.code, ended.err) == (2, "error: out.csv is there already: --overwrite replaces it\n")
    assert (Path("out.csv").read_text(), scored) == ("precious", [])
    assert run("--out", "out.csv", "--overwrite", paths=("photos/a.jpg",)).code == 0
    assert len(read_csv(Path("out.csv").read_bytes())) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["out.csv", "photos"]


def test_one_process_at_a_time(run: Run) -> None:
    with open("out.csv.partial", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = run("--out", "out.csv")
    assert (ended.code, ended.err) == (
        2,
        "error: another process is at work on out.csv.partial: wait for it, or choose another --out\n",
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--out", "out.txt"), "--out out.txt: expected a name that ends in .parquet, .csv, .jsonl"),
        (("--out", "no/out.csv"), "--out no/out.csv: there is no folder no"),
        (("--model", "none"), "none/config.json: No such file or directory; name a model's folder, or user"),
        (("--device", "abacus"), "device 'abacus' cannot be used here"),
        (("--precision", "int4"), "precision='int4': expected one of float32, bfloat16, float16"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, tuple) else "",
)
def test_mistakes_are_told_in_a_line_and_leave_nothing(arguments: tuple[str, ...], says: str, run: Run) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {says}")
    assert ended.err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["photos"]


def test_what_may_go_better_the_next_time_is_not_kept(work: Path) -> None:
    image_files, _ = find_image_files(["photos/a.jpg", "photos/c.jpg", "photos/d.jpg"])
    about = {"draws": 1}
    with open_journal(Path("out.csv")) as journal:
        assert journal.resume(image_files, about) == {}
        states = [(one.path, read_state(one)) for one in image_files]
        rows = [Row(*states[0], "timeout"), Row(*states[1], "format"), Row(*states[2], "", 0.5, 0.0, [0.1])]
        journal.append(rows, image_files)
    with open_journal(Path("out.csv")) as journal:
        assert journal.resume(image_files, about) == {row.path: row for row in rows[1:]}


def test_a_group_is_read_while_the_one_before_is_scored() -> None:
    """And not the one after that: memory is that of two groups."""
    begun: list[str] = []
    image_files, _ = find_image_files([str(path) for path in sorted((ROOT / "charm").rglob("*.py"))[:8]])

    def read(image_file: Any) -> Any:
        begun.append(image_file.path)
        return image_file.path, []

    with ThreadPoolExecutor(2) as pool:
        groups = [image_files[start : start + 2] for start in range(0, 8, 2)]
        for number, (group, opened) in enumerate(read_ahead(pool, read, groups), start=1):
            assert [path for path, _ in opened] == [one.path for one in group]
            time.sleep(0.05)
            assert len(begun) == min(8, 2 * number + 2)


def test_a_folder_is_no_table(run: Run) -> None:
    Path("out.csv").mkdir()
    ended = run("--out", "out.csv", "--overwrite")
    assert (ended.code, ended.err) == (2, "error: --out out.csv is a folder: expected the name of a file\n")


def test_it_scores_where_the_modules_are_missing_that_windows_lacks(
    work: Path, whole: bytes, model_folder: Path, tmp_path: Path
) -> None:
    """In processes of their own, children included; what is unprotected without these modules is said once each."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['fcntl'] = sys.modules['resource'] = None\n")
    command = [sys.executable, "-m", "charm", "score", "photos", "--model", str(model_folder), "--out", "out.csv"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    found, expected = read_csv(Path("out.csv").read_bytes()), read_csv(whole)
    assert [(row["path"], row["reason"]) for row in found] == [(row["path"], row["reason"]) for row in expected]
    scores = [
        (float(row["score"]), float(one["score"])) for row, one in zip(found, expected, strict=True) if row["score"]
    ]
    assert len(scores) == 9
    assert all(score == pytest.approx(other, abs=1e-4) for score, other in scores)
    assert done.stderr.count("on this system two processes at work on one file are not kept apart") == 1
    assert done.stderr.count("on this system a file that is opened has no limit of memory and of computing time") == 1
