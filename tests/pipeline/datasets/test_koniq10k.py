"""KonIQ-10k: two label files with scores on different scales, and published splits for who asks for them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from charm.runtime.errors import UserError
from pipeline.datasets import READERS
from pipeline.manifest.labels import Listing, Source, check_listing
from pipeline.settings.params import Params
from tests.pipeline.datasets.small_folders import write, write_koniq10k

SCORES = [
    '"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","MOS_zscore"',
    '"10004473376.jpg",0,0,25,73,7,105,3.82857142857143,0.527277894494,77.3836206896552',
    '"10007357496.jpg",0,3,45,47,1,96,3.47916666666667,0.580003024795,68.7285714285714',
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_koniq10k(tmp_path / "koniq10k")
    return tmp_path / "koniq10k"


def read(params: Params, folder: Path, **settings: Any) -> Listing:
    listing = READERS["koniq10k"](Source(folder, replace(params.manifest, **settings), 0, folder))
    check_listing(listing)
    return listing


def test_published_splits(shipped_params: Params, folder: Path) -> None:
    splits = Counter(one.split for one in read(shipped_params, folder, split_column="set").images)
    assert splits == {"train": 16, "val": 4, "test": 4}


def test_unknown_split_is_named_with_its_line(shipped_params: Params, folder: Path) -> None:
    file = folder / "koniq10k_distributions_sets.csv"
    file.write_text(file.read_text().replace("validation", "vali", 1))
    with pytest.raises(UserError, match=r"sets\.csv:18: split 'vali' is not known; did you mean 'val'\?"):
        read(shipped_params, folder, split_column="set")


def test_scores_of_the_other_file_are_those_on_0_to_100(shipped_params: Params, folder: Path) -> None:
    (folder / "koniq10k_distributions_sets.csv").unlink()
    write(folder / "koniq10k_scores_and_distributions.csv", SCORES)
    listing = read(shipped_params, folder)
    assert [one.target for one in listing.images] == [(77.3836206896552,), (68.7285714285714,)]
    assert listing.score_range == (0, 100)


def test_the_other_file_has_no_splits(shipped_params: Params, folder: Path) -> None:
    (folder / "koniq10k_distributions_sets.csv").unlink()
    write(folder / "koniq10k_scores_and_distributions.csv", SCORES)
    with pytest.raises(UserError, match=r"distributions\.csv:1: .*; missing set; found image_name, c1"):
        read(shipped_params, folder, split_column="set")


def test_smaller_copies_are_not_taken(shipped_params: Params, folder: Path) -> None:
    (folder / "1024x768").rename(folder / "512x384")
    with pytest.raises(UserError, match="there is no folder 1024x768 in"):
        read(shipped_params, folder)
