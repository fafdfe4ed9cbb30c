"""`charm evaluate`: numbers of a model on anybody's labels, paired between models, at other sizes; nothing is lost."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from playwright.sync_api import Browser
from typer.testing import CliRunner

from charm.app.command import app
from charm.model.config import Calibration
from charm.model.metrics import mae, srcc
from charm.scorer import CharmScorer
from charm.tokenization.geometry import downscale
from tests.axe import find_faults
from tests.conftest import draw_image, needs_chromium
from tests.untrained import build_scorer

COUNT = 12
LABELS = np.linspace(20, 90, COUNT).round(1)
BAD = {"c.jpg": "format", "gone.jpg": "missing", "../outside.jpg": "outside"}
HOSTILE = "<img src=x onerror=alert(1)>.jpg"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds photos/, labels.csv, and the models a and b, of which a has a calibration; read only."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "photos").mkdir()
    names = [HOSTILE, *(f"{number}.jpg" for number in range(1, COUNT))]
    for number, name in enumerate(names):
        data = simplejpeg.encode_jpeg(draw_image(90 + 9 * number, 170 - 7 * number, number))
        (folder / "photos" / name).write_bytes(data)
    (folder / "photos/c.jpg").write_text("a text")
    (folder / "outside.jpg").write_bytes((folder / "photos/1.jpg").read_bytes())
    with open(folder / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "mos"])
        rows.writerows(zip(names, LABELS, strict=True))
        rows.writerow([names[3], LABELS[3] + 2])  # rated twice
        rows.writerows([[name, 50] for name in BAD] + [["unrated.jpg", ""]])
    scorer = build_scorer(selection="random", draws=2)
    scorer.config = replace(scorer.config, calibration=Calibration.of([0.0] * 9, [0.75] * 9))
    scorer.save_pretrained(folder / "a")
    build_scorer(tokenizer="standard").save_pretrained(folder / "b")
    (folder / "alias").symlink_to("a")
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for one in made.iterdir():
        (tmp_path / one.name).symlink_to(one)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*models: str, more: str = "") -> Any:
    always = ["--labels", "labels.csv", "--root", "photos", "--columns", "file", "mos", "--out", "out", *more.split()]
    return CliRunner().invoke(app, ["evaluate", *models, *always])


def read_rows() -> list[dict[str, str]]:
    with open("out/evaluate.csv") as file:
        return list(csv.DictReader(file))


def score_alone(folder: str, size: float = 1.0) -> np.ndarray:
    """On the scale of the model, 1 to 5."""
    scorer = CharmScorer.from_pretrained(folder, device="cpu")
    images = [draw_image(90 + 9 * number, 170 - 7 * number, number) for number in range(COUNT)]
    decoded = [simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(image)) for image in images]
    seen = [downscale(image, (round(image.shape[0] * size), round(image.shape[1] * size))) for image in decoded]
    return np.array([found.score for found in scorer(seen)])


def test_numbers_are_those_of_the_scores_on_the_labels_scale(work: Path) -> None:
    ended = run("a", "b", more="--scale 0 100 --sizes 0.5")
    assert ended.exit_code == 3
    rows = read_rows()
    assert len(rows) == (COUNT + len(BAD)) * 2 * 2
    targets = LABELS + np.eye(COUNT)[3]
    good = {
        (name, size): [row for row in rows if row["model"] == name and float(row["size"]) == size and not row["reason"]]
        for name in "ab"
        for size in (1.0, 0.5)
    }
    for (name, size), found in good.items():
        assert [float(row["label"]) for row in found] == pytest.approx(targets)
        scores = 25 * (score_alone(name, size) - 1)
        np.testing.assert_allclose([float(row["score"]) for row in found], scores, atol=2e-3)
        if size == 1:
            assert f"{name}: PLCC" in ended.stdout
            assert f"SRCC {srcc(scores, targets):.3f} (" in ended.stdout
            assert f"MAE {mae(scores, targets):.3f} (" in ended.stdout
    full, half = (np.array([float(row["score"]) for row in good["a", size]]) for size in (1.0, 0.5))
    assert (
        f"a, drift at size 1: 0.0%, SRCC {srcc(full, targets):.3f}; 0.5: {np.abs(half - full).mean() / 100:.1%}"
        in ended.stdout
    )
    for row, score in zip(good["a", 1.0], full, strict=True):  # 0.75 of 4 on 100
        assert (float(row["low"]), float(row["high"])) == pytest.approx(
            (max(0, score - 18.75), min(100, score + 18.75))
        )
    assert {row["low"] for row in good["b", 1.0]} == {""}
    held = np.mean(np.abs(full - targets) <= 18.75)
    page = Path("out/evaluate.html").read_text()
    assert f"<b>a</b> held {100 * held:.1f}&nbsp;%" in page
    assert "<b>b</b> held" not in page
    assert page.count("were mapped onto 0 to 100, end to end") == 2
    assert sorted(path.name for path in Path("out").iterdir()) == ["evaluate.csv", "evaluate.html"]  # no journal


def test_images_in_the_table_itself_score_as_their_files(work: Path) -> None:
    paths = [f"photos/{number}.jpg" for number in range(1, 4)]
    packed = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    pq.write_table(pa.table({"image": packed, "mos": [1.0, 3.0, 2.0]}), "packed.parquet")
    ended = CliRunner().invoke(
        app, ["evaluate", "b", "--labels", "packed.parquet", "--columns", "image", "mos", "--out", "out"]
    )
    assert ended.exit_code == 0, ended.output
    found = {row["path"]: float(row["score"]) for row in read_rows()}
    assert list(found) == [f"packed.parquet#image/{number}" for number in range(3)]
    np.testing.assert_allclose(list(found.values()), score_alone("b")[1:4], atol=2e-5)


@pytest.mark.parametrize(
    ("models", "more", "told"),
    [
        (("a", "gone"), "", "gone/config.json: No such file or directory"),
        (("a",), "--scale 5 1", "--scale 5 1: expected the lowest label, then the highest"),
    ],
)
def test_mistakes_are_told_before_any_image_is_scored(
    models: tuple[str, ...], more: str, told: str, work: Path
) -> None:
    ended = run(*models, more=more)
    assert ended.exit_code == 2
    assert told in ended.stderr
    assert not Path("out").exists()


def test_what_is_rejected_is_named_and_left_out_of_all_numbers(work: Path) -> None:
    ended = run("a")
    assert ended.exit_code == 3
    told = {row["path"]: row["reason"] for row in read_rows() if row["reason"]}
    assert told == {f"photos/{name}": reason for name, reason in BAD.items()}
    page = Path("out/evaluate.html").read_text()
    for name, reason in BAD.items():
        assert f"photos/{name}" in ended.stderr
        assert f"<code>{reason}</code>" in page
    assert "12 of 15 labelled images" in page
    assert "1 rows without a path or a label are left out" in ended.stdout
    assert HOSTILE not in page.replace("&lt;", "_")


def test_without_a_scale_only_correlations_are_told(work: Path) -> None:
    ended = run("a")
    assert "ACC and MAE are left out" in ended.stdout
    assert "20 to 90" in ended.stdout
    line = next(line for line in ended.stdout.splitlines() if line.startswith("a: "))
    assert "SRCC" in line
    assert "MAE" not in line
    assert "ACC" not in line
    assert "held" not in Path("out/evaluate.html").read_text()


def test_too_few_images_have_no_interval(work: Path) -> None:
    Path("two.csv").write_text("path,score\n1.jpg,20\n2.jpg,30\n")
    ended = CliRunner().invoke(
        app, ["evaluate", "a", "b", "--labels", "two.csv", *["--root", "photos", "--scale", "0", "100", "--out", "out"]]
    )
    assert ended.exit_code == 0, ended.output
    lines = [line for line in ended.stdout.splitlines() if "SRCC" in line]
    assert len(lines) == 3  # two models and their difference
    assert all(line.count(" (\N{EN DASH})") == 5 and " to " not in line for line in lines)
    page = Path("out/evaluate.html").read_text()
    assert page.count("<small>\N{EN DASH}</small>") == 15


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("a --scale 0 50", "labels.csv:7: the label 51.8 is beyond --scale 0 50"),
        ("a a", "a, a: two of these are one model: expected each once"),
        ("b a a/", "b, a, a/: two of these are one model"),
        ("a alias", "a, alias: two of these are one model"),  # a link to it
        ("a --sizes 2,0.5", "--sizes 2,0.5: expected fractions of the image's size"),
        ("a --sizes half", "--sizes half: expected fractions"),
        ("none", "none/config.json: No such file or directory"),
        ("a --columns file mean", "labels.csv:1: there is no column 'mean'"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, told: str, work: Path) -> None:
    models, _, more = arguments.partition(" --")
    ended = run(*models.split(), more=f"--{more}" if more else "")
    assert ended.exit_code == 2
    assert ended.stderr.splitlines()[-1].startswith(f"error: {told}")


def test_a_run_goes_on_where_it_was_stopped(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run("a", "b")
    expected = Path("out/evaluate.csv").read_bytes(), Path("out/evaluate.html").read_bytes()
    assert run("a", "b").exit_code == 2  # an evaluation is not replaced unasked
    shutil.rmtree("out")
    calls: list[str] = []
    score_tokens = CharmScorer.score_tokens

    def count(self: CharmScorer, tokens: Any) -> Any:
        calls.extend([self.config.tokenizer.name] if tokens else [])  # what was rejected is looked at again
        if tokens and len(calls) == 2:
            raise KeyboardInterrupt
        return score_tokens(self, tokens)

    monkeypatch.setattr(CharmScorer, "score_tokens", count)
    assert run("a", "b").exit_code == 130
    assert run("a", "b").stdout == whole.stdout
    assert calls == ["charm", "standard", "standard"]
    assert (Path("out/evaluate.csv").read_bytes(), Path("out/evaluate.html").read_bytes()) == expected


def test_models_of_other_thresholds_have_no_common_acc(work: Path) -> None:
    scorer = build_scorer()
    labels = replace(scorer.config.labels, accuracy_threshold=2.0)
    scorer.config = replace(scorer.config, labels=labels)
    scorer.save_pretrained("other")
    said = run("a", "other", more="--scale 0 100").stdout
    assert "ACC is left out: the models were made with different thresholds" in said
    assert "MAE" in said


@needs_chromium
def test_the_page_fits_and_has_no_fault(work: Path, browser: Browser) -> None:
    assert run("a", "b", more="--scale 0 100 --sizes 0.5").exit_code == 3
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(Path("out/evaluate.html").absolute().as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert find_faults(page) == []
