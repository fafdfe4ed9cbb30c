"""Which first-party files a module imports, directly or not; read from the source, nothing is run."""

import ast
from functools import cache
from pathlib import Path

from pipeline.work.code import PACKAGES, ROOT, find_source
from pipeline.work.code import import_closure as closure_of_modules

__all__ = ["PACKAGES", "ROOT", "all_imports", "has_code", "import_closure"]


@cache
def all_imports(file: Path) -> set[str]:
    """Every module that a file imports anywhere, by its full name, third-party ones included."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def has_code(file: Path) -> bool:
    """Whether a file holds more than a docstring."""
    body = ast.parse(file.read_text()).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def import_closure(module: str) -> set[str]:
    """Files with code that importing `module` may run, relative to the repository."""
    files = [file for name in closure_of_modules(module) if (file := find_source(name)) is not None]
    return {file.relative_to(ROOT).as_posix() for file in files if has_code(file)}
