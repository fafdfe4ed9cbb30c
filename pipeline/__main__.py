"""`python -m pipeline`: what looks after the artifacts of a clone.

    python -m pipeline verify [--full]    is everything under data/ and runs/ whole?
    python -m pipeline prune [--runs]     remove from the store what no folder uses any more
    python -m pipeline experiments ...    the paper's tables, and any sweep
    python -m pipeline figures ...        the paper's figures
    python -m pipeline compare A B C      runs or experiments on one page

Exit codes: 0 all went well; 2 a mistake, told in one line; 4 artifacts are damaged; 130 stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from charm.runtime.errors import UserError, escape_controls, format_count
from charm.runtime.interrupts import reporting
from charm.runtime.streams import run_command
from pipeline.experiments import compare
from pipeline.experiments import run as experiments
from pipeline.figures import run as figures

DAMAGED = 4  # exit code
# Command -> the module that has its arguments and runs it, and its line of help.
_COMMANDS = {
    "experiments": (experiments, "the paper's tables as dvc commands, and our numbers beside the paper's"),
    "figures": (figures, "the paper's figures as CSV and SVG files"),
    "compare": (compare, "runs or experiments on one page"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verify = commands.add_parser("verify", help="check that data/ and runs/ are whole; exit code 4 if not")
    verify.add_argument("--full", action="store_true", help="read every byte of every shard, too")
    prune = commands.add_parser("prune", help="remove from the store what no folder and no DVC cache uses any more")
    prune.add_argument(
        "--runs", action="store_true", help="remove finished trainings, too, so that the next dvc repro trains again"
    )
    for name, (module, told) in _COMMANDS.items():
        module.add_arguments(
            commands.add_parser(
                name, help=told, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
            )
        )
    chosen = parser.parse_args(arguments)
    with reporting():
        if chosen.command == "verify":
            return _verify(chosen.full)
        if chosen.command == "prune":
            _prune(chosen.runs)
        else:
            _COMMANDS[chosen.command][0].run(chosen)
    return 0


def _verify(full: bool) -> int:
    from pipeline.settings.params import load_params
    from pipeline.verify import verify

    checked = list(verify(load_params(), full))
    for one in checked:
        print(escape_controls(f"{'ok     ' if one.whole else 'DAMAGED'}  {one.place}: {one.found}"))
    if not checked:
        raise UserError(f"there is nothing to verify in {Path.cwd()}: run dvc repro first")
    return 0 if all(one.whole for one in checked) else DAMAGED


def _prune(runs: bool) -> None:
    from pipeline.work.store import prune

    for kind, (files, freed) in prune(runs).items():
        print(f"{kind}: {format_count(files, 'file')} removed, {freed / 1e6:.1f} MB freed")


if __name__ == "__main__":
    run_command(main)
