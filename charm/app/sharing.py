"""The commands that models come and go by: `charm teach`, `export`, `import`, `publish`; see charm.app.command."""

from pathlib import Path
from typing import Annotated

import typer

from charm.app.options import COLUMNS, MODEL, Columns, Model
from charm.runtime.errors import UserError
from charm.runtime.interrupts import reporting


def teach(
    photos: Annotated[str, typer.Argument(metavar="PHOTOS", help="A folder, searched with all that is below it.")],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where answers, features, the model and the ranking are kept.")
    ] = Path("taught"),
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="A model of Charm, whose backbone and tokens are used: its folder, or user/name."
        ),
    ] = None,
    backbone: Annotated[
        str, typer.Option(metavar="NAME", help="Without a model: a plain ViT of timm, which is downloaded once.")
    ] = "vit_small_patch14_dinov2.lvd142m",
    ratings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A table of ratings to start from: .csv, .tsv or .parquet.")
    ] = None,
    columns: Columns = COLUMNS,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="NUMBER", help="Port to listen on.")] = 8000,
) -> None:
    """Teach a model one's own taste by giving stars to photographs.

    \b
        charm teach photos/
        charm score other-photos/ --model taught/model --top 50

    Opens a page for this machine alone: the keys 1 to 5 give stars, space skips, u takes the last answer back, f ends.
    Features of the photographs are made meanwhile. From 20 answers on, the page ranks the whole folder and tells how
    well the model agrees with answers that it has not seen, by cross-validation, so that one sees when to stop.

    In the end, at f or Ctrl-C, FOLDER/model is a model as any other, and FOLDER/ranking.csv has the photographs, the
    best first. Every answer is on the disk before the next photograph comes, and the same command goes on. Ratings of
    1 to 5 count as stars. On any other scale the model's scores are on the range of the ratings, and stars from the
    page are mapped onto that range, end to end.
    """
    with reporting("answers and features are kept, and the same command goes on from here"):
        from charm.app.teach import teach_folder

        raise typer.Exit(teach_folder(photos, out, model, backbone, (ratings, columns), port))


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
