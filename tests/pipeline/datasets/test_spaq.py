"""SPAQ: a spreadsheet, as spreadsheets are."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from charm.runtime.errors import UserError
from pipeline.datasets import READERS
from pipeline.manifest.labels import Listing, Source
from pipeline.settings.params import Params
from tests.pipeline.datasets.small_folders import write_spaq

LABELS = "Annotations/MOS and Image attribute scores.xlsx"
HEADER = ("Image name", "MOS")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_spaq(tmp_path / "spaq")
    return tmp_path / "spaq"


@pytest.fixture
def read(shipped_params: Params, folder: Path) -> Callable[..., Listing]:
    """Called with the rows of a sheet, or none to take the file as it is."""

    def read_rows(*rows: tuple[Any, ...]) -> Listing:
        if rows:
            book = openpyxl.Workbook()
            for row in rows:
                book.active.append(row)
            book.save(folder / LABELS)
        return READERS["spaq"](Source(folder, shipped_params.manifest, 0, folder))

    return read_rows


def test_rows_that_are_empty_and_columns_that_nobody_needs(read: Any, folder: Path) -> None:
    rows = [
        ("", "MOS", "note", "Image name"),
        (1, 37.25, None, "00001.jpg"),
        (),
        (2, "8", "see below", "2.jpg", "x"),
        (),
    ]
    listing = read(*rows)
    assert [(one.path, one.target) for one in listing.images] == [
        ("TestImage/00001.jpg", (37.25,)),
        ("TestImage/2.jpg", (8,)),
    ]
    assert [one.where for one in listing.images] == [f"{folder}/{LABELS}, row 2", f"{folder}/{LABELS}, row 4"]


def test_a_size_written_too_small_cuts_nothing(read: Any, folder: Path) -> None:
    """Some programs write the sheet's size as one cell, which a reader that believes it stops at."""
    whole = (folder / LABELS).read_bytes()
    (folder / "whole.xlsx").write_bytes(whole)
    with zipfile.ZipFile(folder / "whole.xlsx") as old, zipfile.ZipFile(folder / LABELS, "w") as new:
        for name in old.namelist():
            new.writestr(name, re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1"', old.read(name)))
    assert len(read().images) == 24


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param(
            [HEADER, ("1.jpg", "good")], ", row 2: MOS is 'good', expected a decimal number", id="text for a score"
        ),
        pytest.param(
            [HEADER, ("1.jpg", 3), ("2.jpg",)], ", row 3: MOS is None, expected a decimal number", id="no score"
        ),
        pytest.param([HEADER, (None, 3)], ", row 2: Image name is empty", id="no name"),
        pytest.param([HEADER, (" ", 3)], ", row 2: Image name is empty", id="blank name"),
        pytest.param([HEADER], ", row 1: there are no rows below the header", id="no rows"),
        pytest.param([("MOS", "name"), (3, "1.jpg")], ", row 1: not the labels of spaq: expected the", id="columns"),
        pytest.param([(None,)], ", row 1: not the labels of spaq: expected the columns Image name, MOS", id="nothing"),
    ],
)
def test_mistake_is_named_with_its_row(rows: list[tuple[Any, ...]], message: str, read: Any, folder: Path) -> None:
    with pytest.raises(UserError) as error:
        read(*rows)
    assert str(error.value).startswith(f"{folder}/{LABELS}{message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"Image name,MOS\n1.jpg,3\n", b"\xd0\xcf\x11\xe0" + bytes(600)], ids=["empty", "csv", "xls"]
)
def test_no_spreadsheet_of_this_kind(content: bytes, read: Any, folder: Path) -> None:
    (folder / LABELS).write_bytes(content)
    with pytest.raises(UserError, match=r"scores\.xlsx: not an Excel file \(\.xlsx\), or a damaged one: "):
        read()


def test_damage_is_a_users_error_or_changes_nothing(read: Any, folder: Path) -> None:
    expected = read().images
    whole = (folder / LABELS).read_bytes()
    refused = 0
    directory = len(whole) - 700  # of the archive: flips there make other errors than those in the sheets
    for place in [*range(0, directory, 41), *range(directory, len(whole), 3)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        (folder / LABELS).write_bytes(damaged)
        try:
            assert read().images == expected
        except UserError:
            refused += 1
    assert refused > 50


def test_cut_short_anywhere_is_a_users_error(read: Any, folder: Path) -> None:
    whole = (folder / LABELS).read_bytes()
    for length in range(0, len(whole), 300):
        (folder / LABELS).write_bytes(whole[:length])
        with pytest.raises(UserError):
            read()
