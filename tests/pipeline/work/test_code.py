"""Which edits of the code make a finished training begin anew: those of each module that it runs, and no others."""

import ast

import pytest

from pipeline.work import code

TRAIN = "stages.train"
MODULES = code.import_closure(TRAIN)


@pytest.fixture
def parsed_once(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Module -> its normal form. A digest reads 75 modules, of which a test edits one."""
    normal: dict[tuple[str, str], str] = {}
    normalize, read = code._normalize, code._read_source

    def normalize_once(module: str, function: str) -> str:
        source = code._read_source(module)
        if (module, source) not in normal:
            normal[module, source] = normalize(module, function)
        return normal[module, source]

    sources = {name: read(name) for name in MODULES}
    monkeypatch.setattr(code, "_normalize", normalize_once)
    monkeypatch.setattr(code, "_read_source", lambda module: sources[module])
    monkeypatch.setattr(code, "import_closure", lambda module: MODULES)  # an edit of these tests imports nothing
    return sources


def with_other_words(source: str) -> str:
    """The same code without its comments and with another docstring in each place that has one."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0] = ast.Expr(ast.Constant("Other words."))
    return "# A comment.\n" + ast.unparse(tree)


def test_a_line_in_any_module_that_training_runs_counts(parsed_once: dict[str, str]) -> None:
    before, silent, loud = code.run_digest(TRAIN), [], []
    for name in MODULES:
        original = parsed_once[name]
        parsed_once[name] = f"{original}\nX = 1\n"
        changed = code.run_digest(TRAIN) != before
        parsed_once[name] = original
        if name in code.NO_RESULT and changed:
            loud.append(name)
        if name not in code.NO_RESULT and not changed:
            silent.append(name)
    assert (silent, loud) == ([], [])
    assert len(MODULES) > 40  # or this would show little
    assert code.run_digest(TRAIN) == before


def test_words_in_any_module_do_not_count(parsed_once: dict[str, str]) -> None:
    before, counted = code.run_digest(TRAIN), []
    for name in MODULES:
        original = parsed_once[name]
        parsed_once[name] = with_other_words(original)
        assert parsed_once[name] != original
        if code.run_digest(TRAIN) != before:
            counted.append(name)
        parsed_once[name] = original
    assert counted == []
