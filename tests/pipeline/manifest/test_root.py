"""Files that are missing: where they were looked for, and what is near; files that are not listed."""

import unicodedata
from pathlib import Path

import pytest

from charm.images.reasons import REASONS
from pipeline.manifest.root import RootFolder

E_ACUTE = "caf\u00e9.jpg"
FILES = ("beach/001.jpg", "beach/IMG 2.JPG", f"street/{unicodedata.normalize('NFD', E_ACUTE)}", "top.png", "v1.2.jpg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for file in (*FILES, ".hidden/a.jpg", "notes.txt"):
        path = tmp_path / "photos" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        pytest.param("beach\\001.jpg", "there is beach/001.jpg, which differs in its back-slashes", id="back-slashes"),
        pytest.param("Beach/001.jpg", "beach/001.jpg, which differs in its large and small letters", id="case"),
        pytest.param("beach/001.jpg ", "beach/001.jpg, which differs in its blanks", id="trailing blank"),
        pytest.param(" beach/ 001.jpg", "beach/001.jpg, which differs in its blanks", id="blanks"),
        pytest.param(f"street/{E_ACUTE}", "which differs in its Unicode form (NFC, NFD)", id="Unicode"),
        pytest.param("beach/001.png", "there is beach/001.jpg, which differs in its ending", id="another ending"),
        pytest.param("beach/001.jpeg", "there is beach/001.jpg, which differs in its ending", id="long ending"),
        pytest.param("beach/001", "there is beach/001.jpg, which differs in its ending", id="no ending"),
        pytest.param("v1.2", "there is v1.2.jpg, which differs in its ending", id="a dot in the name"),
        pytest.param("street/001.jpg", "there is beach/001.jpg, which differs in its folder", id="another folder"),
        pytest.param(
            "C:\\me\\beach\\img 2.jpeg",
            "in its back-slashes and large and small letters and ending and folder",
            id="all",
        ),
        pytest.param("beach/002.jpg", "", id="nothing near"),
        pytest.param("a" * 300 + "/" + "b" * 5000, "", id="longer than a name may be"),
        pytest.param("notes", "", id="no image"),
    ],
)
def test_what_is_near(path: str, hint: str, root: Path) -> None:
    words = RootFolder(root).explain({path: "missing"})[path]
    start = f"there is no such file in {root} (manifest.root)"
    assert words.startswith(start)
    assert words.endswith(hint) if hint else words == start
    assert "\n" not in words


@pytest.mark.parametrize(
    ("taken", "path", "root_there"),
    [
        pytest.param("photos/beach", "beach/001.jpg", "photos", id="below"),
        pytest.param("photos/beach", "photos/beach/001.jpg", ".", id="two below"),
        pytest.param("photos", "001.jpg", "photos/beach", id="above"),
        pytest.param(".", "./beach/001.jpg", "photos", id="above, with a folder"),
    ],
)
def test_the_root_under_which_it_would_be_there(taken: str, path: str, root_there: str, root: Path) -> None:
    top = root.parent
    words = RootFolder(top / taken).explain({path: "missing"})[path]
    _, _, found = words.partition("; it is there with manifest.root: ")
    assert Path(found) == top / root_there


def test_other_reasons(root: Path) -> None:
    found = RootFolder(root).explain({"a": "corrupt", "/etc/a.jpg": "outside"})
    assert found == {"/etc/a.jpg": f"{REASONS['outside']} {root} (manifest.root)"}
    assert RootFolder(root / "no").explain({"a": "missing"}) == {
        "a": f"there is no folder {root / 'no'} (manifest.root)"
    }


def test_all_of_a_disk_is_not_looked_through() -> None:
    assert RootFolder(Path("/")).find_unlisted([]) == []


def test_images_that_are_not_listed(root: Path) -> None:
    listed = ["./beach/001.jpg", str(root / "top.png"), "beach/x/../IMG 2.JPG", "missing.jpg"]
    (root / "beach/link").symlink_to(root)
    assert RootFolder(root).find_unlisted(listed) == [FILES[2], FILES[4]]
