"""The commands that models come and go by: `charm export`, `import` and `publish`; see charm.app.command."""

from pathlib import Path
from typing import Annotated

import typer

from charm.app.options import MODEL, Model
from charm.runtime.errors import UserError
from charm.runtime.interrupts import reporting


def export(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write.")],
    model: Model = MODEL,
) -> None:
    """Write a folder that scores photographs without PyTorch.

    \b
        charm export --out exported

    charm.onnx_scorer.OnnxScorer.from_pretrained("exported") scores with it as the model does. Its model.onnx is for any
    number of images B and of tokens L: from patches, uint8 (B, L, p, p, 3); pos_embed, float32 (B, L, D), the position
    embedding of each token; scale_id, uint8 (B, L); and patch_valid, bool (B, L), False where padding, to the score on
    the scale of 0 to 1, or the logits of a distribution.
    """
    with reporting():
        from charm.app.reading import load_scorer
        from charm.export import write_export
        from charm.images.find import escape_path

        if out.suffix == ".onnx" or out.is_file():
            raise UserError(f"--out {escape_path(str(out))}: expected the name of a folder, which holds several files")
        scorer = load_scorer(model, "cpu")
        try:
            write_export(out, scorer.model, scorer.config)
        except ValueError as error:
            raise UserError(f"{model}: {error}") from error
        size = sum(file.stat().st_size for file in out.iterdir())
        print(f"written to {escape_path(str(out))}, {size / 1e6:.1f} MB")


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
