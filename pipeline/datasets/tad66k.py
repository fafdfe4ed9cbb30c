"""TAD66K: 66,327 photographs of 47 themes with scores from 0 to 10 (He et al., IJCAI 2022).

labels/merge/train.csv, labels/merge/test.csv    image,score
TAD66K/<image>
"""

from pipeline.datasets.published import DatasetFolder, list_scores
from pipeline.manifest.labels import Listed, Listing, Source


def read(source: Source) -> Listing:
    """Lists the images with training and test as published; validation is drawn from training."""
    folder = DatasetFolder(
        "tad66k",
        source,
        layout="labels/merge/train.csv, labels/merge/test.csv and TAD66K/<image>",
        page="https://github.com/woshidandan/TANet-image-aesthetics-and-quality-assessment",
    )
    images = folder.find_images("TAD66K", "images")
    listed: list[Listed] = []
    for split, part in (("train", "train"), ("test", "test")):
        file = folder.find_file(f"labels/merge/{part}.csv", f"dataset/merge/{part}.csv", f"merge/{part}.csv")
        listed += list_scores(folder.read_csv(file, "image", "score"), "image", "score", images, split)
    return folder.listing(listed)
