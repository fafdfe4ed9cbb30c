"""AVA: 255,530 photographs of dpchallenge.com with counts of the scores 1 to 10 (Murray et al., CVPR 2012).

AVA.txt                                     index, image id, ten counts, two tags, challenge
aesthetics_image_lists/generic_test.jpgl    an image id per line
images/<image id>.jpg
"""

from charm.labels.tables import read_number
from charm.runtime.errors import UserError
from pipeline.datasets.published import DatasetFolder
from pipeline.manifest.labels import Listed, Listing, Source

_COUNTS = tuple(f"count of {score}" for score in range(1, 11))
_FIELDS = ("index", "image id", *_COUNTS, "first tag", "second tag", "challenge")


def read(source: Source) -> Listing:
    """Lists the images, test as in the official list; the others are for training, with validation drawn from them."""
    folder = DatasetFolder(
        "ava",
        source,
        layout="AVA.txt, aesthetics_image_lists/generic_test.jpgl and images/<image id>.jpg",
        page="https://github.com/imfing/ava_downloader",
    )
    labels = folder.find_file("AVA.txt")
    tests = folder.find_file("aesthetics_image_lists/generic_test.jpgl", "generic_test.jpgl")
    images = folder.find_images("images/images", "images", "image")
    test_ids = {row["image id"] for _, row in folder.read_fields(tests, "image id")}
    listed = []
    for where, row in folder.read_fields(labels, *_FIELDS):
        name = row["image id"]
        target = tuple(read_number(row[count], count, where) for count in _COUNTS)
        listed.append(Listed(name, f"{images}/{name}.jpg", target, "test" if name in test_ids else "train", where))
    unlabelled = len(test_ids) - sum(one.split == "test" for one in listed)
    if unlabelled == len(test_ids):
        raise UserError(f"{tests}: none of its {len(test_ids)} image ids is in {labels}")
    if unlabelled:
        print(f"manifest: {unlabelled} of the {len(test_ids)} image ids of {tests} have no scores in {labels}")
    return folder.listing(listed)
