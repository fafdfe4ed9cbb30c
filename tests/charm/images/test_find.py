"""Which files are photographs, in which order, under which names; and that only what a child survived is read here."""

import os
from collections import Counter
from pathlib import Path

import pytest
import simplejpeg

from charm.images import find as image_files
from charm.images.find import ImageFile, ImageFileReader, describe_passed, escape_path, find_image_files, read_image
from charm.images.limits import Limits
from charm.images.reasons import Rejected
from charm.runtime.errors import UserError
from tests.conftest import draw_image
from tests.faults.bombs import REFUSED

GOOD = simplejpeg.encode_jpeg(draw_image(30, 40))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def touch(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(GOOD)


def found(*paths: str) -> list[str]:
    return [one.path for one in find_image_files(paths)[0]]


def test_a_folder_is_searched_by_name_with_all_below(folder: Path) -> None:
    touch(
        "in/b.jpg",
        "in/a/z.PNG",
        "in/a/c.jpeg",
        "in/c.TIF",
        "in/d.tiff",
        "in/e.webp",
        "in/f.bmp",
        "in/B.jpg",
        "in/g.jfif",
        "in/h.MPO",
    )
    touch("in/notes.txt", "in/jpg", "in/.hidden.jpg", "in/.cache/g.jpg")
    (Path("in") / "folder.jpg").mkdir()
    expected = ["B.jpg", "a/c.jpeg", "a/z.PNG", "b.jpg", "c.TIF", "d.tiff", "e.webp", "f.bmp", "g.jfif", "h.MPO"]
    assert found("in") == [f"in/{name}" for name in expected]


def test_files_are_taken_as_they_are_named(folder: Path) -> None:
    touch("z", ".hidden", "a.jpg")
    assert found("z", ".hidden", "a.jpg") == ["z", ".hidden", "a.jpg"]


def test_each_file_once(folder: Path) -> None:
    touch("in/a.jpg", "in/b.jpg")
    Path("in/c.jpg").symlink_to("a.jpg")
    assert found("in/b.jpg", "in", "./in/a.jpg", "in") == ["in/b.jpg", "in/a.jpg"]


def test_links_out_of_a_folder_are_rejected_and_do_not_stand_for_their_files(folder: Path) -> None:
    touch("in/a.jpg", "out/b.jpg")
    Path("in/link.jpg").symlink_to(folder / "out/b.jpg")
    Path("in/gone.jpg").symlink_to("nowhere")
    Path("in/all").symlink_to(folder / "out")
    listed, _ = find_image_files(["in", "out"])
    assert [one.path for one in listed] == ["in/a.jpg", "in/gone.jpg", "in/link.jpg", "out/b.jpg"]
    reader = ImageFileReader(Limits())
    assert [reason(reader, one) for one in listed] == ["", "missing", "outside", ""]
    reader.close()


def reason(reader: ImageFileReader, image_file: ImageFile) -> str:
    try:
        assert reader.read(image_file) == Path(image_file.path).read_bytes()
    except Rejected as error:
        return error.reason
    return ""


def test_a_named_link_is_followed(folder: Path) -> None:
    touch("out/b.jpg")
    Path("link.jpg").symlink_to(folder / "out/b.jpg")
    assert read_image("link.jpg").shape == (30, 40, 3)


def test_a_folder_that_cannot_be_looked_into_is_rejected_and_not_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch("in/a.jpg", "in/closed/b.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listed, _ = find_image_files(["in"])
    assert [one.path for one in listed] == ["in/a.jpg", "in/closed"]
    reader = ImageFileReader(Limits())
    assert reason(reader, listed[1]) == "unreadable"
    reader.close()


def test_nothing_there(folder: Path) -> None:
    Path("in").mkdir()
    with pytest.raises(UserError, match=r"^no\\nway: there is no such file or folder$"):
        found("no\nway")
    with pytest.raises(UserError, match=r"^no files in in$"):
        found("in")


def test_what_a_folder_has_besides_is_counted_by_ending(folder: Path) -> None:
    touch("in/a.jpg", "in/b.psd", "in/c.PSD", "in/d/e.cr2", "in/none", "in/.DS_Store", "in/.git/f.jpg", "in/named.txt")
    Path("in/link").symlink_to("d")
    listed, passed = find_image_files(["in", "in/named.txt", "./in/d"])  # what comes up twice counts once
    assert [one.path for one in listed] == ["in/a.jpg", "in/named.txt"]
    assert passed == {".psd": 2, ".cr2": 1, "without ending": 1, "hidden": 2, "linked": 1}
    touch("out/b.psd")
    Path("out/link").symlink_to(folder / "in")
    assert find_image_files(["out"]) == ([], {".psd": 1, "linked": 1})


def test_what_was_passed_over_is_said_in_one_short_line() -> None:
    said = describe_passed(Counter({".psd": 3, ".cr2": 1}))
    assert said.startswith("3 .psd, 1 .cr2 passed over: in folders, files that end in .jpg .jpeg .jfif .mpo .png ")
    many = Counter({f".{number}\n\u202e": number for number in range(1, 101)})
    assert describe_passed(many).startswith(r"100 .100\n\u202e, 99 .99\n\u202e, ")
    assert ", 4278 others passed over: " in describe_passed(many)
    assert len(describe_passed(many)) < 400


def test_folders_within_each_other_have_no_end(folder: Path) -> None:
    """1,500: the last ones have paths that are too long for the system, and are rejected as a whole."""
    top = os.open(".", os.O_RDONLY)
    for _ in range(1500):
        Path("dd").mkdir()
        os.chdir("dd")
    os.fchdir(top)
    deep = "/".join(["dd"] * 1200)
    Path(deep, "a.jpg").write_bytes(GOOD)
    try:
        listed, passed = find_image_files(["dd"])
        assert not passed
        assert listed[0].path == f"{deep}/a.jpg"
        reader = ImageFileReader(Limits())
        assert [reason(reader, one) for one in listed] == ["", "unreadable"]
        reader.close()
    finally:  # what pytest removes folders with is recursive
        Path(deep, "a.jpg").unlink()
        os.chdir(deep)
        for _ in range(300):
            os.chdir("dd")
        for _ in range(1500):
            os.chdir("..")
            Path("dd").rmdir()
        os.close(top)


def test_a_link_in_a_circle_is_rejected(folder: Path) -> None:
    touch("in/b.jpg")
    Path("in/a.jpg").symlink_to("a.jpg")
    assert found("in") == ["in/a.jpg", "in/b.jpg"]


@pytest.mark.parametrize(
    "name", ["=1+1.jpg", "+1.jpg", "-1.jpg", "@a.jpg", " =1.jpg", "\t=1.jpg", "\r-1.jpg", "\uff1d1.jpg"]
)
def test_relative_names_are_no_formulas(name: str, folder: Path) -> None:
    touch(name, f"{name}.d/a.jpg")
    assert found(name, f"{name}.d") == [f"./{name}", f"./{name}.d/a.jpg"]
    assert found(".") == [f"./{name}", f"./{name}.d/a.jpg"]
    assert found(str(folder / name)) == [str(folder / name)]


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("été 写真\u3000👩\u200d👧.jpg", "été 写真\u3000👩\u200d👧.jpg"),
        ("two\nlines\t.jpg", r"two\nlines\t.jpg"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\u2028b\x85c", r"a\u2028b\x85c"),
        (os.fsdecode(b"z\xff\xe9.jpg"), r"z\xff\xe9.jpg"),
        ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
        ("\u061ca\u200eb\u200fc\u202ad\u202be\u202cf\u202dg", r"\u061ca\u200eb\u200fc\u202ad\u202be\u202cf\u202dg"),
        ("\u2066a\u2067b\u2068c\u2069", r"\u2066a\u2067b\u2068c\u2069"),
        ("שלום مرحبا.jpg", "שלום مرحبا.jpg"),
        ("back\\nslash", r"back\\nslash"),
    ],
    ids=[
        "printable",
        "newline and tab",
        "terminal",
        "other lines",
        "not UTF-8",
        "turned",
        "marks",
        "isolates",
        "right to left",
        "backslash",
    ],
)
def test_escape_path(path: str, shown: str) -> None:
    assert escape_path(path) == shown
    shown.encode()


def test_what_a_child_does_not_survive_is_not_read_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, data in enumerate(REFUSED.values()):
        (folder / f"{index}.png").write_bytes(data)
    monkeypatch.setattr(image_files, "read_file", lambda *_: pytest.fail("it was read"))
    reader = ImageFileReader(Limits())
    reasons = {reason(reader, one) for one in find_image_files(["."])[0]}
    reader.close()
    assert reasons <= {"too_large", "too_long", "too_many_parts", "corrupt", "mode", "memory"}


def test_a_file_that_changes_after_the_child_saw_it_is_seen_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch("a.jpg")
    ((image_file,), _) = find_image_files(["a.jpg"])
    replies = [b"half", GOOD]
    monkeypatch.setattr(image_files, "read_file", lambda *_: replies.pop(0))
    reader = ImageFileReader(Limits())
    assert reader.read(image_file) == GOOD
    monkeypatch.setattr(image_files, "read_file", lambda *_: b"never the same")
    with pytest.raises(Rejected) as error:
        reader.read(image_file)
    reader.close()
    assert error.value.reason == "unreadable"


def test_read_image_says_what_is_wrong(folder: Path) -> None:
    Path("a\n.jpg").write_bytes(GOOD[:-40])
    for path, says in (
        ("a\n.jpg", r"^a\\n\.jpg: damaged or cut short$"),
        (".", "is a folder: expected one photograph"),
        ("b.jpg", "^b.jpg: there is no such file or folder$"),
    ):
        with pytest.raises(UserError, match=says):
            read_image(path)


def test_a_file_goes_by_its_own_name_and_not_by_that_of_a_link(folder: Path) -> None:
    touch("in/b.jpg")
    Path("in/a.jpg").symlink_to("b.jpg")
    Path("in/c.jpg").symlink_to("b.jpg")
    assert found("in") == ["in/b.jpg"]
