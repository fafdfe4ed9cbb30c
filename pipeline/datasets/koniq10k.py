"""KonIQ-10k: 10,073 photographs with quality scores from 0 to 100 (Hosu et al., TIP 2020).

koniq10k_distributions_sets.csv          image_name, MOS on 0..100, set and others, or
koniq10k_scores_and_distributions.csv    image_name, MOS on 1..5, MOS_zscore on 0..100 and others
1024x768/<image_name>
"""

from dataclasses import replace

from pipeline.datasets.published import DatasetFolder, list_scores
from pipeline.manifest.labels import Listing, Source, read_split


def read(source: Source) -> Listing:
    """Lists the images; splits are drawn, as in the paper, or published with `manifest.split_column: set`."""
    folder = DatasetFolder(
        "koniq10k",
        source,
        layout="koniq10k_distributions_sets.csv or koniq10k_scores_and_distributions.csv, and 1024x768/<image_name>",
        page="https://database.mmsp-kn.de/koniq-10k-database.html",
    )
    file = folder.find_file("koniq10k_distributions_sets.csv", "koniq10k_scores_and_distributions.csv")
    score = "MOS" if file.name == "koniq10k_distributions_sets.csv" else "MOS_zscore"
    columns = ("image_name", score, *([source.settings.split_column] if source.settings.split_column else []))
    rows = folder.read_csv(file, *columns)
    listed = list_scores(rows, "image_name", score, folder.find_images("1024x768"), split=None)
    if source.settings.split_column:
        splits = [read_split(row[source.settings.split_column]) for _, row in rows]
        listed = [replace(one, split=split) for one, split in zip(listed, splits, strict=True)]
    return folder.listing(listed)
