"""What a command leaves behind where its output is closed or full: its exit code, at most a line, no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
import simplejpeg

from tests.conftest import ROOT, draw_image

LOST = "error: standard output cannot be written ({}): direct it to a file or a terminal\n"
CLOSED, FULL = LOST.format("Bad file descriptor"), LOST.format("No space left on device")


def run(command: str, folder: Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a line of shell, with the commands `charm` and `pipeline`."""
    commands = (f'{name}() {{ PYTHONPATH={ROOT} {sys.executable} -m {name} "$@"; }}' for name in ("charm", "pipeline"))
    script = f"cd {folder}; {'; '.join(commands)}; {command}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("charm --version >&-", 2, CLOSED),
        ("charm --help >/dev/full", 2, FULL),
        ("charm --version 2>&-", 0, ""),
        ("charm --version <&- >/dev/null 2>&-", 0, ""),
        ("charm show gone.jpg --model model >&-", 2, "error: gone.jpg: there is no such file or folder\n"),
        ("charm show gone.jpg --model model 2>&-", 2, ""),
        ("charm show gone.jpg --model model 2>/dev/full", 2, ""),
        ("charm tokenize a.jpg --model model >/dev/full", 2, FULL),
        ("charm tokenize a.jpg --model model >&- 2>&-", 2, ""),
        ("charm tokenize a.jpg --model model | true", 0, ""),
        ("charm score a.jpg bad.jpg --model model >&-", 2, CLOSED),
        ("charm score a.jpg bad.jpg --model model --out t.csv >&- 2>/dev/full", 3, ""),
        ("pipeline --help | true", 0, ""),
        ("pipeline --help >/dev/full", 2, FULL),
    ],
)
def test_closed_and_full(command: str, code: int, says: str, tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "model").symlink_to(model_folder)
    (tmp_path / "a.jpg").write_bytes(simplejpeg.encode_jpeg(draw_image(60, 80)))
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    ended, _, errors = run(command, tmp_path)
    assert ended == code
    assert errors.startswith(says) if says else errors == ""
    assert "Traceback" not in errors
    assert "Exception" not in errors


def test_names_in_messages_do_not_turn_the_line_about(tmp_path: Path) -> None:
    code, _, errors = run("charm tokenize a.jpg --model $'x\\u202egpj\\x1b[31m'", tmp_path)
    assert (code, errors.splitlines()[0].split("/")[0]) == (2, r"error: x\u202egpj\x1b[31m")
