"""First contact: what is opened and what not, and the same answers from the child process as from this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import simplejpeg

from charm.images import quarantine
from charm.images.limits import Limits
from charm.images.quarantine import Bounds, inspect_file, inspect_in_child
from charm.images.reasons import REASONS
from tests.conftest import draw_image

ROOT = Path(__file__).parents[3]
GOOD = simplejpeg.encode_jpeg(draw_image(30, 40))
LIMITS = Limits(max_pixels=2000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        pytest.param("missing.jpg", "missing", id="missing"),
        pytest.param("good.jpg/below", "missing", id="below a file"),
        pytest.param("empty.jpg", "empty", id="empty"),
        pytest.param("cut.jpg", "corrupt", id="corrupt"),
        pytest.param("text.jpg", "format", id="format"),
        pytest.param("large.jpg", "too_large", id="too large"),
        pytest.param("../outside.jpg", "outside", id="the folder above"),
        pytest.param("sub/../../outside.jpg", "outside", id="above, by a detour"),
        pytest.param("/etc/hostname", "outside", id="absolute"),
        pytest.param("link_out.jpg", "outside", id="link out of the root"),
        pytest.param("sub_out/outside.jpg", "outside", id="folder that is a link out of the root"),
        pytest.param("link_in.jpg", "", id="link inside the root"),
        pytest.param("sub/../good.jpg", "", id="detour inside the root"),
        pytest.param("circle.jpg", "unreadable", id="links in a circle"),
        pytest.param("sub", "unreadable", id="folder"),
        pytest.param(".", "unreadable", id="the root itself"),
        pytest.param("good\0.jpg", "unreadable", id="NUL"),
        pytest.param("x" * 300 + ".jpg", "unreadable", id="300 characters"),
        pytest.param("two\nlines.jpg", "", id="newline"),
        pytest.param('"quo\'ted".jpg', "", id="quotes"),
        pytest.param("写真 été.jpg", "", id="not ASCII"),
        pytest.param("-rf.jpg", "", id="looks like an option"),
        pytest.param("no_extension", "", id="no extension"),
        pytest.param("really_a_jpeg.png", "", id="wrong extension"),
    ],
)
def test_reason(path: str, reason: str, root: Path) -> None:
    (root.parent / "outside.jpg").write_bytes(GOOD)
    (root / "sub").mkdir()
    for name in ("good.jpg", "two\nlines.jpg", '"quo\'ted".jpg', "写真 été.jpg", "-rf.jpg", "no_extension"):
        (root / name).write_bytes(GOOD)
    (root / "really_a_jpeg.png").write_bytes(GOOD)
    (root / "empty.jpg").write_bytes(b"")
    (root / "cut.jpg").write_bytes(GOOD[:-40])
    (root / "text.jpg").write_text("not an image")
    (root / "large.jpg").write_bytes(simplejpeg.encode_jpeg(draw_image(50, 50)))
    (root / "link_out.jpg").symlink_to(root.parent / "outside.jpg")
    (root / "link_in.jpg").symlink_to("good.jpg")
    (root / "sub_out").symlink_to(root.parent)
    (root / "circle.jpg").symlink_to("circle.jpg")
    assert inspect_file(root, path, LIMITS)["reason"] == reason


def test_a_pipe_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    assert inspect_in_child(root, ["pipe.jpg"], LIMITS, Bounds(wall_seconds=3)) == [{"reason": "unreadable"}]


def test_a_file_of_too_many_bytes_is_not_read(root: Path) -> None:
    with (root / "sparse.jpg").open("wb") as file:
        file.write(GOOD)
        file.truncate(10**12)
    assert inspect_file(root, "sparse.jpg", LIMITS) == {"reason": "too_many_bytes"}


def test_a_link_put_in_place_of_a_checked_file_is_not_followed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "outside.jpg").write_bytes(GOOD)
    (root / "a.jpg").symlink_to(root.parent / "outside.jpg")
    monkeypatch.setattr(Path, "resolve", lambda self, strict=False: self)  # as it was before the link came
    assert inspect_file(root, "a.jpg", LIMITS) == {"reason": "unreadable"}


def test_the_child_says_what_this_process_says(root: Path) -> None:
    (root / "good.jpg").write_bytes(GOOD)
    (root / "cut.jpg").write_bytes(GOOD[:-40])
    paths = ["good.jpg", "cut.jpg", "two\nlines.jpg", "\udcff", "nul\0", "x" * 100_000, "", "good.jpg"]
    assert inspect_in_child(root, paths, LIMITS) == [inspect_file(root, path, LIMITS) for path in paths]


def test_nothing_to_look_at_starts_no_child(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_COMMAND", ("/nowhere",))
    assert inspect_in_child(root, [], LIMITS) == []


@pytest.mark.parametrize("command", [("false",), ("echo", "hello")])
def test_a_child_that_does_not_start_is_an_error_and_no_rejected_file(
    command: tuple[str, ...], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "_COMMAND", command)
    with pytest.raises(RuntimeError, match="does not start"):
        inspect_in_child(root, ["a.jpg"], LIMITS)


def test_without_the_modules_of_posix(root: Path, tmp_path: Path) -> None:
    """As on Windows: everything works, and one line says what is not bounded."""
    (root / "good.jpg").write_bytes(GOOD)
    (root / "cut.jpg").write_bytes(GOOD[:-40])
    site = tmp_path / "site"
    site.mkdir()
    # Read by the child process, too.
    (site / "sitecustomize.py").write_text("import sys; sys.modules['fcntl'] = sys.modules['resource'] = None")
    code = (
        "import sys; from pathlib import Path; import charm; from charm.images.arrays import as_array; "
        "from charm.images.quarantine import Limits, inspect_in_child; root = Path(sys.argv[1]); "
        "found = [inspect_in_child(root, ['good.jpg', 'cut.jpg'], Limits()) for _ in range(2)]; "
        "print(as_array(root / 'good.jpg').shape, [[one['reason'] for one in some] for some in found])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, root],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "(30, 40, 3) [['', 'corrupt'], ['', 'corrupt']]\n", run.stderr
    assert run.stderr == ("charm: on this system a file that is opened has no limit of memory and of computing time\n")


def test_reasons_name_the_numbers_in_force() -> None:
    assert Limits() == Limits(max_bytes=400_000_000, max_side=65_500)
    assert Bounds() == Bounds(cpu_seconds=10, megabytes=1500)
    assert "400 MB" in REASONS["too_many_bytes"]
    assert "65500" in REASONS["too_long"]
    assert "10 seconds" in REASONS["timeout"]
    assert "1.5 GB" in REASONS["memory"]
