"""The command that the package installs."""

import sys

import pytest

import charm
from charm.__main__ import main


@pytest.mark.parametrize(("argument", "printed"), [("--help", "score"), ("--version", f"charm {charm.__version__}")])
def test_help_and_version(
    argument: str, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["charm", argument])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert printed in capsys.readouterr().out
