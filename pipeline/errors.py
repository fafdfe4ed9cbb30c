"""What a user can put right."""

import shlex
from pathlib import Path


class UserError(Exception):
    """One line that says what came, what was expected, and what to do; shown without a traceback."""


def remake(file: object) -> str:
    """What to do about a damaged file. The output, the store's and DVC's cache's are names of one file, and DVC trusts
    its cache: removing the output alone would bring the damage back."""
    if not Path(str(file)).exists():
        return "run dvc repro"
    command = f"find . $CHARM_STORE -samefile {shlex.quote(str(file))} -delete"
    return f"remove it under all its names (`{command}`), then run dvc repro"


def first_line(error: Exception) -> str:
    """Of what a library says at length."""
    return next(iter(str(error).splitlines()), type(error).__name__)
