"""What all readers of published data sets share: true formats are read, anything else is one line that helps."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from charm.runtime.errors import UserError
from pipeline.datasets import READERS
from pipeline.manifest.labels import Listing, Source, check_listing
from pipeline.settings.params import Params
from pipeline.settings.recipes import DATASETS
from tests.pipeline.datasets.small_folders import LABELS, NUM_LISTED, WRITERS, counts, score

TEXT = [(name, place) for name, places in LABELS.items() for place in places if not place.endswith(".xlsx")]
Read = Callable[..., Listing]
Changed = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data set -> its folder; to be copied before it is changed."""
    top = tmp_path_factory.mktemp("published")
    for name, write in WRITERS.items():
        write(top / name)
    return {name: top / name for name in WRITERS}


@pytest.fixture
def read(shipped_params: Params) -> Read:
    """Called with a data set, its folder and settings of params.manifest."""

    def read_labels(dataset: str, folder: Path | None, **settings: Any) -> Listing:
        labels = folder or Path("datasets", dataset)
        changed = replace(shipped_params.manifest, **settings)
        listing = READERS[dataset](Source(labels, changed, 0, Path("unused")))
        check_listing(listing)
        return listing

    return read_labels


@pytest.fixture
def changed(written: dict[str, Path], tmp_path: Path) -> Changed:
    """Called with a data set: a copy of its folder, that may be changed."""

    def link_images(source: str, target: str) -> None:
        (os.link if source.endswith(".jpg") else shutil.copyfile)(source, target)

    return lambda dataset: Path(shutil.copytree(written[dataset], tmp_path / dataset, copy_function=link_images))


def error_of(read: Read, dataset: str, folder: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        read(dataset, folder, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dataset", WRITERS)
def test_every_listed_image_in_the_order_of_the_labels(dataset: str, written: dict[str, Path], read: Read) -> None:
    listing = read(dataset, written[dataset])
    assert len(listing.images) == NUM_LISTED
    there = {one.path for one in listing.images if (written[dataset] / one.path).is_file()}
    assert len(there) == NUM_LISTED - 1  # the third is missing, the unlisted one is not listed
    assert not (written[dataset] / listing.images[2].path).exists()
    assert len({one.where for one in listing.images}) == NUM_LISTED
    assert listing.root == written[dataset]


@pytest.mark.parametrize(
    ("dataset", "name", "path"),
    [
        ("ava", "953780", "images/953780.jpg"),
        ("para", "session2/iaa_pub23_.jpg", "imgs/session2/iaa_pub23_.jpg"),
        ("tad66k", "23@N05618633908.jpg", "TAD66K/23@N05618633908.jpg"),
        ("aadb", "farm1_23_1999673_b.jpg", "AADB_newtest_originalSize/farm1_23_1999673_b.jpg"),
        ("baid", "24452.jpg", "images/24452.jpg"),
        ("spaq", "00024.jpg", "TestImage/00024.jpg"),
        ("koniq10k", "10004473399.jpg", "1024x768/10004473399.jpg"),
    ],
)
def test_name_and_path(dataset: str, name: str, path: str, written: dict[str, Path], read: Read) -> None:
    last = read(dataset, written[dataset]).images[-1]
    assert (last.name, last.path) == (name, path)


@pytest.mark.parametrize("dataset", WRITERS)
def test_scores_and_distributions_on_the_data_sets_scale(dataset: str, written: dict[str, Path], read: Read) -> None:
    listing, recipe = read(dataset, written[dataset]), DATASETS[dataset]
    assert listing.num_bins == recipe.num_bins
    assert (listing.score_range, listing.accuracy_threshold) == (recipe.score_range, recipe.accuracy_threshold)
    low, high = listing.score_range
    for index, one in enumerate(listing.images):
        if recipe.num_bins > 1:
            assert list(one.target) == counts(index, recipe.num_bins)
        else:
            assert one.target[0] == pytest.approx(low + (high - low) * score(index), abs=1e-5)


@pytest.mark.parametrize(
    ("dataset", "splits"),
    [
        ("ava", {"train": 20, "test": 4}),
        ("para", {"train": 20, "test": 4}),
        ("tad66k", {"train": 20, "test": 4}),
        ("aadb", {"train": 16, "val": 4, "test": 4}),
        ("baid", {"train": 16, "val": 4, "test": 4}),
        ("spaq", {None: 24}),
        ("koniq10k", {None: 24}),
    ],
)
def test_published_splits(dataset: str, splits: dict[str | None, int], written: dict[str, Path], read: Read) -> None:
    assert Counter(one.split for one in read(dataset, written[dataset]).images) == splits


@pytest.mark.parametrize("dataset", WRITERS)
def test_without_a_folder_given_it_is_the_one_named_like_the_data_set(
    dataset: str, written: dict[str, Path], read: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / dataset).symlink_to(written[dataset])
    monkeypatch.chdir(tmp_path)
    assert len(read(dataset, None).images) == NUM_LISTED


@pytest.mark.parametrize("dataset", WRITERS)
def test_no_folder_says_what_is_expected_and_where_to_get_it(dataset: str, read: Read, tmp_path: Path) -> None:
    message = error_of(read, dataset, tmp_path / "nowhere")
    assert message.startswith(f"dataset {dataset}: there is no ")
    places = (f"in {tmp_path / 'nowhere'} (labels); expected ", f"in {tmp_path} (manifest.root); expected ")
    assert any(place in message for place in places)
    assert "; to be had from https://" in message


@pytest.mark.parametrize(("dataset", "place"), [(name, place) for name, places in LABELS.items() for place in places])
def test_missing_label_file_is_named(dataset: str, place: str, changed: Changed, read: Read) -> None:
    folder = changed(dataset)
    (folder / place).unlink()
    assert f"there is no file {place}" in error_of(read, dataset, folder)


@pytest.mark.parametrize("dataset", WRITERS)
def test_missing_folder_of_images_is_named(dataset: str, changed: Changed, read: Read) -> None:
    folder = changed(dataset)
    images = read(dataset, folder).images[0].path.split("/")[0]
    shutil.rmtree(folder / images)
    assert f"there is no folder {images}" in error_of(read, dataset, folder)


@pytest.mark.parametrize(
    ("dataset", "other"),
    [pair for pair in permutations(WRITERS, 2) if set(pair) != {"tad66k", "baid"}],  # the same columns
)
def test_labels_of_another_data_set_are_one_clear_line(dataset: str, other: str, changed: Changed, read: Read) -> None:
    folder = changed(dataset)
    place = LABELS[dataset][0]
    shutil.copy(changed(other) / LABELS[other][0], folder / place)
    message = error_of(read, dataset, folder)
    assert message.startswith(str(folder / place))
    if dataset == "spaq":
        assert "not an Excel file" in message
    elif other == "spaq":
        assert "an Excel file (.xlsx)" in message
    else:
        assert f":1: not the labels of {dataset}: expected " in message
        assert "; found " in message


def test_wrong_columns_are_shown_beside_the_right_ones(changed: Changed, read: Read) -> None:
    folder = changed("tad66k")
    shutil.copy(changed("koniq10k") / LABELS["koniq10k"][0], folder / "labels/merge/test.csv")
    assert error_of(read, "tad66k", folder) == (
        f"{folder}/labels/merge/test.csv:1: not the labels of tad66k: expected the columns image, score; missing "
        "image, score; found image_name, c1, c2, c3, c4, c5, c_total, MOS and 2 more"
    )


def test_wrong_fields_are_shown_beside_the_right_ones(changed: Changed, read: Read) -> None:
    folder = changed("aadb")
    file = folder / "imgListFiles_label/imgListTrainRegression_score.txt"
    file.write_text("a.jpg 0.5\nb.jpg, 0.5, 1\n")
    assert error_of(read, "aadb", folder) == (
        f"{file}:2: not the labels of aadb: expected 2 fields with spaces between them (image, score); found 3 "
        "(b.jpg,, 0.5,, 1)"
    )


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda data: b"\xef\xbb\xbf" + data.removeprefix(b"\xef\xbb\xbf"), id="byte order mark"),
        pytest.param(lambda data: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"), id="lines of Windows"),
        pytest.param(lambda data: data.replace(b"\r\n", b"\n"), id="lines of Unix"),
        pytest.param(lambda data: data.rstrip(), id="no last line end"),
        pytest.param(lambda data: data + b"\n\n  \n", id="empty lines at the end"),
        pytest.param(lambda data: data.replace(b"\n", b"\n\n", 5), id="empty lines between"),
        pytest.param(lambda data: data.replace(b",", b";"), id="semicolons"),
        pytest.param(lambda data: data.decode("utf-8-sig").encode("utf-16"), id="UTF-16"),
    ],
)
@pytest.mark.parametrize(("dataset", "place"), TEXT)
def test_the_same_labels_in_other_clothes(
    dataset: str, place: str, edit: Callable[[bytes], bytes], written: dict[str, Path], changed: Changed, read: Read
) -> None:
    folder = changed(dataset)
    (folder / place).write_bytes(edit((folder / place).read_bytes()))
    expected = [(one.path, one.target, one.split) for one in read(dataset, written[dataset]).images]
    assert [(one.path, one.target, one.split) for one in read(dataset, folder).images] == expected


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(lambda data: data.replace(b",", b"^").replace(b" ", b","), "not the labels of", id="separator"),
        pytest.param(lambda data: b"", "", id="empty"),
        pytest.param(lambda data: b"\n\n", "", id="empty lines"),
        pytest.param(lambda data: data + b"\xe9", "byte 0xe9 is no text; expected UTF-8", id="Latin-1"),
        pytest.param(lambda data: data + b"one too few\n", "", id="a row of another kind"),
    ],
)
@pytest.mark.parametrize(("dataset", "place"), [pair for pair in TEXT if not pair[1].endswith(".jpgl")])  # see test_ava
def test_mistake_in_the_labels_is_one_line_with_the_file(
    dataset: str, place: str, edit: Callable[[bytes], bytes], message: str, changed: Changed, read: Read
) -> None:
    folder = changed(dataset)
    (folder / place).write_bytes(edit((folder / place).read_bytes().rstrip() + b"\n"))
    found = error_of(read, dataset, folder)
    assert found.startswith(str(folder / place))
    assert message in found


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param("x.jpg,good", ":26: score is 'good', expected a decimal number", id="text for a score"),
        pytest.param("x.jpg,", ":26: score is '', expected a decimal number", id="no score"),
        pytest.param('x.jpg,"0,5"', ":26: score is '0,5', expected a decimal number", id="decimal comma"),
        pytest.param(
            "x.jpg,10.01", ":26: the score 10.01 of images/x.jpg is outside of score_range, [0, 10]", id="range"
        ),
        pytest.param("x.jpg,nan", ":26: score is 'nan', expected a decimal number", id="nan"),
        pytest.param(",5", ":26: image is empty", id="no name"),
        pytest.param("  ,5", ":26: image is empty", id="a blank name"),
        pytest.param("x.jpg", ":26: 1 field; expected 2, as the header has", id="too few cells"),
        pytest.param("x.jpg,5,6", ":26: 3 fields; expected 2, as the header has", id="too many cells"),
        pytest.param("a" * 200_000 + ",5", ":26: not a CSV file: field larger", id="endless"),
    ],
)
def test_bad_row_is_named_with_its_line(row: str, message: str, changed: Changed, read: Read) -> None:
    folder = changed("baid")
    file = folder / "dataset/train_set.csv"
    file.write_text("image,score\n" + "".join(f"{i}.jpg,5\n" for i in range(24)) + row + "\n")
    assert error_of(read, "baid", folder).startswith(f"{file}{message}")


@pytest.mark.parametrize(
    ("dataset", "before", "after"),
    [
        pytest.param("ava", "images", "image", id="AVA"),
        pytest.param("ava", "images", "images/images", id="AVA, unpacked in a folder of its own"),
        pytest.param("tad66k", "TAD66K", "images", id="TAD66K"),
        pytest.param("tad66k", "labels", "dataset", id="TAD66K, labels of the repository"),
        pytest.param("tad66k", "labels/merge", "merge", id="TAD66K, labels beside"),
        pytest.param("aadb", "imgListFiles_label", "imgListFiles_label/imgListFiles_label", id="AADB"),
        pytest.param("baid", "dataset/train_set.csv", "train_set.csv", id="BAID"),
        pytest.param("para", "annotation/PARA-GiaaTest.csv", "PARA-GiaaTest.csv", id="PARA"),
        pytest.param("spaq", LABELS["spaq"][0], LABELS["spaq"][0].split("/")[1], id="SPAQ"),
    ],
)
def test_other_layouts_that_are_around(dataset: str, before: str, after: str, changed: Changed, read: Read) -> None:
    folder = changed(dataset)
    (folder / before).rename(folder / "aside")
    (folder / after).parent.mkdir(parents=True, exist_ok=True)
    (folder / "aside").rename(folder / after)
    images = read(dataset, folder).images
    assert sum((folder / one.path).is_file() for one in images) == NUM_LISTED - 1
