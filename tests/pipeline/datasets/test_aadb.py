"""AADB: the test images lie in a folder of their own, and the squeezed copies are left alone."""

from pathlib import Path

import pytest

from charm.runtime.errors import UserError
from pipeline.datasets import READERS
from pipeline.manifest.labels import Source
from pipeline.settings.params import Params
from tests.pipeline.datasets.small_folders import write_aadb


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_aadb(tmp_path / "aadb")
    return tmp_path / "aadb"


def test_test_images_among_the_others(shipped_params: Params, folder: Path) -> None:
    for file in (folder / "AADB_newtest_originalSize").iterdir():
        file.replace(folder / "datasetImages_originalSize" / file.name)
    (folder / "AADB_newtest_originalSize").rmdir()
    images = READERS["aadb"](Source(folder, shipped_params.manifest, 0, folder)).images
    assert all((folder / one.path).is_file() for one in images if one.split == "test")


def test_squeezed_copies_are_not_taken(shipped_params: Params, folder: Path) -> None:
    (folder / "datasetImages_originalSize").rename(folder / "datasetImages_warp256")
    with pytest.raises(UserError, match="there is no folder datasetImages_originalSize in"):
        READERS["aadb"](Source(folder, shipped_params.manifest, 0, folder))
