"""Digests of what code does, computed from its syntax.

The store keys finished work by them, so that an edited comment remakes nothing.
"""

import ast
import importlib.util
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from charm.runtime.disk import fingerprint

ROOT = Path(__file__).parents[2]
PACKAGES = ("charm", "pipeline", "stages")

# Modules that cannot change a result: they say what goes wrong, notice signals, show progress, or check settings, whose
# values are keys of their own.
NO_RESULT = (
    "charm.runtime.errors",
    "charm.runtime.interrupts",
    "charm.runtime.progress",
    "charm.runtime.streams",
    "charm.runtime.waiting",
    "pipeline.settings.params",
    "pipeline.settings.recipes",
    "pipeline.training.tracker",
)
# Exceptions whose arguments are read by people alone; those of others, such as `Rejected`, are values.
_FOR_PEOPLE = {"ImportError", "KeyError", "ModuleNotFoundError", "RuntimeError", "TypeError", "UserError", "ValueError"}


def code_digest(*modules: str) -> str:
    """Returns the sha256 of the code of some modules, as far as it can change a result.

    Comments, docstrings, layout, printed lines and the texts of errors do not count.

    Args:
        modules: names; "module:function" stands for the function and all that it uses of its module.
    """
    named = [module.partition(":")[::2] for module in modules]
    return fingerprint([_normalize(_read_source(module), function) for module, function in named])


def run_digest(module: str) -> str:
    """Returns the `code_digest` of all that running a module may import, but for the modules of NO_RESULT."""
    return code_digest(*(name for name in import_closure(module) if name not in NO_RESULT))


def own_closure(module: str) -> list[str]:
    """Names the modules of its own package that importing `module` may run, itself included."""
    package = module.rpartition(".")[0] + "."
    return [name for name in import_closure(module) if name.startswith(package)]


def import_closure(module: str) -> list[str]:
    """Names the first-party modules that importing `module` may run, itself and the packages above it included.

    Imports are read from the source, those in functions included and those under `if TYPE_CHECKING` not; nothing is
    run.
    """
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            above = ".".join(parts[:end])
            if above not in seen and find_source(above) is not None:
                seen.add(above)
                todo += _imported(above)
    return sorted(seen)


def find_source(module: str) -> Path | None:
    """Returns the file of a first-party module; None if there is none."""
    path = f"{ROOT}/{module.replace('.', '/')}"
    return next((Path(file) for file in (f"{path}.py", f"{path}/__init__.py") if os.path.isfile(file)), None)  # noqa: PTH113


def _imported(module: str) -> set[str]:
    return {name for name in _list_imports(_read_source(module)) if find_source(name)}


# These two are functions of the text alone; a stage asks for the same hundred modules several times.
@cache
def _list_imports(source: str) -> frozenset[str]:
    """Names what a source imports of the project, and what may be a module or a name of one."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in found if name.split(".")[0] in PACKAGES)


def _read_source(module: str) -> str:
    if module.split(".")[0] in PACKAGES:
        file = find_source(module)
    else:
        spec = importlib.util.find_spec(module)
        file = Path(spec.origin) if spec and spec.origin else None
    if file is None:
        raise ImportError(f"no source for {module}")
    return file.read_text()


@cache
def _normalize(source: str, function: str) -> str:
    tree: ast.Module = _Normalizer().visit(ast.parse(source))
    body = _reachable(tree.body, function) if function else tree.body
    return ast.unparse(ast.Module(body, []))  # ast.dump differs between Python versions


class _Normalizer(ast.NodeTransformer):
    """Removes docstrings, prints and the arguments of errors for people, which change no result."""

    def visit(self, node: Any) -> Any:
        self.generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_said(one)] or [ast.Pass()]
        called = node.exc.func if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else None
        if isinstance(called, ast.Name) and called.id in _FOR_PEOPLE:
            node.exc.args = []
        return node


def _is_said(statement: ast.stmt) -> bool:
    """Tells whether a statement is a docstring or a bare call of print."""
    if not isinstance(statement, ast.Expr):
        return False
    value = statement.value
    is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    is_print = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print"
    return is_text or is_print


def _reachable(body: Iterable[ast.stmt], function: str) -> list[ast.stmt]:
    """Returns the statements of a module that a function of it depends on, in their order."""
    defined: dict[str, ast.stmt] = {}
    for statement in body:
        for name in _defined_names(statement):
            defined[name] = statement
    if function not in defined:
        raise ImportError(f"no definition of {function}")
    seen: set[str] = set()
    todo = {function}
    while todo:
        name = todo.pop()
        seen.add(name)
        used = {node.id for node in ast.walk(defined[name]) if isinstance(node, ast.Name)}
        todo |= (used & defined.keys()) - seen
    return [statement for statement in body if seen & _defined_names(statement)]


def _defined_names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
