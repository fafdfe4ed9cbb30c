"""`charm`: pages of help, exit codes, and what `show` and `tokenize` leave behind."""

import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from typer.testing import CliRunner

from charm.app.command import app
from charm.images import find
from charm.images.find import read_image
from charm.images.reasons import REASONS
from charm.scorer import CharmScorer
from tests.conftest import draw_image

OPTIONS = {
    "score": ["--model", "--draws", "--out", "--overwrite", "--device", "--precision", "--percentile", "--top"],
    "evaluate": ["--labels", "--root", "--columns", "--scale", "--sizes", "--out", "--overwrite", "--device"],
    "show": ["--model", "--selection", "--out"],
    "tokenize": ["--model", "--out"],
    "teach": ["--out", "--model", "--backbone", "--ratings", "--columns", "--port"],
    "export": ["--model", "--out"],
    "serve": [
        *("--model", "--host", "--port", "--draws", "--device", "--precision", "--allow-host", "--root-path"),
        *("--token-file", "--trust-proxy", "--access-log"),
    ],
    "import": ["--dataset", "--padded", "--out"],
    "publish": ["--private"],
}


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("beach.jpg").write_bytes(simplejpeg.encode_jpeg(draw_image(190, 182)))
    return "beach.jpg"


@pytest.mark.parametrize("name", OPTIONS)
def test_a_page_of_help_has_every_option_and_an_example(name: str) -> None:
    ended = CliRunner().invoke(app, [name, "--help"])
    assert ended.exit_code == 0
    assert all(option in ended.stdout for option in OPTIONS[name])
    assert f"      charm {name}" in ended.stdout
    assert "\b" not in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 120


def test_the_first_page_names_all_commands() -> None:
    ended = CliRunner().invoke(app, ["--help"])
    listed = ended.stdout.partition("Commands:")[2].splitlines()
    assert [line.split()[0] for line in listed if line] == list(OPTIONS)
    assert not any(line.endswith("...") for line in listed)


def test_show(photo: str, model_folder: Path) -> None:
    arguments = ["show", photo, "--model", str(model_folder)]
    ended = CliRunner().invoke(app, [*arguments, "--selection", "entropy"])
    assert ended.exit_code == 0
    assert "selection entropy" in ended.stdout
    assert sorted(path.name for path in Path("beach-charm").iterdir()) == ["importance.png", "native.png", "seen.png"]
    scorer = CharmScorer.from_pretrained(str(model_folder))
    expected = scorer.tokenize(read_image(photo))[0].to_image()
    Path("beach-charm/mine.png").touch()
    assert CliRunner().invoke(app, [*arguments, "--selection", "random"]).exit_code == 0
    assert sorted(path.name for path in Path("beach-charm").iterdir()) == ["mine.png", "native.png", "seen.png"]
    assert CliRunner().invoke(app, [*arguments, "--out", "new/folder"]).exit_code == 0
    np.testing.assert_array_equal(cv2.imread("new/folder/seen.png")[..., ::-1], expected)  # OpenCV's order of channels
    assert sorted(path.name for path in Path("new/folder").iterdir()) == ["native.png", "seen.png"]


def test_tokenize(photo: str, model_folder: Path) -> None:
    ended = CliRunner().invoke(app, ["tokenize", photo, "--model", str(model_folder), "--out", "tokens.npz"])
    assert ended.exit_code == 0
    assert ended.stdout.startswith("photo      190 x 182 pixels\n")
    assert np.load("tokens.npz")["patches"].shape == (48, 14, 14, 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "gone.jpg"], "error: gone.jpg: there is no such file or folder\n"),
        (["tokenize", "text.jpg"], f"error: text.jpg: {REASONS['format']}\n"),
        (["show", "beach.jpg", "--selection", "magic"], "error: --selection magic: expected one of random, "),
        (["tokenize", "beach.jpg", "--out", "no/t.npz"], "error: [Errno 2] No such file or directory: "),
    ],
    ids=["no file", "no image", "selection", "no folder"],
)
def test_a_mistake_is_one_line(arguments: list[str], says: str, photo: str, model_folder: Path) -> None:
    Path("text.jpg").write_text("no")
    ended = CliRunner().invoke(app, [*arguments, "--model", str(model_folder)])
    assert ended.exit_code == 2
    assert ended.stderr.startswith(says)
    assert ended.stderr.count("\n") == 1


def test_stopped_is_a_word_and_exit_code_130(photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(find, "read_image", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    ended = CliRunner().invoke(app, ["tokenize", photo])
    assert (ended.exit_code, ended.stderr.splitlines()[-1]) == (130, "stopped")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_fault_of_ours_is_not_hidden(photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(find, "read_image", fail)
    assert isinstance(CliRunner().invoke(app, ["tokenize", photo]).exception, ZeroDivisionError)
