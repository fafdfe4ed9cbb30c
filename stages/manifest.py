"""List the images of the data set, open each once, and say which can be used."""

from pathlib import Path
from typing import Any

from charm.images.find import escape_path
from charm.images.reasons import PASSING
from charm.runtime.disk import fingerprint
from charm.runtime.errors import UserError, escape_controls, format_count
from pipeline.datasets import READERS
from pipeline.manifest.labels import SPLITS, Listing, Source, average_ratings, check_listing
from pipeline.manifest.root import RootFolder
from pipeline.manifest.rows import build_rows, inspect_images, stat_image
from pipeline.manifest.splits import find_clashes
from pipeline.manifest.table import DatasetFacts, write_manifest
from pipeline.settings.params import ManifestParams, Params
from pipeline.work.code import code_digest, own_closure
from pipeline.work.executor import Job, make_missing
from pipeline.work.store import read_sidecar, store_folder
from stages import run_stage

OUT = Path("data/manifest")
_BLOCK = 256  # images per task


def main(params: Params) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    settings = params.manifest
    listing = READERS[params.dataset](Source(Path(params.labels), settings, params.seed, OUT / "images"))
    check_listing(listing)
    listing = average_ratings(listing)

    code = code_digest("pipeline.manifest.rows", *own_closure("charm.images.quarantine"))
    jobs = []
    for start in range(0, len(listing.images), _BLOCK):
        stats = [stat_image(listing.root, image) for image in listing.images[start : start + _BLOCK]]
        name = fingerprint("manifest", code, str(listing.root.resolve()), stats, settings.max_pixels, settings.max_edge)
        while _has_passing_reasons(name):  # not good enough to be used again: made anew, under a name of its own
            name = fingerprint(name)
        paths = [path for path, *_ in stats]
        arguments = (str(listing.root.resolve()), paths, settings.max_pixels, settings.max_edge)
        jobs.append(Job(f"images {start} to {start + len(paths) - 1}", name, arguments, images=len(paths)))
    found = []
    for path in make_missing("manifest", jobs, inspect_images, params.dask).values():
        found += (read_sidecar(path) or {})["images"]

    rows = build_rows(listing, found, settings, params.seed)
    folder = RootFolder(listing.root)
    meanings = folder.explain({row["path"]: row["reason"] for row in rows if row["reason"]})
    facts = write_manifest(OUT, rows, listing, params.dataset, settings.max_edge, settings.colour, meanings)
    _say(facts, listing, folder.find_unlisted([row["path"] for row in rows]))
    _check_equal_files(rows, listing, facts, settings)
    _check_counts(rows, facts, settings, meanings)


def _say(facts: DatasetFacts, listing: Listing, unlisted: list[str]) -> None:
    """Prints what became of the images that the labels list, and of those that they do not list."""
    rejected = facts.listed - facts.packed
    print(f"manifest: {facts.listed} listed = {facts.packed} kept + {rejected} rejected")
    if rejected:
        reasons = ", ".join(f"{count} {reason}" for reason, count in facts.rejected.items())
        print(f"manifest: rejected: {reasons}; the list is in {OUT / 'rejected.csv'}")
    if unlisted:
        root = escape_controls(str(listing.root))
        left = format_count(len(unlisted), "image")
        print(f"manifest: {left} below {root} in no row of labels, such as {unlisted[0]!r}")
    if facts.rated_again:
        spread = (
            "" if facts.mean_spread is None else f"; their standard deviation is {facts.mean_spread:.3g} on average"
        )
        print(f"manifest: {format_count(facts.rated_again, 'image')} with several ratings, which are averaged{spread}")
    drawn = [split for split in ("val", "test") if listing.given_splits and split not in listing.given_splits]
    note = f"; {' and '.join(drawn)} drawn from train, as the labels name none" if drawn else ""
    print("manifest: " + ", ".join(f"{count} {split}" for split, count in facts.splits.items()) + note)


def _check_equal_files(
    rows: list[dict[str, Any]], listing: Listing, facts: DatasetFacts, settings: ManifestParams
) -> None:
    """Says which equal files have different labels or, as images of one group may, stand in different splits."""
    if clashes := find_clashes(rows, "sha256", "target"):
        problem = _describe(clashes, rows, "target", listing, "the same files with different labels")
        if facts.notes["label_conflict"] > settings.max_reject_frac * facts.packed:
            raise UserError(
                f"{problem}; more than manifest.max_reject_frac = {settings.max_reject_frac:g}: give one file one "
                "label, or list all its ratings under one path to have them averaged"
            )
        print(f"manifest: {escape_controls(problem)}")
    for column, what in (("sha256", "the same files"), ("group", "of the same group")):
        if clashes := find_clashes(rows, column, "split"):
            problem = _describe(clashes, rows, "split", listing, f"{what} in more than one split")
            if settings.leaks == "refuse":
                raise UserError(
                    f"{problem}; take them out of one, or, where published splits are to be kept, set "
                    "manifest.leaks: allow"
                )
            print(f"manifest: {escape_controls(problem)}")


def _describe(clashes: list[list[int]], rows: list[dict[str, Any]], column: str, listing: Listing, what: str) -> str:
    """Counts the images that clash in this column, and names two of them with their lines."""
    first = clashes[0][0]
    other = next(index for index in clashes[0] if rows[index][column] != rows[first][column])
    found = [(rows[index]["split"], listing.images[index]) for index in (first, other)]
    places = " and ".join(
        f"{one.name} {f'in {split}' if column == 'split' else f'labelled {list(one.target)}'} ({one.where})"
        for split, one in found
    )
    return f"{sum(map(len, clashes))} listed images are {what}, for example {places}"


def _check_counts(
    rows: list[dict[str, Any]], facts: DatasetFacts, settings: ManifestParams, meanings: dict[str, str]
) -> None:
    """Raises UserError if too many of the rated images are rejected, or a split is empty."""
    unrated = facts.rejected.get("unrated", 0)
    rejected, rated = facts.listed - facts.packed - unrated, facts.listed - unrated
    if rejected > settings.max_reject_frac * rated:
        reasons = {reason: count for reason, count in facts.rejected.items() if reason != "unrated"}
        found = next(
            (f"; {escape_path(row['path'])}: {meanings[row['path']]}" for row in rows if row["path"] in meanings), ""
        )
        raise UserError(
            f"{rejected} of {rated} listed images cannot be used ({reasons}), more than "
            f"manifest.max_reject_frac = {settings.max_reject_frac:g}; see {OUT / 'rejected.csv'}{found}"
        )
    for split in SPLITS:
        if not facts.splits.get(split):
            groups = f" of more groups ({settings.group_column})" if settings.group_column else ""
            raise UserError(
                f"no image is in the split {split!r} ({facts.splits}): add images{groups}, or raise its share"
            )


def _has_passing_reasons(name: str) -> bool:
    """Tells whether a finished block holds reasons that may pass, so that it is inspected again."""
    sidecar = read_sidecar(store_folder("manifest") / f"{name}.json") or {"images": []}
    return any(facts["reason"] in PASSING for facts in sidecar["images"])


if __name__ == "__main__":
    run_stage(main)
