"""The commands that models come and go by: `charm import` and `charm publish`; see charm.app.command."""

from pathlib import Path
from typing import Annotated

import typer

from charm.runtime.interrupts import reporting


def import_model(
    source: Annotated[str, typer.Argument(metavar="NAME", help="Of the data set, or the path of such a .pth file.")],
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a file: the data set that it was trained on.")
    ] = None,
    padded: Annotated[
        bool,
        typer.Option(
            "--padded",
            help="Give every image as many tokens as in training, by dropping some or by padding that is attended to; "
            "else all of its own, as the published package scores.",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The model's folder to write; else charm- and the data set.")
    ] = None,
) -> None:
    """Make a model of a checkpoint of the paper's authors.

    \b
        charm import koniq10k
        charm score beach.jpg --model charm-koniq10k

    One of aadb, ava, para, baid, koniq10k, spaq and tad66k is downloaded from their page on the Hugging Face hub,
    FatemehBehrad/Charm, which tells the licence. These files are pickles: their tensors are read, and nothing in them
    is run. The model sees images as the published code cuts them, faults included, and scores on its data set's scale.
    """
    with reporting():
        from charm.images.find import escape_path
        from charm.published import import_checkpoint

        scorer = import_checkpoint(source, dataset, padded)
        folder = out or Path(f"charm-{dataset or source}")
        scorer.save_pretrained(folder)
        low, high = scorer.score_range
        print(f"written to {escape_path(str(folder))}: {scorer.config.model.backbone}, scores from {low:g} to {high:g}")


def publish(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The model's folder.")],
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="Of the model on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make it yours alone, if it is not there yet.")] = False,
) -> None:
    """Upload a model's folder to the Hugging Face hub.

    \b
        charm publish runs/evaluate/model me/my-model
        charm score beach.jpg --model me/my-model

    Its weights, config and card, README.md, which you may edit before; nothing else in the folder. `hf auth login` or
    HF_TOKEN says who you are.
    """
    with reporting():
        from charm.app.reading import explaining
        from charm.hub import publish_folder

        with explaining(folder):
            print(f"published: {publish_folder(folder, name, private)}")
