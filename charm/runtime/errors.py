"""What a user can put right."""


class UserError(Exception):
    """One line that says what came, what was expected, and what to do; shown without a traceback."""


def first_line(error: Exception) -> str:
    """Of what a library says at length."""
    return next(iter(str(error).splitlines()), type(error).__name__)
