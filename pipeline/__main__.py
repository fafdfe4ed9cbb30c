"""Looks after what the stages have made.

python -m pipeline verify [--full]    is everything under data/ and runs/ whole? Exit code 4 if not.
python -m pipeline prune              removes from the store what no folder uses any more
"""

import argparse
import sys
from pathlib import Path

from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.store import prune

DAMAGED = 4  # exit code


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description="Looks after what the stages have made.")
    commands = parser.add_subparsers(dest="command", required=True)
    about = "check that all files under data/ and runs/ are whole and belong together; exit code 4 if not"
    verify = commands.add_parser("verify", help=about, description=about)
    verify.add_argument("--full", action="store_true", help="read every byte of every shard, too")
    about = "remove from the store what no folder and no DVC cache uses any more; it can be made again"
    commands.add_parser("prune", help=about, description=about)
    arguments = parser.parse_args()
    try:
        return _verify(arguments.full) if arguments.command == "verify" else _prune()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _verify(full: bool) -> int:
    from pipeline.verification import verify  # torch takes seconds, and prune needs none

    checked = list(verify(load_params(), full))
    for one in checked:
        print(f"{'ok     ' if one.whole else 'DAMAGED'}  {one.place}: {one.found}")
    if not checked:
        raise UserError(f"there is nothing to verify in {Path.cwd()}: run dvc repro first")
    return 0 if all(one.whole for one in checked) else DAMAGED


def _prune() -> int:
    for kind, (files, freed) in prune().items():
        print(f"{kind}: {files} files removed, {freed / 1e6:.1f} MB freed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
