"""Options and arguments that several of the commands have; see charm.app.command."""

from typing import Annotated

import typer

from charm.images.limits import list_formats

MODEL = "runs/evaluate/model"  # of a clone
COLUMNS = ("path", "score")

Model = Annotated[
    str,
    typer.Option("--model", metavar="MODEL", help="The model's folder, or user/name of one on the Hugging Face hub."),
]
SeenBy = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help=f"The model's folder, or user/name on the hub; else {MODEL} if it is there, else Charm's default "
        "settings without a model.",
    ),
]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="Where the model runs: auto (a GPU where there is one), cpu, cuda, cuda:1.")
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Of the model's matrix products: float32, bfloat16 or float16, which GPUs are faster with.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
Photo = Annotated[str, typer.Argument(metavar="PHOTO", help=f"A {list_formats('or')} file.")]
Columns = Annotated[
    tuple[str, str],
    typer.Option(metavar="PATH LABEL", help="The columns of the image's path and of its label, in a table of labels."),
]
