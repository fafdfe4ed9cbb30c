"""What is imported is required, and what is required is imported, by the extra or group that names it."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import charm
from charm.runtime.errors import EXTRAS
from tests.imports import PACKAGES, ROOT, all_imports

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAMES = {
    package: {re.sub(r"[-_.]+", "-", name.lower()) for name in found}
    for package, found in packages_distributions().items()
}
# Needed without being imported: torch.onnx.export calls onnxscript, starlette reads forms with python-multipart,
# transformers' processor of images needs torchvision, fsspec imports s3fs and gcsfs, dask.distributed is distributed,
# dvc.yaml runs under dvc.
UNSEEN = {"distributed", "onnx", "onnxscript", "python-multipart", "torchvision", "dvc", "fsspec", "s3fs", "gcsfs"}


def required(entries: list[str]) -> set[str]:
    """The names of requirements, the project's own extras left out."""
    names = {re.split(r"[<>=!~\[; ]", entry, maxsplit=1)[0].lower() for entry in entries}
    return names - {"charm-vit"}


CORE = required(PROJECT["project"]["dependencies"])
EXTRA = {name: required(entries) for name, entries in PROJECT["project"]["optional-dependencies"].items()}
GROUP = {name: required(entries) for name, entries in PROJECT["dependency-groups"].items()}


def third_party(*folders: str) -> dict[str, set[str]]:
    """Package -> the files that import it."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for name in all_imports(file.relative_to(ROOT)):
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in (*PACKAGES, "tests"):
                    found.setdefault(top, set()).add(str(file.relative_to(ROOT)))
    return found


def undeclared(imports: dict[str, set[str]], declared: set[str]) -> dict[str, set[str]]:
    return {package: files for package, files in imports.items() if not NAMES.get(package, {package}) & declared}


def test_every_import_is_declared() -> None:
    library = CORE | set().union(*EXTRA.values())
    assert undeclared(third_party("charm"), library) == {}
    assert undeclared(third_party("pipeline", "stages"), library | GROUP["pipeline"]) == {}
    assert (
        undeclared(third_party("tests"), library | GROUP["pipeline"] | GROUP["dev"] | {"tokenizers", "pyiqa"}) == {}
    )  # transformers'; by hand


def test_nothing_is_declared_in_vain() -> None:
    imported = {name for package in third_party("charm", "pipeline") for name in NAMES.get(package, {package})}
    assert CORE | set().union(*EXTRA.values()) <= imported | UNSEEN
    workshop = {name for package in third_party("pipeline", "stages") for name in NAMES.get(package, {package})}
    assert GROUP["pipeline"] <= workshop | UNSEEN


def test_a_missing_package_is_told_with_its_extra() -> None:
    for package in third_party("charm"):
        names = NAMES[package]
        assert names & (CORE | EXTRA.get(EXTRAS.get(package, ""), set())), f"{package} is in no extra that EXTRAS names"


def test_what_is_imported_first_is_core() -> None:
    """Modules that the tokenizer, `charm tokenize` and `charm show` load import nothing of an extra at their top."""
    loaded = ["__init__.py", "__main__.py", "drawing.py", "hub.py", "app/command.py", "app/reading.py", "app/show.py"]
    rooms = [
        f"{room}/{file.name}"
        for room in ("images", "inputs", "tokenization")
        for file in Path("charm", room).glob("*.py")
    ]
    for name in loaded + rooms:
        body = ast.parse((ROOT / "charm" / name).read_text()).body
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        tops = {
            alias.name.split(".")[0]
            for node in imports
            for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
        }
        third = {top for top in tops if top not in sys.stdlib_module_names and top != "charm"}
        assert {top for top in third if not NAMES[top] & CORE} == set(), name


def test_the_version_stands_once() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "charm/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", charm.__version__)
    assert "<" not in PROJECT["project"]["requires-python"]
