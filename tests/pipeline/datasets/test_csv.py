"""The user's own labels: what is accepted, and the line of what is not."""

import gzip
import lzma
import os
import subprocess
import sys
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
from tests.imports import ROOT

TABLE = "path,score\na.jpg,0.5\nsub/b.jpg,1\n"


def parquet(**columns: list[Any]) -> bytes:
    return parquet_of(pa.table(columns))


def parquet_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


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
        pytest.param("\n,,\npath,score\na.jpg,0.5\nsub/b.jpg,1\n", id="blank lines before the header"),
        pytest.param("path,score\na.jpg,0.5\n,\nsub/b.jpg,1\n , \n,\n", id="rows of commas"),
        pytest.param(" path , score\na.jpg,0.5\nsub/b.jpg,1\n", id="blanks in the header"),
        pytest.param("path,score\ra.jpg,0.5\rsub/b.jpg,1\r", id="lines of old Macs"),
        pytest.param("sep=,\r\n" + TABLE, id="a separator that a spreadsheet names"),
        pytest.param("path,score\na.jpg,+.5\nsub/b.jpg,10e-1\n", id="other decimal numbers"),
    ],
)
def test_same_labels(content: str, read: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert pairs(read(content)) == [("a.jpg", (0.5,)), ("sub/b.jpg", (1.0,))]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(TABLE.replace(",", ";"), "columns separated by ';'", id="semicolons"),
        pytest.param(TABLE.replace(",", "\t"), "columns separated by tabs", id="tabs"),
        pytest.param(TABLE.replace(",", "|"), "columns separated by '|'", id="bars"),
        pytest.param(
            "path;score\na.jpg;0,5\nsub/b.jpg;1\n", "columns separated by ';', decimal commas", id="decimal commas"
        ),
        pytest.param(
            'sep=;\n"path";"score"\na.jpg;"0,50"\n;\nsub/b.jpg;1,0\n',
            "columns separated by ';', decimal commas",
            id="of a spreadsheet",
        ),
        pytest.param(
            "path\tnote, a\tscore\na.jpg\tx,y\t,5\nsub/b.jpg\t1,2\t1\n", "tabs, decimal commas", id="commas in text"
        ),
        pytest.param("path,a;b;c;d,score\na.jpg,1;2,0.5\nsub/b.jpg,,1\n", "", id="semicolons in text"),
        pytest.param(TABLE.encode("utf-16"), "UTF-16", id="UTF-16"),
        pytest.param(b"\xfe\xff" + TABLE.encode("utf-16-be"), "UTF-16", id="UTF-16, the other way round"),
        pytest.param(
            TABLE.replace(",", "\t").replace("\n", "\r\n").encode("utf-16"),
            "tabs, UTF-16",
            id="a spreadsheet's Unicode text",
        ),
    ],
)
def test_same_labels_in_another_form_which_is_said(
    content: str | bytes, said: str, read: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pairs(read(content)) == [("a.jpg", (0.5,)), ("sub/b.jpg", (1.0,))]
    printed = capsys.readouterr().out
    assert printed.count("\n") == (1 if said else 0)
    assert printed.rstrip("\n").endswith(said)


@pytest.mark.parametrize("name", ["labels.tsv", "labels.txt", "LABELS.CSV"])
def test_endings(name: str, read: Any) -> None:
    assert len(read(TABLE, name).images) == 2


def test_rows_without_a_rating_are_kept_apart_and_counted(read: Any, capsys: pytest.CaptureFixture[str]) -> None:
    listing = read("path,a,b\na.jpg,1,2\nb.jpg,,\nc.jpg, ,\n", score_columns=["a", "b"])
    assert pairs(listing) == [("a.jpg", (1.0, 2.0)), ("b.jpg", ()), ("c.jpg", ())]
    assert listing.num_bins == 2
    assert "2 of 3 rows have no rating" in capsys.readouterr().out


def pairs(listing: Listing) -> list[tuple[str, tuple[float, ...]]]:
    return [(one.path, one.target) for one in listing.images]


def test_root_of_its_own(read: Any, tmp_path: Path) -> None:
    assert read(TABLE, root=str(tmp_path / "elsewhere")).root == tmp_path / "elsewhere"


def test_distribution_columns_in_the_given_order(read: Any) -> None:
    listing = read("path,n1,n3,n2\na.jpg,1,3,2\n", score_columns=["n1", "n2", "n3"])
    assert listing.images[0].target == (1.0, 2.0, 3.0)
    assert listing.num_bins == 3


@pytest.mark.parametrize(
    ("cell", "split"),
    [
        ("train", "train"),
        (" Test ", "test"),
        ("VAL", "val"),
        ("Training", "train"),
        ("validation", "val"),
        ("valid", "val"),
    ],
)
def test_split_column(cell: str, split: str, read: Any) -> None:
    listing = read(f"path,score,part\na.jpg,1,{cell}\nb.jpg,0,\n", split_column="part")
    assert [one.split for one in listing.images] == [split, ""]  # check_listing refuses the second


def test_group_column(read: Any) -> None:
    listing = read("path,score,scene\na.jpg,1,beach \nb.jpg,0,\n", group_column="scene")
    assert [one.group for one in listing.images] == ["beach", None]
    listing = read(parquet(path=["a", "b"], score=[0, 1], scene=[0, None]), "x.parquet", group_column="scene")
    assert [one.group for one in listing.images] == ["0", None]


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
        pytest.param("path,score\na,1\n", {"group_column": "scene"}, ":1: there is no column 'scene'", id="group"),
        pytest.param("paht;score\na;1\n", {}, ":1: there is no column 'path'; did you mean 'paht'?", id="semicolons"),
        pytest.param(
            "path;score\na;0,5\nb;0.5\n", {}, ":2: '0,5' has a decimal comma, ", id="decimal commas beside points"
        ),
        pytest.param("path;score\na;1.234,5\n", {}, ":2: score is '1.234,5', expected a dec", id="thousands"),
        pytest.param("", {}, ":1: no header; expected a line with the columns path, score", id="empty"),
        pytest.param("\ufeff", {}, ":1: no header", id="a byte order mark alone"),
        pytest.param("\n,,\n", {}, ":1: no header", id="blank lines alone"),
        pytest.param("path,score\n", {}, "labels.csv: only a header; expected a row per image", id="header alone"),
        pytest.param("path,score\na,1\nb\n", {}, ":3: 1 field; expected 2, as the header has", id="short line"),
        pytest.param("path,score\na,1\nb,1,9\n", {}, ":3: 3 fields; expected 2, as the header has", id="long line"),
        pytest.param(
            "path,score\na,1\nb,0,5\n",
            {},
            ":3: 3 fields; expected 2, as the header has; decimal commas need",
            id="comma",
        ),
        pytest.param("path,score\na,1,\n", {}, ":2: 3 fields", id="comma at the end"),
        pytest.param(
            'path,score\na,"0,5"\n', {}, ":2: score is '0,5', expected a decimal number", id="quoted decimal comma"
        ),
        pytest.param(
            "path,score\na,1\nb,good\n", {}, ":3: score is 'good', expected a decimal number", id="text for a score"
        ),
        pytest.param("path,score\na,\nb,\n", {}, "labels.csv: score: empty in every row", id="no score"),
        pytest.param(
            "path,n1,n2\na,1,\n", {"score_columns": ["n1", "n2"]}, ":2: n2 is '', expected a decimal", id="half a score"
        ),
        pytest.param("path,score\na," + "1x" * 9999, {}, "x1x1x...", id="a message of one line"),
        pytest.param(b"path,score\na,1\n\xe9,1\n", {}, ":3: byte 0xe9 is no text; expected UTF-8", id="Latin-1"),
        pytest.param(b"\xef\xbb\xbfpath,score\n\xe9,1\n", {}, ":2: byte 0xe9 is no text", id="Latin-1 after a mark"),
        pytest.param("path,score\na,1\n".encode("utf-16-le"), {}, ":1: byte 0x00 is no text", id="UTF-16, no mark"),
        pytest.param(
            "path,score\na,\ud800\n".encode("utf-16", "surrogatepass"), {}, ":2: byte 0x", id="UTF-16, broken"
        ),
        pytest.param(b"path,score\na,1\nb\0.jpg,1\n", {}, ":3: byte 0x00 is no text", id="NUL"),
        pytest.param(b"PK\x03\x04\x14\x00\x06\x00", {}, "an Excel file (.xlsx) or another zip", id="a spreadsheet"),
        pytest.param(b"\xd0\xcf\x11\xe0\xa1\xb1", {}, "an Excel file (.xls): save its", id="an old spreadsheet"),
        pytest.param(gzip.compress(b"path,score\na,1\n"), {}, "compressed by gzip: unpack it", id="gzip"),
        pytest.param(lzma.compress(b"path,score\na,1\n"), {}, "compressed by xz: unpack it", id="xz"),
        pytest.param("\n<!DOCTYPE html>\n<html>", {}, "a web page or XML: download the file", id="a web page"),
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
        (".", "dataset: csv needs a .csv, .tsv, .parquet or .arrow file"),
        (str(Path(__file__)), "expected a table of labels, .csv, .tsv, .tab, .txt, .arrow or .parquet"),
    ],
)
def test_no_such_file(name: str, message: str, shipped_params: Params, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        csv.read(Source(tmp_path / name, shipped_params.manifest, 0, tmp_path))


@pytest.mark.parametrize("name", ["labels.xlsx", "labels.csv.gz"])
def test_foreign_format_is_named_whatever_the_ending(name: str, read: Any) -> None:
    with pytest.raises(UserError, match="compressed by gzip"):
        read(gzip.compress(b"path,score\na,1\n"), name)


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
        pytest.param(parquet(path=["a"], score=[None]), "x.parquet: score: empty in every row", id="null"),
        pytest.param(parquet(path=["a"], score=[float("nan")]), "x.parquet, row 1: score is nan", id="nan"),
        pytest.param(parquet(path=["a"], score=[True]), "x.parquet, row 1: score is True", id="a truth"),
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


IMAGES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def arrow(table: pa.Table, kind: str) -> bytes:
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, 2)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_images_in_the_table_have_paths_of_their_own(kind: str, read: Any) -> None:
    cells = [{"bytes": b"1", "path": "a.jpg"}, {"bytes": b"2", "path": None}, {"bytes": b"3", "path": "c.jpg"}]
    names = {b"huggingface": b'{"info": {"features": {"stars": {"names": ["1", "10"], "_type": "ClassLabel"}}}}'}
    columns = {"image": pa.array(cells, IMAGES), "stars": [1, -1, 0], "id": [2**63 - 1, 7, None], "other": [b"x"] * 3}
    table = pa.table(columns).replace_schema_metadata(names)
    data = parquet_of(table) if kind == "parquet" else arrow(table, kind)
    name = "x.parquet" if kind == "parquet" else "x.arrow"
    listing = read(data, name, path_column="image", score_columns=["stars"], group_column="id")
    assert [one.name for one in listing.images] == ["a.jpg", f"{name}#image/1", "c.jpg"]
    assert [one.path for one in listing.images] == [f"{name}#image/{row}" for row in range(3)]
    assert [one.target for one in listing.images] == [(10.0,), (), (1.0,)]  # the names of classes, not their places
    assert [one.group for one in listing.images] == [str(2**63 - 1), "7", None]
    listing = read(data, name, path_column="id", score_columns=["stars"])
    assert [one.path for one in listing.images] == [str(2**63 - 1), "7", ""]


@pytest.mark.parametrize("cut", [8, 100, 600])
def test_an_arrow_stream_that_is_cut_is_not_a_shorter_one(cut: int, read: Any) -> None:
    data = arrow(pa.table({"path": [f"{row}.jpg" for row in range(9)], "score": [0.5] * 9}), "stream")
    with pytest.raises(UserError, match=r"x\.arrow: not an Arrow file: cut short: it has no end"):
        read(data[:-cut], "x.arrow")


MEASURE = """
import pathlib, sys, pyarrow.parquet, pyarrow.compute
from charm.labels.tables import read_table
def peak():
    # Of this program: ru_maxrss is inherited from who started it.
    return int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1e3
before = peak()
rows = read_table(pathlib.Path(sys.argv[1]), ["image", "score"], ["score"]).pick(["image", "score"])
print(len(rows), peak() - before)
"""


def test_memory_does_not_grow_with_the_bytes_of_images(tmp_path: Path) -> None:
    """In a process of its own, as the peak of this one is above it."""
    data = os.urandom(10**6)
    cells = [{"bytes": data, "path": f"{row}.jpg"} for row in range(150)]
    table = pa.table({"image": pa.array(cells, IMAGES), "score": [row / 150 for row in range(150)]})
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=False, compression="none")
    assert (tmp_path / "x.parquet").stat().st_size > 150 * 10**6
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "x.parquet")]
    count, megabytes = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
    assert int(count) == 150
    assert float(megabytes) < 50


def test_parquet_of_any_name(read: Any) -> None:
    assert len(read(parquet(path=["a"], score=[1.0]), "labels.csv").images) == 1


@pytest.mark.parametrize(
    "cell", ["1_5", "nan", "inf", "-inf", "Infinity", "0x1", "1e999", "1,5", "٣", "½", "1 5", "--1", "3*"]
)
def test_labels_are_decimal_numbers(cell: str, read: Any) -> None:
    """Python would read most of these as numbers."""
    with pytest.raises(UserError, match=r"labels\.csv:3: score is .*, expected a decimal number"):
        read(f'path,score\na,1\nb,"{cell}"\n')


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
