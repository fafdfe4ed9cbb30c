"""What may import what, and one word per stage in its places."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.params import Params
from tests.imports import PACKAGES, ROOT, all_imports, file_of, import_closure, imported_modules

STAGES = ("manifest", "shards", "importance", "pos_embeds", "train", "evaluate", "report")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PIPELINE: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")
# Each layer may import itself and those before it.
LAYERS = {"charm": {"charm"}, "pipeline": {"charm", "pipeline"}, "stages": {"charm", "pipeline", "stages"}}
# The one file that may import a heavy library.
HOMES = {
    "dask": "pipeline/executor.py",
    "distributed": "pipeline/executor.py",
    "segment_anything_hq": "pipeline/saliency/sam_hq.py",
    "transformers": "pipeline/saliency/sam_hq.py",
    "webdataset": "pipeline/shards.py",
    "skimage": "pipeline/datasets/demo_images.py",
    "sklearn": "pipeline/datasets/demo_images.py",
    "openpyxl": "pipeline/datasets/spaq.py",
}
# What the method has no business with: files, archives, settings, pipelines.
NOT_IN_CHARM = {
    "argparse",
    "configparser",
    "dask",
    "distributed",
    "dvc",
    "glob",
    "io",
    "json",
    "os",
    "pathlib",
    "pickle",
    "pyarrow",
    "ruamel",
    "safetensors",
    "shutil",
    "sqlite3",
    "subprocess",
    "tarfile",
    "tempfile",
    "tomllib",
    "webdataset",
    "yaml",
    "zipfile",
}


def tops(file: Path) -> set[str]:
    return {name.split(".")[0] for name in all_imports(file)}


# charm/files.py alone writes and reads files, for the people who ask it to.
METHOD = [file for file in FILES if file.parts[0] == "charm" and file.name != "files.py"]


def names(paths: list[Path]) -> list[str]:
    return [path.as_posix() for path in paths]


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_imports_run_one_way(file: Path) -> None:
    assert {module.split(".")[0] for module in imported_modules(file)} <= LAYERS[file.parts[0]]


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_heavy_libraries_have_one_home(file: Path) -> None:
    strays = {library for library in tops(file) & HOMES.keys() if HOMES[library] != file.as_posix()}
    assert strays == set()


def test_homes_are_not_empty() -> None:
    """A home that lost its library would let the test above pass for nothing."""
    found = {library for library, home in HOMES.items() if (ROOT / home).is_file() and library in tops(Path(home))}
    assert found >= {"dask", "webdataset", "skimage", "sklearn", "openpyxl"}


@pytest.mark.parametrize("file", METHOD, ids=lambda file: file.name)
def test_the_method_knows_no_files(file: Path) -> None:
    assert tops(file) & NOT_IN_CHARM == set()
    called = (ROOT / file).read_text()
    assert "open(" not in called
    assert "imread(" not in called


def test_training_and_evaluation_load_no_heavy_library() -> None:
    """In a fresh process: what another library imports counts, too."""
    code = f"import sys, stages.train, stages.evaluate; print(*sorted({set(HOMES)} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_charm_alone_needs_no_pipeline() -> None:
    code = (
        "import sys, charm; [getattr(charm, name) for name in charm.__all__]; "
        "print(*sorted({'pipeline', 'stages', 'dvc', 'dask', 'pyarrow', 'ruamel', 'webdataset'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_stages_are_those_of_dvc() -> None:
    assert tuple(PIPELINE["stages"]) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_deps_that_are_code_are_exactly_what_the_stage_imports(stage: str) -> None:
    listed = [dep for dep in PIPELINE["stages"][stage]["deps"] if dep.endswith(".py")]
    assert len(listed) == len(set(listed))
    assert set(listed) == import_closure(f"stages.{stage}")


@pytest.mark.parametrize("stage", STAGES)
def test_one_word_in_all_its_places(stage: str) -> None:
    description = PIPELINE["stages"][stage]
    assert description["cmd"].split()[:3] == ["python", "-m", f"stages.{stage}"]
    assert file_of(f"stages.{stage}") == Path("stages", f"{stage}.py")
    assert stage in {field.name for field in fields(Params)}
    assert stage in YAML(typ="safe").load(ROOT / "params.yaml")
    folder = "runs" if stage in ("train", "evaluate", "report") else "data"
    assert all(Path(out).parts[:2] == (folder, stage) for out in description["outs"])
    assert len(description["outs"]) == 1
    assert (ROOT / "tests" / "stages" / f"test_{stage}.py").is_file()


def test_stage_scripts_are_stages_and_nothing_else() -> None:
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == {*STAGES, "__init__"}


@pytest.mark.parametrize("stage", STAGES)
def test_every_folder_that_a_stage_reads_is_some_stages_out(stage: str) -> None:
    made = {str(out).split("$")[0] for other in PIPELINE["stages"].values() for out in other["outs"]}
    read = [str(dep) for dep in PIPELINE["stages"][stage]["deps"] if str(dep).startswith(("data/", "runs/"))]
    assert all(any(dep.startswith(out) for out in made) for dep in read)


def test_no_drawer_for_odds_and_ends() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    assert [file for file in FILES if vague & {file.stem, *file.parts[:-1]}] == []
