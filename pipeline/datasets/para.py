"""PARA: 31,220 photographs with counts of the scores 1.0, 1.5 ... 5.0 (Yang et al., CVPR 2022).

annotation/PARA-GiaaTrain.csv, annotation/PARA-GiaaTest.csv
imgs/<sessionId>/<imageName>
"""

from charm.labels.tables import read_number
from pipeline.datasets.published import DatasetFolder, read_name
from pipeline.manifest.labels import Listed, Listing, Source

_COUNTS = tuple(f"aestheticScore_{half / 2:.1f}" for half in range(2, 11))


def read(source: Source) -> Listing:
    """Lists the images with training and test as published; validation is drawn from training."""
    folder = DatasetFolder(
        "para",
        source,
        layout="annotation/PARA-GiaaTrain.csv, annotation/PARA-GiaaTest.csv and imgs/<sessionId>/<imageName>",
        page="https://cv-datasets.institutecv.com/#/data-sets",
    )
    images = folder.find_images("imgs")
    listed = []
    for split, part in (("train", "Train"), ("test", "Test")):
        file = folder.find_file(f"annotation/PARA-Giaa{part}.csv", f"PARA-Giaa{part}.csv")
        for where, row in folder.read_csv(file, "sessionId", "imageName", *_COUNTS):
            name = f"{read_name(row, 'sessionId', where)}/{read_name(row, 'imageName', where)}"
            target = tuple(read_number(row[count], count, where) for count in _COUNTS)
            listed.append(Listed(name, f"{images}/{name}", target, split, where))
    return folder.listing(listed)
