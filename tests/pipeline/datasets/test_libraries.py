"""Folders as other programs leave them: Hugging Face's datasets, folders named by scores, a photo library's stars."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from charm.runtime.errors import UserError
from pipeline.datasets import READERS
from pipeline.datasets.stars import parse_rating
from pipeline.manifest.labels import Listing, Source, check_listing
from pipeline.settings.params import Params

IMAGES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Read = Callable[..., Listing]


@pytest.fixture
def read(shipped_params: Params, tmp_path: Path) -> Read:
    """Called with the data set's name and settings of params.manifest; the folder is tmp_path."""

    def read_folder(dataset: str, **settings: Any) -> Listing:
        listing = READERS[dataset](Source(tmp_path, replace(shipped_params.manifest, **settings), 0, tmp_path / "no"))
        check_listing(listing)
        return listing

    return read_folder


def rows(*names: str) -> pa.Table:
    cells = [{"bytes": name.encode(), "path": name} for name in names]
    return pa.table({"image": pa.array(cells, IMAGES), "mos": [0.5] * len(names)})


def write(file: Path, table: pa.Table) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(table, file)
        return
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def save_to_disk(folder: Path, *names: str, split: str | None = None) -> None:
    write(folder / "data-00000-of-00001.arrow", rows(*names))
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))


HF = {"path_column": "image", "score_columns": ["mos"]}


@pytest.mark.parametrize(
    "files",
    [
        {"data/train-00000-of-00001.parquet": "train", "data/validation-00000-of-00001.parquet": "val"},
        {"test.parquet": "test", "train-00000-of-00001-6ef3991c06080e14.parquet": "train"},
        {"default/test/0000.parquet": "test", "default/train/0000.parquet": "train"},
        {"data.parquet": None},
    ],
    ids=["data/", "with a hash", "of the hub's conversion", "one file"],
)
def test_parquet_as_load_dataset_finds_it(files: dict[str, str | None], read: Read, tmp_path: Path) -> None:
    for file in files:
        write(tmp_path / file, rows("a.jpg", "b.jpg"))
    found = [(one.path, one.split) for one in read("hf", **HF).images]
    assert found == [(f"{file}#image/{row}", files[file]) for file in files for row in (0, 1)]


def test_what_save_to_disk_has_written(read: Read, tmp_path: Path) -> None:
    save_to_disk(tmp_path / "train", "a.jpg", "b.jpg")
    save_to_disk(tmp_path / "test", "c.jpg")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    write(tmp_path / "train/cache-1234.arrow", rows("cached.jpg"))
    listing = read("hf", **HF)
    assert [(one.name, one.split) for one in listing.images] == [
        ("a.jpg", "train"),
        ("b.jpg", "train"),
        ("c.jpg", "test"),
    ]
    assert listing.images[2].path == "test/data-00000-of-00001.arrow#image/0"


def test_one_saved_split(read: Read, tmp_path: Path) -> None:
    save_to_disk(tmp_path, "a.jpg", split="validation")
    assert [one.split for one in read("hf", **HF).images] == ["val"]


TRAIN = "train-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("tables", "texts", "message"),
    [
        ([], {}, "holds no data: expected .parquet files"),
        (["data/train-00001-of-00003.parquet"], {}, "1 of 3 files of train are there: copy the others, too"),
        (["train/x.arrow"], {"dataset_dict.json": '{"splits": ["train"]}'}, "train/state.json: missing or damaged"),
        ([], {"state.json": '{"_data_files": [{"filename": "x.arrow"}]}'}, "x.arrow is missing, and state.json"),
        (
            [f"cropped/{TRAIN}", f"plain/{TRAIN}"],
            {},
            r"holds several data sets \(cropped, plain\): name the folder of one",
        ),
        (["unsupervised-00000-of-00001.parquet"], {}, "split 'unsupervised' is not known"),
        ([], {"train.parquet": "PAR1"}, "train.parquet: not a Parquet file: .*; write or download it again"),
        ([], {"state.json": "[]"}, "state.json: missing or damaged"),
    ],
)
def test_a_folder_of_datasets_that_is_not_whole(
    tables: list[str], texts: dict[str, str], message: str, read: Read, tmp_path: Path
) -> None:
    for name in tables:
        write(tmp_path / name, rows("a.jpg"))
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read("hf", **HF)
    assert "\n" not in str(error.value)


def save_image(file: Path, xmp: str | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"xmp": xmp.encode()} if xmp else {}
    if xmp and file.suffix == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    if xmp and file.suffix == ".tif":
        options["tiffinfo"] = {700: xmp.encode()}
    Image.new("RGB", (8, 8)).save(file, **options)


def test_folders_named_by_scores(read: Read, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/4.5/a.jpg", "train/4.5/deeper/b.png", "test/-1/c.jpg", "10/d.JPG"):
        save_image(tmp_path / name)
    (tmp_path / "10/notes.txt").touch()
    listing = read("folder", score_range=[-1.0, 10.0])
    assert [(one.path, one.target[0], one.split) for one in listing.images] == [
        ("10/d.JPG", 10.0, None),
        ("test/-1/c.jpg", -1.0, "test"),
        ("train/4.5/a.jpg", 4.5, "train"),
        ("train/4.5/deeper/b.png", 4.5, "train"),
    ]
    assert "1 .txt passed over" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cats/a.jpg", "cats/a.jpg: its folder's name is 'cats', expected a decimal number"),
        ("a.jpg", "a.jpg: in no folder; expected folders named by their images' score"),
        ("train/a.jpg", "train/a.jpg: in no folder"),
        ("7/a.jpg", r"score 7 of 7/a.jpg is outside of score_range, \[0, 1\]"),
        ("1/a.txt", "there are no images below"),
    ],
)
def test_folders_that_are_named_otherwise(name: str, message: str, read: Read, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        read("folder")


def xmp(rating: str, form: str = "attribute", before: str = "") -> str:
    """As Lightroom (attribute) and digiKam or exiftool (element) write it."""
    inside = (
        f' xmp:Rating="{rating}"/>' if form == "attribute" else f"><xmp:Rating>{rating}</xmp:Rating></rdf:Description>"
    )
    return (
        f'{before}<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"{inside}</rdf:RDF></x:xmpmeta>'
    )


def test_stars_of_a_library(read: Read, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, embedded in {
        "attribute.jpg": xmp("1"),
        "element.png": xmp("2", "element"),
        "webp.webp": xmp("3"),
        "tiff.tif": xmp("4", "element"),
        "avif.avif": xmp("5"),
        "rejected.jpg": xmp("-1"),
        "unrated.jpg": xmp("0"),
        "silent.jpg": None,
        "sidecar.jpg": xmp("1"),
        "long.jpg": None,
        "large.JPG": None,
    }.items():
        save_image(tmp_path / "2024" / name, embedded)
    for name, text in {"sidecar.xmp": xmp("5"), "long.jpg.xmp": xmp("4", "element"), "large.XMP": xmp("2")}.items():
        (tmp_path / "2024" / name).write_text(text)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    listing = read("stars")
    found = {one.path.removeprefix("2024/"): one.target for one in listing.images}
    stars = {"attribute.jpg": 1, "element.png": 2, "webp.webp": 3, "tiff.tif": 4, "sidecar.jpg": 5, "long.jpg": 4}
    stars |= {"large.JPG": 2, "avif.avif": 5}
    assert found == {name: (float(star),) for name, star in stars.items()} | dict.fromkeys(
        ("rejected.jpg", "unrated.jpg", "silent.jpg"), ()
    )
    assert (listing.score_range, listing.accuracy_threshold) == ((1.0, 5.0), 3.0)
    printed = capsys.readouterr().out
    assert "1 rejected (-1) and 2 not rated images are left out" in printed
    assert "passed over" not in printed
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (xmp("5", before=BOMB), "a.xmp: its XMP is damaged .it has a DTD.: save the metadata again, or remove it"),
        (xmp("5")[:-9], "a.xmp: its XMP is damaged .unclosed token"),
        ("", "a.xmp: its XMP is damaged"),
        (xmp("five"), "a.xmp: xmp:Rating is 'five', expected a decimal number"),
        (xmp("99"), r"score 99 of a.jpg is outside of score_range, \[1, 5\]"),
        (xmp("0"), "no image has stars: save the metadata to files"),
    ],
)
def test_ratings_that_cannot_be_read(text: str, message: str, read: Read, tmp_path: Path) -> None:
    save_image(tmp_path / "a.jpg")
    (tmp_path / "a.xmp").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read("stars")
    assert "\n" not in str(error.value)


def test_ratings_of_other_images_in_a_packet_are_not_its_own() -> None:
    own = xmp("3", "element")
    other = own.replace("<xmp:Rating>3</xmp:Rating>", "<xmp:History><rdf:Description xmp:Rating='1'/></xmp:History>")
    assert parse_rating(other.encode()) is None
    assert parse_rating(own.replace("xmp:", "xap:").replace("xmlns:xmp", "xmlns:xap").encode("utf-16")) == "3"


@pytest.mark.parametrize("dataset", ["hf", "folder", "stars"])
def test_no_such_folder(dataset: str, shipped_params: Params, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"labels: there is no folder {tmp_path}/none; dataset: {dataset} needs one"):
        READERS[dataset](Source(tmp_path / "none", shipped_params.manifest, 0, tmp_path))
