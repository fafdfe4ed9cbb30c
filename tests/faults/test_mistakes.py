"""G11: each mistake in settings, labels, paths or the order of stages ends with one line that says where and what."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.settings.params import Params
from pipeline.training.artifacts import Inputs
from stages import evaluate, importance, manifest, pos_embeds, run_stage, shards
from tests.faults.conftest import Gate
from tests.faults.processes import finish, run_inline, start_stage, write_workspace
from tests.no_cluster import use_no_cluster

IMAGES = 9
Change = Callable[[Path], int]  # makes a mistake in a folder; gives the number of the line, if it is one


@dataclass(frozen=True)
class Mistake:
    """says: parts of the line, in which LINE stands for a number; before: stages that run before it is made."""

    make: Change
    says: tuple[str, ...]
    stage: Callable[[Params], Any] = manifest.main
    before: tuple[str, ...] = ()


def change_line(file: Path, number: int, line: str) -> int:
    lines = file.read_text().splitlines()
    lines[number - 1] = line
    file.write_text("\n".join(lines) + "\n")
    return number


def setting(key: str, line: str) -> Change:
    """Another line of params.yaml in the place of that of `key`."""

    def make(folder: Path) -> int:
        lines = (folder / "params.yaml").read_text().splitlines()
        number = next(number for number, text in enumerate(lines, 1) if text.lstrip().startswith(f"{key}:"))
        indent = len(lines[number - 1]) - len(lines[number - 1].lstrip())
        return change_line(folder / "params.yaml", number, " " * indent + line)

    return make


def label(row: int, line: str) -> Change:
    """Another row of the labels, counted from 1."""
    return lambda folder: change_line(folder / "images/labels.csv", row + 1, line)


def content(name: str, data: bytes | None) -> Change:
    """Another content of a file; None removes it."""

    def make(folder: Path) -> int:
        (folder / name).unlink(missing_ok=True)
        return 0 if data is None else (folder / name).write_bytes(data)

    return make


def nothing(folder: Path) -> int:
    return 0


def one_split(folder: Path) -> int:
    labels = folder / "images/labels.csv"
    return labels.write_text(labels.read_text().replace("train", "val"))


def labels_of_no_kind(folder: Path) -> int:
    (folder / "labels.parquet").write_text("path,score\n")
    return setting("labels", "labels: labels.parquet")(folder)


MISTAKES = {
    "settings": {
        "unknown key": Mistake(setting("seed", "seeed: 1"), ("params.yaml:LINE: unknown key seeed", "mean 'seed'?")),
        "unknown key of a section": Mistake(
            setting("coarse_ratio", "coarse_ration: 2"),
            ("params.yaml:LINE: unknown key tokens.coarse_ration", "did you mean 'coarse_ratio'?"),
        ),
        "missing key": Mistake(setting("fit", ""), ("params.yaml:", "missing key tokens.fit")),
        "text for a number": Mistake(
            setting("epochs", "epochs: many"), ("params.yaml:LINE: train.epochs: expected int, got 'many'",)
        ),
        "out of range": Mistake(setting("flip", "flip: 2"), ("params.yaml:LINE: train.flip: expected", "from 0 to 1")),
        "unknown choice": Mistake(
            setting("selection", "selection: gradiant"),
            ("params.yaml:LINE: selection: 'gradiant' is not known", "did you mean 'gradient'?"),
        ),
        "range upside down": Mistake(
            setting("score_range", "score_range: [1.0, 0.0]"), ("params.yaml:LINE: manifest.score_range",)
        ),
        "backbone that is a path": Mistake(
            setting("backbone", "backbone: ../x"),
            ("params.yaml:LINE: backbone: expected a name of a timm model, got '../x'",),
        ),
        "size of memory": Mistake(
            setting("memory", "memory: lots"), ("params.yaml:LINE: dask.memory: expected auto, or a size", "got 'lots'")
        ),
        "bracket left open": Mistake(setting("seed", "seed: [1"), ("params.yaml:", "not valid YAML")),
        "tab": Mistake(setting("seed", "\tseed: 1"), ("params.yaml:LINE: not valid YAML",)),
        "tag": Mistake(setting("seed", "seed: !!python/object/apply:os.getcwd []"), ("params.yaml:LINE: seed:",)),
        "two documents": Mistake(
            content("params.yaml", b"seed: 1\n---\nseed: 2\n"), ("params.yaml:", "not valid YAML")
        ),
        "no text": Mistake(content("params.yaml", b"seed: \xff\xfe"), ("params.yaml: not valid YAML",)),
        "empty": Mistake(content("params.yaml", b""), ("params.yaml: expected keys and values",)),
        "no file": Mistake(content("params.yaml", None), ("params.yaml: No such file",)),
        "no labels named": Mistake(setting("labels", "labels:"), ("params.yaml:LINE: labels: expected str",)),
        "column that is not there": Mistake(
            setting("score_columns", "score_columns: [scores]"),
            ("labels.csv:", "there is no column 'scores'", "did you mean 'score'?"),
        ),
        "unknown backbone": Mistake(
            setting("backbone", "backbone: vit_smal_patch14_dinov2"),
            ("backbone", "'vit_smal_patch14_dinov2' is not", "vit_small_patch14_dinov2"),
            pos_embeds.main,
            ("manifest",),
        ),
        "unknown protocol": Mistake(
            setting("remote", "remote: s4://bucket"), ("s4://bucket/shards cannot be opened",), Inputs, ("manifest",)
        ),
    },
    "labels": {
        "score that is no number": Mistake(label(3, "2.jpg,good,train"), ("labels.csv:LINE: score is 'good'",)),
        "score that is nan": Mistake(
            label(3, "2.jpg,nan,train"), ("labels.csv:LINE: score is 'nan', expected a decimal number",)
        ),
        "score beyond the range": Mistake(
            label(3, "2.jpg,7,train"), ("labels.csv:LINE: the score 7 of 2.jpg", "score_range, [0, 1]")
        ),
        "listed in two splits": Mistake(
            label(4, "./1.jpg,0.5,train"),
            ("labels.csv:LINE: ./1.jpg is in the split 'train', but was in", "labels.csv:3"),
        ),
        "empty path": Mistake(label(4, ",0.5,train"), ("labels.csv:LINE: the path is empty",)),
        "unknown split": Mistake(
            label(4, "3.jpg,0.5,trian"), ("labels.csv:LINE: split 'trian' is not known", "did you mean 'train'?")
        ),
        "no text": Mistake(content("images/labels.csv", b"path,score,split\n\xff,1,val\n"), ("labels.csv:",)),
        "no Parquet": Mistake(labels_of_no_kind, ("labels.parquet: not a Parquet file",)),
        "not there": Mistake(content("images/labels.csv", None), ("labels: there is no file images/labels.csv",)),
        "folder": Mistake(
            setting("labels", "labels: images"), ("labels: images is a folder; dataset: csv needs a .csv",)
        ),
        "split without images": Mistake(one_split, ("no image is in the split 'train'",)),
    },
    "paths and order": {
        "images elsewhere": Mistake(
            setting("root", "root: nowhere"),
            (f"{IMAGES} of {IMAGES} listed images cannot be used", "manifest.max_reject_frac", "rejected.csv"),
        ),
        "store in a file": Mistake(content(".charm", b""), (".charm",)),
        "output in a file": Mistake(content("data", b""), ("data",)),
        "shards before the manifest": Mistake(nothing, ("data/manifest", "dataset.json", "dvc repro"), shards.main),
        "maps before the shards": Mistake(nothing, ("data/shards", "dvc repro"), importance.main),
        "positions before the manifest": Mistake(nothing, ("data/manifest", "dvc repro"), pos_embeds.main),
        "training before the manifest": Mistake(nothing, ("data/manifest", "dvc repro"), Inputs),
        "training before the shards": Mistake(nothing, ("data/shards", "dvc repro"), Inputs, ("manifest",)),
        "evaluation before the manifest": Mistake(nothing, ("data/manifest", "dvc repro"), evaluate.main),
        "an image that changed": Mistake(
            content("images/4.jpg", b"x"), ("shard-000000: 4.jpg has changed", "manifest"), shards.main, ("manifest",)
        ),
    },
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Path]]:
    """Called for a new one, which becomes the current folder, for stages in this process."""
    use_no_cluster(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for variable in ("CHARM_STORE", "DVC_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    before = signal.getsignal(signal.SIGTERM)

    def write() -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_workspace(folder, IMAGES)
        monkeypatch.chdir(folder)
        return folder

    yield write
    signal.signal(signal.SIGTERM, before)


def is_honest(said: str, says: list[str]) -> bool:
    """One line, or one and another for each shard that failed."""
    lines = said.splitlines()
    alone = len(lines) == 1 or ("shards failed" in lines[0] and all(line.startswith("  shard-") for line in lines[1:]))
    return said.startswith("error: ") and alone and "Traceback" not in said and all(part in said for part in says)


@pytest.mark.parametrize("group", MISTAKES)
def test_mistakes(group: str, workspace: Callable[[], Path], capsys: pytest.CaptureFixture[str], gate: Gate) -> None:
    wrong = {}
    for name, mistake in MISTAKES[group].items():
        folder = workspace()
        run_inline(folder, *mistake.before)
        number = mistake.make(folder)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_stage(mistake.stage)
        said = capsys.readouterr().err
        if ended.value.code != 2 or not is_honest(said, [part.replace("LINE", str(number)) for part in mistake.says]):
            wrong[name] = said
    assert wrong == {}
    gate("G11", f"mistakes: {group}", cases=len(MISTAKES[group]), failures=len(wrong))


@pytest.mark.parametrize(
    ("stage", "mistake"),
    [
        ("manifest", MISTAKES["settings"]["unknown key"]),
        ("shards", MISTAKES["paths and order"]["shards before the manifest"]),
    ],
)
def test_mistakes_of_processes(stage: str, mistake: Mistake, tmp_path: Path, gate: Gate) -> None:
    """The same on a real standard error."""
    write_workspace(tmp_path / "work", IMAGES)
    number = mistake.make(tmp_path / "work")
    ended = finish(start_stage(tmp_path / "work", stage))
    assert (ended.code, ended.out) == (2, "")
    honest = is_honest(ended.err, [part.replace("LINE", str(number)) for part in mistake.says])
    assert honest, ended.err
    gate("G11", f"mistakes: a process, {stage}", cases=1, failures=int(not honest))
