"""Which edits of the code make a finished training begin anew: those of each module that it runs, and no others."""

import ast

import pytest

from pipeline.work import code

TRAIN = "stages.train"
MODULES = code.import_closure(TRAIN)


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Module -> its source, which a test may edit; none of these edits imports anything."""
    read = {name: code._read_source(name) for name in MODULES}
    monkeypatch.setattr(code, "_read_source", lambda module: read[module])
    monkeypatch.setattr(code, "import_closure", lambda module: MODULES)
    return read


def with_other_words(source: str) -> str:
    """The same code without its comments and with another docstring in each place that has one."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0] = ast.Expr(ast.Constant("Other words."))
    return "# A comment.\n" + ast.unparse(tree)


def test_a_line_in_any_module_that_training_runs_counts(sources: dict[str, str]) -> None:
    before, silent, loud = code.run_digest(TRAIN), [], []
    for name in MODULES:
        original = sources[name]
        sources[name] = f"{original}\nX = 1\n"
        changed = code.run_digest(TRAIN) != before
        sources[name] = original
        if name in code.NO_RESULT and changed:
            loud.append(name)
        if name not in code.NO_RESULT and not changed:
            silent.append(name)
    assert (silent, loud) == ([], [])
    assert len(MODULES) > 40  # or this would show little
    assert code.run_digest(TRAIN) == before


def test_words_in_any_module_do_not_count(sources: dict[str, str]) -> None:
    before, counted = code.run_digest(TRAIN), []
    for name in MODULES:
        original = sources[name]
        sources[name] = with_other_words(original)
        assert sources[name] != original
        if code.run_digest(TRAIN) != before:
            counted.append(name)
        sources[name] = original
    assert counted == []
