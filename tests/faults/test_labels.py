"""Mistakes in labels, settings and paths: exit code 2 and one line that says where, whatever the mistake."""

import gzip
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from charm.runtime.errors import UserError
from pipeline.datasets import csv
from pipeline.manifest.labels import Source, check_listing
from pipeline.settings.params import load_params
from stages import manifest, run_stage
from tests.faults.bombs import encode
from tests.faults.conftest import Gate
from tests.no_cluster import use_no_cluster

ROOT = Path(__file__).parents[2]
HEADER = "path,score,part\n"
GOOD = HEADER + "".join(f"{index}.jpg,0.{index},{('train', 'val', 'test')[index % 3]}\n" for index in range(6))
SETTINGS = {"dataset": "csv", "labels": "labels.csv", "split_column": "part"}
# What the labels say -> what the message has to say.
LABELS = {
    b"": "labels.csv:1: no header",
    HEADER.encode(): "labels.csv: only a header",
    GOOD.replace(",", ";")
    .replace("0.3", "0,3")
    .encode(): "labels.csv:5: '0,3' has a decimal comma, labels.csv:2: '0.0' a",
    gzip.compress(GOOD.encode()): "labels.csv: not a table in text, but compressed by gzip: unpack it",
    GOOD.replace("score", "scroe").encode(): "labels.csv:1: there is no column 'score'; did you mean 'scroe'?",
    GOOD.replace("part\n", "score\n", 1).encode(): "labels.csv:1: there are 2 columns 'score'",
    GOOD.encode("utf-16-le"): "labels.csv:1: byte 0x00 is no text",
    GOOD.replace("3.jpg", "\xe9.jpg").encode("latin-1"): "labels.csv:5: byte 0xe9 is no text",
    GOOD.replace("3.jpg", "3\0.jpg").encode(): "labels.csv:5: byte 0x00 is no text",
    GOOD.replace("3.jpg,0.3", "3.jpg,0,3").encode(): "labels.csv:5: 4 fields; expected 3",
    GOOD.replace("3.jpg,0.3,", "3.jpg,0.3").encode(): "labels.csv:5: 2 fields; expected 3",
    GOOD.replace("3.jpg", '"3.jpg').encode(): "labels.csv:7: not a CSV file",
    GOOD.replace("3.jpg", "3" * 200_000).encode(): "labels.csv:5: not a CSV file",
    GOOD.replace("0.3", "good").encode(): "labels.csv:5: score is 'good', expected a decimal number",
    GOOD.replace("0.3", "nan").encode(): "labels.csv:5: score is 'nan', expected a decimal number",
    GOOD.replace("0.3", "1e999").encode(): "labels.csv:5: score is '1e999', expected a decimal number",
    GOOD.replace("0.3", "7.5").encode(): "labels.csv:5: the score 7.5 of 3.jpg is outside of score_range",
    GOOD.replace("3.jpg", "").encode(): "labels.csv:5: the path is empty",
    GOOD.replace(
        "3.jpg", "./x/../1.jpg"
    ).encode(): "labels.csv:5: ./x/../1.jpg is in the split 'train', but was in 'val' at",
    GOOD.replace("0.3,train", "0.3,trian").encode(): "labels.csv:5: split 'trian' is not known; did you mean 'train'?",
    GOOD.replace("0.3,train", "0.3,").encode(): "labels.csv:5: 3.jpg is in no split: write train, val or test",
    GOOD.replace("train", "val").encode(): "no image is in the split 'train'",
    (GOOD + "gone.jpg,0.5,train\n").encode(): "1 of 7 listed images cannot be used ({'missing': 1})",
    GOOD.replace("3.jpg", "3.JPEG").encode(): "there is 3.jpg, which differs in its ending",
    (
        GOOD + "copy.jpg,0.5,train\n"
    ).encode(): "0.jpg labelled [0.0] (labels.csv:2) and copy.jpg labelled [0.5] (labels.csv:8)",
    (GOOD + "copy.jpg,0.0,test\n").encode(): "0.jpg in train (labels.csv:2) and copy.jpg in test (labels.csv:8)",
}
# A key of params.yaml and its value -> what the message has to say.
PARAMS = {
    ("labels", "lables.csv"): "labels: there is no file lables.csv",
    ("labels", "."): "labels: . is a folder; dataset: csv needs a .csv",
    ("labels", ""): "labels: expected str",
    ("labels", "[a]"): "labels: expected str",
    ("root", "nowhere"): "0.jpg: there is no folder",
    ("path_column", "paths"): "labels.csv:1: there is no column 'paths'; did you mean 'path'?",
    ("score_columns", "[]"): "manifest.score_columns: expected a list of at least one entry",
    ("score_columns", "[score, path]"): "labels.csv:2: path is '0.jpg', expected a decimal number",
    ("score_range", "[1.0, 0.0]"): "manifest.score_range: expected [lowest, highest]",
    ("score_range", "[0.0, .inf]"): "manifest.score_range: expected a finite number",
    ("accuracy_threshold", "9.0"): "manifest.accuracy_threshold: expected a score within score_range",
    ("test_share", "1.5"): "manifest.test_share: expected a number from 0 to 1, got 1.5",
    ("max_pixels", "1000000000"): "manifest.max_pixels: expected a number from 1 to 100000000",
    ("max_edge", "1"): "manifest.max_edge: expected a number from 32",
    ("leaks", "refsue"): "manifest.leaks: 'refsue' is not known; did you mean 'refuse'?",
    ("max_reject_frac", "'0.05'"): "manifest.max_reject_frac: expected float, got '0.05' (str)",
    ("dataset", "cvs"): "dataset: 'cvs' is not known; did you mean 'csv'?",
    ("seed", "-1"): "seed: expected a number from 0",
    ("seed", "[" * 300 + "]" * 300): "nested too deeply",
    ("seed", "!!python/object/apply:os.system ['touch made-by-yaml']"): "seed: expected int",
    ("seed", "0\nsede: 1"): "unknown key sede; did you mean 'seed'?",
}


def write_params(**settings: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    for key, value in (SETTINGS | settings).items():
        line = re.search(rf"^ *{key}:.*$", text, flags=re.M)
        assert line, key
        text = text.replace(line[0], f"{line[0].partition(':')[0]}: {value}", 1)
    Path("params.yaml").write_text(text)


@pytest.fixture
def workplace(store: Path) -> Iterator[Path]:
    """A working folder with good labels, images and params.yaml."""
    Path("labels.csv").write_text(GOOD)
    for index in range(6):
        Path(f"{index}.jpg").write_bytes(encode("JPEG", 20 + index))
    Path("copy.jpg").write_bytes(encode("JPEG", 20))
    write_params()
    handler = signal.getsignal(signal.SIGTERM)
    yield Path.cwd()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def complaint(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Runs the stage; gives what is wrong with how it ended, "" where it ended as it should."""
    use_no_cluster(monkeypatch)

    def run(expected: str) -> str:
        with pytest.raises(SystemExit) as ended:
            run_stage(manifest.main)
        code = ended.value.code
        said = capsys.readouterr().err
        is_right = code == 2 and said.startswith("error: ") and said.count("\n") == 1 and expected in said
        return "" if is_right else f"expected {expected!r}, got {code}: {said!r}"

    return run


def test_mistakes_in_labels(complaint: Callable[[str], str], gate: Gate) -> None:
    wrong = []
    for content, expected in LABELS.items():
        Path("labels.csv").write_bytes(content)
        wrong.append(complaint(expected))
    print(*wrong, sep="\n")
    gate("G11", "mistakes in labels: one line with file and line", cases=len(wrong), failures=sum(map(bool, wrong)))


def test_mistakes_in_settings(complaint: Callable[[str], str], gate: Gate) -> None:
    wrong = []
    for (key, value), expected in PARAMS.items():
        write_params(**{key: value})
        wrong.append(complaint(expected))
    print(*wrong, sep="\n")
    gate("G11", "mistakes in settings: one line with the key", cases=len(wrong), failures=sum(map(bool, wrong)))
    assert not Path("made-by-yaml").exists()


def test_the_good_labels_are_good(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the tests above would show nothing."""
    use_no_cluster(monkeypatch)
    with pytest.raises(SystemExit) as ended:
        run_stage(manifest.main)
    assert ended.value.code == 0
    assert Path("data/manifest/manifest.parquet").is_file()


def test_a_mistake_on_the_command_line(workplace: Path) -> None:
    """The same in a process of its own."""
    Path("labels.csv").write_text(GOOD + "x.jpg,high,train\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.manifest"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: labels.csv:8: score is 'high', expected a decimal number\n"


def test_damaged_labels_are_read_or_refused(workplace: Path, gate: Gate) -> None:
    """500 seeded changes of a byte, and every length: labels, or one line that names the file."""
    draws = np.random.default_rng(0)
    whole = GOOD.encode()
    damaged = [whole[:length] for length in range(len(whole))]
    for _ in range(500):
        changed = bytearray(whole)
        changed[draws.integers(len(whole))] = draws.integers(256)
        damaged.append(bytes(changed))
    settings = load_params().manifest
    refused = failures = 0
    for content in damaged:
        Path("labels.csv").write_bytes(content)
        try:
            check_listing(csv.read(Source(Path("labels.csv"), settings, 0, Path())))
        except UserError as error:
            refused += 1
            failures += "labels.csv" not in str(error) or "\n" in str(error)
    gate("G11", "damaged labels: read, or refused in one line", cases=len(damaged), failures=failures, refused=refused)
