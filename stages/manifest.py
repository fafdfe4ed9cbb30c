"""List the images of the data set, open each once, and say which can be used."""

from pathlib import Path
from typing import Any

from charm.images.reasons import PASSING
from charm.runtime.disk import fingerprint
from charm.runtime.errors import UserError
from pipeline.datasets import READERS
from pipeline.manifest.labels import Listing, Source
from pipeline.manifest.rows import build_rows, check_listing, inspect_images, stat_image
from pipeline.manifest.table import find_leaks, write_manifest
from pipeline.settings.params import Params
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

    code = code_digest("pipeline.manifest.rows", *own_closure("charm.images.quarantine"))
    jobs = []
    for start in range(0, len(listing.images), _BLOCK):
        stats = [stat_image(listing.root, image) for image in listing.images[start : start + _BLOCK]]
        name = fingerprint("manifest", code, str(listing.root.resolve()), stats, settings.max_pixels, settings.max_edge)
        while _has_passing_reasons(name):  # not good enough to be used again: made anew, under a name of its own
            name = fingerprint(name)
        paths = [path for path, *_ in stats]
        arguments = (str(listing.root.resolve()), paths, settings.max_pixels, settings.max_edge)
        jobs.append(Job(f"images {start} to {start + len(paths) - 1}", name, arguments))
    found = []
    for path in make_missing("manifest", jobs, inspect_images, params.dask).values():
        found += (read_sidecar(path) or {})["images"]

    rows = build_rows(listing, found, settings, params.seed)
    facts = write_manifest(OUT, rows, listing, params.dataset, settings.max_edge)
    rejected = facts.listed - facts.packed
    print(f"manifest: {facts.listed} listed = {facts.packed} kept + {rejected} rejected")
    print("manifest: " + ", ".join(f"{count} {split}" for split, count in facts.splits.items()))
    if rejected:
        reasons = ", ".join(f"{count} {reason}" for reason, count in facts.rejected.items())
        print(f"manifest: rejected: {reasons}; the list is in {OUT / 'rejected.csv'}")
    if leaks := _describe_leaks(rows, listing):
        if settings.leaks == "refuse":
            raise UserError(
                f"{leaks}; take them out of one, or, where published splits are to be kept, set manifest.leaks: allow"
            )
        print(f"manifest: {leaks}")
    if rejected > settings.max_reject_frac * facts.listed:
        raise UserError(
            f"{rejected} of {facts.listed} listed images cannot be used ({facts.rejected}), more than "
            f"manifest.max_reject_frac = {settings.max_reject_frac:g}; see {OUT / 'rejected.csv'}"
        )
    for split in ("train", "val", "test"):
        if not facts.splits.get(split):
            raise UserError(f"no image is in the split {split!r} ({facts.splits}): add images, or raise its share")


def _has_passing_reasons(name: str) -> bool:
    """Tells whether a finished block holds reasons that may pass, so that it is inspected again."""
    sidecar = read_sidecar(store_folder("manifest") / f"{name}.json") or {"images": []}
    return any(facts["reason"] in PASSING for facts in sidecar["images"])


def _describe_leaks(rows: list[dict[str, Any]], listing: Listing) -> str:
    """Names two images of the same bytes in different splits; "" where there are none."""
    leaks = find_leaks(rows)
    if not leaks:
        return ""
    first = leaks[0][0]
    other = next(index for index in leaks[0] if rows[index]["split"] != rows[first]["split"])
    places = (f"{rows[i]['name']} in {rows[i]['split']} ({listing.images[i].where})" for i in (first, other))
    count = sum(len(group) for group in leaks)
    return f"{count} listed images are the same files in more than one split, for example {' and '.join(places)}"


if __name__ == "__main__":
    run_stage(main)
