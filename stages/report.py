"""Show the run on one page.

Writes runs/report/report.html, which needs no other file and no network.
"""

from pathlib import Path

import cv2

from charm.runtime.disk import atomic_write
from pipeline.report.page import render_report
from pipeline.settings.params import Params
from stages import run_stage

OUT = Path("runs/report")


def main(params: Params) -> None:
    cv2.setNumThreads(1)
    page = render_report(params, Path("data"), Path("runs")).encode()
    OUT.mkdir(parents=True, exist_ok=True)
    with atomic_write(OUT / "report.html") as file:
        file.write(page)
    print(f"report: {OUT / 'report.html'}, {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    run_stage(main)
