"""BAID: 60,337 works of art with scores from 0 to 10 (Yi et al., CVPR 2023).

dataset/train_set.csv, dataset/val_set.csv, dataset/test_set.csv    image,score
images/<image>
"""

from pipeline.datasets.published import DatasetFolder, list_scores
from pipeline.manifest.labels import SPLITS, Listed, Listing, Source


def read(source: Source) -> Listing:
    """Lists the images with training, validation and test as published."""
    folder = DatasetFolder(
        "baid",
        source,
        layout="dataset/train_set.csv, dataset/val_set.csv, dataset/test_set.csv and images/<image>",
        page="https://github.com/Dreemurr-T/BAID",
    )
    images = folder.find_images("images")
    listed: list[Listed] = []
    for split in SPLITS:
        file = folder.find_file(f"dataset/{split}_set.csv", f"{split}_set.csv")
        listed += list_scores(folder.read_csv(file, "image", "score"), "image", "score", images, split)
    return folder.listing(listed)
