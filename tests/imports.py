"""Which first-party files a module imports, directly or not; read from the source, nothing is run."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("charm", "pipeline", "stages")


def file_of(module: str) -> Path | None:
    """The file of a first-party module, relative to the repository."""
    path = ROOT / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate.relative_to(ROOT)
    return None


def imported_modules(file: Path) -> set[str]:
    """First-party modules that a file imports anywhere, functions included, `if TYPE_CHECKING` not."""
    tree = ast.parse((ROOT / file).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in PACKAGES and file_of(name)}


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
    body = ast.parse((ROOT / file).read_text()).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def import_closure(module: str) -> set[str]:
    """Files with code that importing `module` may run, itself and the packages above it included."""
    seen: set[Path] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            file = file_of(".".join(parts[:end]))
            if file is not None and file not in seen:
                seen.add(file)
                todo += imported_modules(file)
    return {file.as_posix() for file in seen if has_code(file)}
