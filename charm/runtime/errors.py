"""The error that a user can put right, and parts of its messages."""

import difflib


class UserError(Exception):
    """One line that says what came, what was expected, and what to do; shown without a traceback."""


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its type if it has no text."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def in_one_line(text: str, most: int = 500) -> str:
    """Returns a text of somebody else's as one line of at most `most` characters; what cannot be printed is escaped."""
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 3]}..."


def did_you_mean(came: str, known: list[str]) -> str:
    """Returns "; did you mean 'x'?" if one of the known words is near, else all known words."""
    near = difflib.get_close_matches(came, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known) or 'none'}"


# The extra of charm-vit that brings a package which is not among its core requirements.
EXTRAS = {
    **dict.fromkeys(("jinja2", "scipy", "timm", "torch"), "torch"),
    **dict.fromkeys(("multipart", "pyarrow", "python_multipart", "starlette", "tqdm", "uvicorn"), "app"),
    **dict.fromkeys(("segment_anything_hq", "torchvision", "transformers"), "sam-hq"),
    **dict.fromkeys(("onnx", "onnx_ir", "onnxscript"), "onnx"),
}


def name_extra(error: ModuleNotFoundError) -> str:
    """Says what to install for a package that is missing here."""
    package = (error.name or "").split(".")[0]
    return f'there is no {package} here: pip install "charm-vit[{EXTRAS.get(package, "all")}]"'
