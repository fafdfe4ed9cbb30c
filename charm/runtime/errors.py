"""The error that a user can put right, and parts of its messages."""

import difflib
import unicodedata

# Unicode categories: control characters, lone surrogates (bytes that are no UTF-8), line and paragraph separators.
_CONTROLS = {"Cc", "Cs", "Zl", "Zp"}
# Unicode's property Bidi_Control: after one of these, text runs the other way, and a name reads as another.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class UserError(Exception):
    """One line that says what came, what was expected, and what to do; shown without a traceback."""


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its type if it has no text."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def escape_controls(text: str) -> str:
    """Writes control characters, and those that turn text about, as \\n or \\u202e; the rest stays as it is."""
    return "".join(
        char.encode("unicode_escape").decode() if char in _BIDI or unicodedata.category(char) in _CONTROLS else char
        for char in text
    )


def format_count(count: int, noun: str) -> str:
    """Returns "1 image", "2 images"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def in_one_line(text: str) -> str:
    """Returns a text of somebody else's as one line of at most 500 characters, control characters escaped."""
    line = escape_controls(text[:501])
    return line if len(line) <= 500 else f"{line[:497]}..."


def did_you_mean(came: str, known: list[str]) -> str:
    """Returns "; did you mean 'x'?" if one of the known words is near, else all known words."""
    near = difflib.get_close_matches(came, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known) or 'none'}"


# The extra of charm-vit that brings a package which is not among its core requirements.
EXTRAS = {
    **dict.fromkeys(("jinja2", "scipy", "timm", "torch"), "torch"),
    **dict.fromkeys(("h11", "multipart", "prometheus_client", "pyarrow", "python_multipart"), "app"),
    **dict.fromkeys(("starlette", "threadpoolctl", "tqdm", "uvicorn"), "app"),
    **dict.fromkeys(("segment_anything_hq", "torchvision", "transformers"), "sam-hq"),
    "pillow_heif": "heif",
    **dict.fromkeys(("onnx", "onnx_ir", "onnxscript"), "onnx"),
    **{name: name for name in ("onnxruntime", "tensorboard", "wandb", "mlflow")},
}


def name_extra(error: ModuleNotFoundError) -> str:
    """Says what to install for a package that is missing here."""
    package = (error.name or "").split(".")[0]
    return f'there is no {package} here: pip install "charm-vit[{EXTRAS.get(package, "all")}]"'
