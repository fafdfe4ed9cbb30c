"""PARA: columns are found by name, whatever their order."""

from pathlib import Path

from pipeline.datasets import READERS
from pipeline.manifest.labels import Source
from pipeline.settings.params import Params
from tests.pipeline.datasets.small_folders import write, write_para


def test_columns_in_another_order(shipped_params: Params, tmp_path: Path) -> None:
    write_para(tmp_path)
    bins = [f"aestheticScore_{half / 2:.1f}" for half in range(10, 1, -1)]
    write(
        tmp_path / "annotation/PARA-GiaaTest.csv",
        ["userId," + ",".join(bins) + ",imageName,sessionId", "u,9,8,7,6,5,4,3,2,1,iaa_pub7_.jpg,session9"],
    )
    last = READERS["para"](Source(tmp_path, shipped_params.manifest, 0, tmp_path)).images[-1]
    assert (last.name, last.split) == ("session9/iaa_pub7_.jpg", "test")
    assert last.target == (1, 2, 3, 4, 5, 6, 7, 8, 9)
