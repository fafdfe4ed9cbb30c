"""The command that the package installs."""

import sys

import pytest

from charm.__main__ import main


def test_without_the_repository_it_says_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "charm.app.command", None)
    with pytest.raises(SystemExit, match=r"charm: there is no module pipeline.*clone of the repository"):
        main()


def test_in_the_repository_it_is_the_pipelines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["charm", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "charm score" in capsys.readouterr().out.replace("\n  score", "charm score")
