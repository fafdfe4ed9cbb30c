"""What a user can put right."""


class UserError(Exception):
    """One line that says what came, what was expected, and what to do; shown without a traceback."""
