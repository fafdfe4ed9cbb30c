"""List the pictures of the data set, open each once, and say which can be used."""

from pathlib import Path

from pipeline.datasets import READERS
from pipeline.errors import UserError
from pipeline.executor import Job, make_missing
from pipeline.inspection import build_rows, check_listing, find_leaks, inspect_pictures, stat_picture
from pipeline.manifest import write_manifest
from pipeline.params import Params
from pipeline.store import code_digest, fingerprint, read_sidecar
from stages import run_stage

OUT = Path("data/manifest")
_BLOCK = 256  # pictures per task


def main(params: Params) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    settings = params.manifest
    listing = READERS[params.dataset](settings, params.seed, OUT / "pictures")
    check_listing(listing)

    code = code_digest("pipeline.images", "pipeline.inspection")
    jobs = []
    for start in range(0, len(listing.pictures), _BLOCK):
        stats = [stat_picture(listing.root, picture) for picture in listing.pictures[start : start + _BLOCK]]
        name = fingerprint("manifest", code, str(listing.root.resolve()), stats, settings.max_pixels, settings.max_edge)
        paths = [path for path, _, _ in stats]
        arguments = (str(listing.root.resolve()), paths, settings.max_pixels, settings.max_edge)
        jobs.append(Job(f"pictures {start} to {start + len(paths) - 1}", name, arguments))
    found = []
    for path in make_missing("manifest", jobs, inspect_pictures, params.dask).values():
        found += (read_sidecar(path) or {})["pictures"]

    rows = build_rows(listing, found, settings, params.seed)
    facts = write_manifest(OUT, rows, listing, params.dataset)
    rejected = facts["listed"] - facts["packed"]
    print(f"manifest: {facts['listed']} listed = {facts['packed']} kept + {rejected} rejected")
    print("manifest: " + ", ".join(f"{count} {split}" for split, count in facts["splits"].items()))
    if rejected:
        reasons = ", ".join(f"{count} {reason}" for reason, count in facts["rejected"].items())
        print(f"manifest: rejected: {reasons}; the list is in {OUT / 'rejected.csv'}")
    if leaks := find_leaks(rows):
        print(f"manifest: {len(leaks)} pictures stand in more than one split under other names, for example {leaks[0]}")
    if rejected > settings.max_reject_frac * facts["listed"]:
        raise UserError(
            f"{rejected} of {facts['listed']} listed pictures cannot be used ({facts['rejected']}), more than "
            f"manifest.max_reject_frac = {settings.max_reject_frac:g}; see {OUT / 'rejected.csv'}"
        )
    for split in ("train", "val", "test"):
        if not facts["splits"].get(split):
            raise UserError(
                f"no picture is in the split {split!r} ({facts['splits']}): add pictures, or raise its share"
            )


if __name__ == "__main__":
    run_stage(main)
