"""AVA: the official test list, and ids in it that have no scores."""

from pathlib import Path

import pytest

from charm.runtime.errors import UserError
from pipeline.datasets import READERS
from pipeline.manifest.labels import Listing, Source
from pipeline.settings.params import Params
from tests.pipeline.datasets.small_folders import write_ava

TESTS = "aesthetics_image_lists/generic_test.jpgl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_ava(tmp_path / "ava")
    return tmp_path / "ava"


def read(params: Params, folder: Path) -> Listing:
    return READERS["ava"](Source(folder, params.manifest, 0, folder))


def test_test_images_are_those_of_the_list(
    shipped_params: Params, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [one.name for one in read(shipped_params, folder).images if one.split == "test"]
    assert names == (folder / TESTS).read_text().split()[:4]
    assert capsys.readouterr().out == (
        f"manifest: 1 of the 5 image ids of {folder}/{TESTS} have no scores in {folder}/AVA.txt\n"
    )


def test_the_counts_are_columns_3_to_12(shipped_params: Params, folder: Path) -> None:
    (folder / "AVA.txt").write_text("1 953780 0 1 5 17 38 36 15 6 5 1 1 22 1396\n2 953777 1 2 3 4 5 6 7 8 9 10 0 0 7\n")
    first, second = read(shipped_params, folder).images
    assert first.target == (0, 1, 5, 17, 38, 36, 15, 6, 5, 1)
    assert second.target == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    assert (second.name, second.path, second.where) == ("953777", "images/953777.jpg", f"{folder}/AVA.txt:2")


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        pytest.param("1\n2\n3\n", "none of its 3 image ids is in ", id="ids of something else"),
        pytest.param("", "is empty", id="empty"),
        pytest.param("953619.jpg 1\n", ":1: not the labels of ava: expected 1 fields", id="two columns"),
        pytest.param("953619.jpg\n", "none of its 1 image ids is in ", id="file names"),
    ],
)
def test_a_list_that_names_no_test_image(tests: str, message: str, shipped_params: Params, folder: Path) -> None:
    (folder / TESTS).write_text(tests)
    with pytest.raises(UserError) as error:
        read(shipped_params, folder)
    assert str(error.value).startswith(f"{folder / TESTS}")
    assert message in str(error.value)


def test_text_for_a_count_is_named_with_its_line(shipped_params: Params, folder: Path) -> None:
    (folder / "AVA.txt").write_text("1 953619 0 1 5 x 38 36 15 6 5 1 1 22 1396\n")
    with pytest.raises(UserError, match=r"AVA\.txt:1: count of 4 is 'x', expected a decimal number"):
        read(shipped_params, folder)
