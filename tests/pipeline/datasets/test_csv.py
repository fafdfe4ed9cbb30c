"""The user's own labels: what is accepted, and the line of what is not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from charm.runtime.errors import UserError
from pipeline.datasets import csv
from pipeline.manifest.labels import Listed, Listing, Source
from pipeline.settings.params import Params

TABLE = "path,score\na.jpg,0.5\nsub/b.jpg,1\n"


@pytest.fixture
def read(shipped_params: Params, tmp_path: Path) -> Any:
    """Called with the file's content, its name and settings of params.manifest."""

    def read_labels(content: str | bytes, name: str = "labels.csv", **settings: Any) -> Listing:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return csv.read(Source(file, replace(shipped_params.manifest, **settings), 0, tmp_path / "unused"))

    return read_labels


def test_paths_scores_and_lines(read: Any, tmp_path: Path) -> None:
    listing = read(TABLE, score_range=[0.0, 2.0], accuracy_threshold=1.5)
    assert listing.images == [
        Listed("a.jpg", "a.jpg", (0.5,), None, f"{tmp_path}/labels.csv:2"),
        Listed("sub/b.jpg", "sub/b.jpg", (1.0,), None, f"{tmp_path}/labels.csv:3"),
    ]
    assert listing.root == tmp_path
    assert (listing.score_range, listing.accuracy_threshold, listing.num_bins) == ((0.0, 2.0), 1.5, 1)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("\ufeff" + TABLE, id="byte order mark"),
        pytest.param(TABLE.replace("\n", "\r\n"), id="lines of Windows"),
        pytest.param(TABLE.rstrip("\n"), id="no last line end"),
        pytest.param("rater,score,path\nx,0.5,a.jpg\nx,1,sub/b.jpg\n", id="other order, another column"),
        pytest.param('path,score\n"a.jpg","0.5"\n"sub/b.jpg", 1 \n', id="quoted, spaces"),
        pytest.param("path,score\n\na.jpg,0.5\n\nsub/b.jpg,1\n\n", id="blank lines"),
    ],
)
def test_same_labels(content: str, read: Any) -> None:
    assert [(one.path, one.target) for one in read(content).images] == [("a.jpg", (0.5,)), ("sub/b.jpg", (1.0,))]


def test_root_of_its_own(read: Any, tmp_path: Path) -> None:
    assert read(TABLE, root=str(tmp_path / "elsewhere")).root == tmp_path / "elsewhere"


def test_distribution_columns_in_the_given_order(read: Any) -> None:
    listing = read("path,n1,n3,n2\na.jpg,1,3,2\n", score_columns=["n1", "n2", "n3"])
    assert listing.images[0].target == (1.0, 2.0, 3.0)
    assert listing.num_bins == 3


def test_split_column(read: Any) -> None:
    listing = read("path,score,part\na.jpg,1,train\nb.jpg,0,\n", split_column="part")
    assert [one.split for one in listing.images] == ["train", ""]  # check_listing refuses the second


def test_name_over_two_lines_keeps_the_count(read: Any) -> None:
    listing = read('path,score\n"a\nb.jpg",1\nc.jpg,1\n')
    assert [one.path for one in listing.images] == ["a\nb.jpg", "c.jpg"]
    assert listing.images[1].where.endswith("labels.csv:4")


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        pytest.param("paht,score\na,1\n", {}, ":1: there is no column 'path'; did you mean 'paht'?", id="typo"),
        pytest.param(
            "path,score\na,1\n", {"score_columns": ["mos"]}, ":1: there is no column 'mos'; known: path", id="score"
        ),
        pytest.param("path,score\na,1\n", {"split_column": "split"}, ":1: there is no column 'split'", id="split"),
        pytest.param("path,score,path\na,1,b\n", {}, ":1: there are 2 columns 'path'; expected one", id="twice"),
        pytest.param(
            "path;score\na;1\n", {}, ":1: the columns are separated by ';'; expected a comma", id="semicolons"
        ),
        pytest.param("path\tscore\na\t1\n", {}, r":1: the columns are separated by '\t'; expected a comma", id="tabs"),
        pytest.param("", {}, ":1: no header; expected a line with the columns path, score", id="empty"),
        pytest.param("\ufeff", {}, ":1: no header", id="a byte order mark alone"),
        pytest.param("\n\npath,score\na,1\n", {}, ":1: no header", id="blank lines before the header"),
        pytest.param("path,score\n", {}, "labels.csv: only a header; expected a row per image", id="header alone"),
        pytest.param("path,score\na,1\nb\n", {}, ":3: 1 field; expected 2, as the header has", id="short line"),
        pytest.param("path,score\na,1\nb,1,9\n", {}, ":3: 3 fields; expected 2, as the header has", id="long line"),
        pytest.param("path,score\na,1\nb,0,5\n", {}, ":3: 3 fields", id="decimal comma"),
        pytest.param("path,score\na,1,\n", {}, ":2: 3 fields", id="comma at the end"),
        pytest.param('path,score\na,"0,5"\n', {}, ":2: score is '0,5', expected a number", id="quoted decimal comma"),
        pytest.param("path,score\na,1\nb,good\n", {}, ":3: score is 'good', expected a number", id="text for a score"),
        pytest.param("path,score\na,1\nb,\n", {}, ":3: score is '', expected a number", id="no score"),
        pytest.param("path,score\na," + "1x" * 9999, {}, "x1x1x...", id="a message of one line"),
        pytest.param(b"path,score\na,1\n\xe9,1\n", {}, ":3: byte 0xe9 is no text; expected UTF-8", id="Latin-1"),
        pytest.param(b"\xef\xbb\xbfpath,score\n\xe9,1\n", {}, ":2: byte 0xe9 is no text", id="Latin-1 after a mark"),
        pytest.param("path,score\na,1\n".encode("utf-16"), {}, ":1: byte 0xff is no text", id="UTF-16"),
        pytest.param(b"path,score\na,1\nb\0.jpg,1\n", {}, ":3: byte 0x00 is no text", id="NUL"),
        pytest.param(b"PK\x03\x04\x14\x00\x06\x00", {}, ":1: byte 0x00 is no text", id="a spreadsheet"),
        pytest.param("path,score\n" + "a" * 200_000 + ",1\n", {}, ":2: not a CSV file: field larger", id="huge field"),
        pytest.param('path,score\na,1\n"b,1\nc,1\n', {}, ":4: not a CSV file: unexpected end", id="open quote"),
    ],
)
def test_mistake_is_named_with_its_line(content: Any, settings: dict[str, Any], message: str, read: Any) -> None:
    with pytest.raises(UserError) as error:
        read(content, **settings)
    assert message in str(error.value)
    assert "labels.csv" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("labels.csv", "there is no file"),
        (".", "needs a .csv or .parquet file"),
        ("pipeline/datasets/demo_images.py", "needs a .csv or .parquet file"),
    ],
)
def test_no_such_file(name: str, message: str, shipped_params: Params, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        csv.read(Source(tmp_path / name, shipped_params.manifest, 0, tmp_path))


def parquet(**columns: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def test_parquet(read: Any, tmp_path: Path) -> None:
    listing = read(
        parquet(path=["a.jpg", "b.jpg"], score=[0.5, 1.0], part=["train", "val"]), "x.parquet", split_column="part"
    )
    assert listing.images == [
        Listed("a.jpg", "a.jpg", (0.5,), "train", f"{tmp_path}/x.parquet, row 1"),
        Listed("b.jpg", "b.jpg", (1.0,), "val", f"{tmp_path}/x.parquet, row 2"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(parquet(path=["a"], score=[None]), "x.parquet, row 1: score is None", id="null"),
        pytest.param(
            parquet(paths=["a"], score=[1.0]),
            "x.parquet: there is no column 'path'; did you mean 'paths'?",
            id="column",
        ),
        pytest.param(b"path,score\na,1\n", "x.parquet: not a Parquet file", id="CSV"),
        pytest.param(b"", "x.parquet: not a Parquet file", id="empty"),
        pytest.param(parquet(path=[], score=[]), "x.parquet: only a header; expected a row per image", id="no rows"),
        pytest.param(parquet(path=["a"], score=[1.0])[:-20], "x.parquet: not a Parquet file", id="cut short"),
    ],
)
def test_mistake_in_parquet(content: bytes, message: str, read: Any) -> None:
    with pytest.raises(UserError) as error:
        read(content, "x.parquet")
    assert message in str(error.value)


def test_damaged_parquet_is_a_users_error_or_readable(read: Any) -> None:
    whole = parquet(path=[f"{i}.jpg" for i in range(50)], score=[i / 50 for i in range(50)])
    refused = 0
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        try:
            read(bytes(damaged), "x.parquet")
        except UserError:
            refused += 1
    assert refused > 50
