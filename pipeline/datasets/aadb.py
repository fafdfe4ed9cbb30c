"""AADB: 9,958 photographs with scores from 0 to 1 (Kong et al., ECCV 2016).

    imgListFiles_label/imgList{Train,Validation,TestNew}Regression_score.txt    image, score
    datasetImages_originalSize/<image>
    AADB_newtest_originalSize/<image>    the test images

The copies of 256x256 pixels in datasetImages_warp256 have lost their proportions and are not read.
"""

from pipeline.datasets.published import DatasetFolder, list_scores
from pipeline.manifest.labels import Listed, Listing, Source

_PARTS = (
    ("train", "Train", ("datasetImages_originalSize",)),
    ("val", "Validation", ("datasetImages_originalSize",)),
    ("test", "TestNew", ("AADB_newtest_originalSize", "datasetImages_originalSize")),
)


def read(source: Source) -> Listing:
    """Lists the images with training, validation and test as published."""
    folder = DatasetFolder(
        "aadb",
        source,
        layout="imgListFiles_label/imgListTrainRegression_score.txt (and Validation, TestNew), "
        "datasetImages_originalSize/<image> and AADB_newtest_originalSize/<image>",
        page="https://github.com/aimerykong/deepImageAestheticsAnalysis",
    )
    listed: list[Listed] = []
    for split, part, places in _PARTS:
        images = folder.find_images(*places)
        name = f"imgList{part}Regression_score.txt"
        file = folder.find_file(f"imgListFiles_label/{name}", f"imgListFiles_label/imgListFiles_label/{name}", name)
        listed += list_scores(folder.read_fields(file, "image", "score"), "image", "score", images, split)
    return folder.listing(listed)
