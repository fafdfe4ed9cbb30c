"""The command `charm`: what a trained model is used with.

Only names, options and help; the work is in the modules that are imported when a command runs, since torch takes
seconds and `--help` should not.
"""

from pathlib import Path
from typing import Annotated

import typer

import charm
from charm.app.limits import SERVER_LIMITS
from charm.app.options import COLUMNS, MODEL, Columns, Device, Model, Overwrite, Photo, Precision, SeenBy
from charm.app.sharing import export, import_model, publish, teach
from charm.images.limits import BOUNDS, ENDINGS, in_megabytes, list_words
from charm.runtime.interrupts import reporting
from charm.runtime.streams import run_command

app = typer.Typer(
    name="charm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

# Texts with numbers of the limits, which a docstring cannot have.
_SCORE_HELP = f"""Score photographs.

    \b
        charm score beach.jpg
        charm score photos/ --out scores.csv
        charm score photos/ --top 50 --percentile

    Prints a line per photograph: its score on the scale of the labels that the model was trained with, the spread of
    the score over draws of patches, its 90 % interval (of models that know their errors on validation images), and its
    path. With --out it writes a table with the columns path, score, spread, low and high (the interval), raw (the score
    before it was clipped to the scale), percentile (if asked for), downscaled_to (height and width at which the model
    saw a photograph that is larger than those of its training), distribution (the share of each bin, of models that
    were trained on distributions) and reason. Lists are JSON in a CSV file.

    A file that is no good image is rejected: named on stderr with the reason, and in the table's column `reason`. The
    others are scored, and the exit code is 3, as it is where all that folders have is passed over. Each file is opened
    first in a process of its own, which may take {BOUNDS.cpu_seconds:g} seconds and {BOUNDS.megabytes / 1000:g} GB.

    A table may be stopped and killed at any time: FILE.partial holds what is finished, and the same command goes on
    from there. A file that was changed since is scored again.

    In paths, bytes that are no UTF-8, control characters, those that turn text about, and backslashes are written as
    \\xff, \\n, \\u202e and \\\\; one that a spreadsheet would run as a formula begins with ./
"""
_SERVE_HELP = f"""Serve a page and an HTTP API that score photographs.

    \b
        charm serve
        curl -F image=@beach.jpg -F image=@street.png http://127.0.0.1:8000/score

    The page ranks the photographs that are dropped on it, and shows of each the patches that stayed native, what the
    model sees and what moved the score. POST /score takes up to {SERVER_LIMITS.files} images and
    {in_megabytes(SERVER_LIMITS.body_bytes)}, an image up to {in_megabytes(SERVER_LIMITS.file_bytes)}, and
    ?draws=1 to {SERVER_LIMITS.draws}; POST /explain one image; GET /health and /metrics tell about the model and the
    server, /openapi.json about requests and replies. Photographs are opened in a process of their own and removed once
    they are read.

    On another --host than this machine's own, anybody who reaches it may use it, unless --token-file asks for a token.
    Requests for names that are not the server's are refused: --allow-host has those of a proxy or a container.
"""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"charm {charm.__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Scores photographs with a trained model, shows how it sees them, and serves it.

    A model is a folder or user/name on the Hugging Face hub, named with --model. `charm import` makes one of a
    published checkpoint; a clone of the repository trains one to runs/evaluate/model.

    Exit codes: 0 all went well; 2 a mistake, told in one line; 3 photographs were rejected, the others are scored;
    130 stopped.
    """


@app.command(help=_SCORE_HELP)
def score(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Files are taken as they are named. Folders are searched with all that is below them, by name, for "
            f"files that end in {list_words([ending[1:] for ending in ENDINGS], 'or')}. Others are passed over and "
            "counted, as what is hidden and links to folders; links that lead out of their folder are rejected.",
        ),
    ],
    model: Model = MODEL,
    draws: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="How many draws of patches a score is averaged over; else as many as in the model's evaluation.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A table to write instead of lines: .parquet, .csv or .jsonl."),
    ] = None,
    overwrite: Overwrite = False,
    full_size: Annotated[
        bool,
        typer.Option(
            "--full-size", help="See photographs larger than the model's training had them; else they are downscaled."
        ),
    ] = False,
    percentile: Annotated[
        bool,
        typer.Option(
            "--percentile", help="Say how many in 100 of the model's validation photographs have a lower score."
        ),
    ] = False,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the N photographs of the highest scores, best first.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "float32",
) -> None:
    with reporting("what is made is kept, and the same command goes on from here" if out else ""):
        from charm.app.score import Options, score_files

        options = Options(model, draws, out, overwrite, device, precision, full_size, percentile, top)
        raise typer.Exit(score_files(paths, options))


@app.command()
def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Folders of models; the first is compared with.")
    ],
    labels: Annotated[Path, typer.Option(metavar="FILE", help="A table of labels: .csv, .tsv or .parquet.")],
    root: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the images' paths start; else the folder of the labels."),
    ] = None,
    columns: Columns = COLUMNS,
    scale: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOWEST HIGHEST", help="The ends of the labels' scale; without, no ACC and MAE."),
    ] = None,
    sizes: Annotated[
        str, typer.Option(metavar="LIST", help="Score each image at these fractions of its size, too: 0.75,0.5,0.25.")
    ] = "1",
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where evaluate.html and evaluate.csv are written.")
    ] = Path("evaluation"),
    overwrite: Overwrite = False,
    device: Device = "auto",
    precision: Precision = "float32",
) -> None:
    """Tell how well models agree with anybody's labels.

    \b
        charm evaluate runs/evaluate/model --labels other.csv --scale 1 5
        charm evaluate model-a model-b --labels other.csv --root photos --sizes 0.75,0.5,0.25

    PLCC, SRCC, KRCC, ACC and MAE with 95 % intervals (bootstrap), differences from the first model over the same
    resamples, how far scores drift where images are downscaled first, how often the models' intervals hold labels,
    and the images that models disagree about most: on one page, and image by image in a table. Several rows of one
    image are averaged.

    Scores are mapped from the model's scale onto --scale, end to end. An image that cannot be used is named with its
    reason and left out of all numbers; the exit code is then 3. Stopped, the same command goes on where it was.
    """
    with reporting("what is scored is kept, and the same command goes on from here"):
        from charm.app.evaluate import Options, evaluate_models, read_sizes

        chosen = read_sizes(sizes)
        options = Options(models, labels, root, columns, scale, chosen, out, overwrite, device, precision)
        raise typer.Exit(evaluate_models(options))


@app.command()
def show(
    photo: Photo,
    model: SeenBy = None,
    selection: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How patches are chosen: random, frequency, gradient, entropy or saliency; else as in training.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write; else the photo's name and -charm.")
    ] = None,
) -> None:
    """Show what a model sees of a photograph.

    \b
        charm show beach.jpg --selection frequency

    Writes up to three images into beach-charm/, of the patches that the model sees at native resolution and why, and
    prints what `charm tokenize` prints:

    \b
        native.png      the photograph, dark where it is not native, outlines around coarse patches that are
        importance.png  the score of each coarse patch, from dark blue to yellow, or the salient object;
                        not for random
        seen.png        the photograph as the model sees it, rebuilt from its tokens

    A photograph that is small enough is native as a whole: there is only the last. Images by these names that an
    earlier call left in the folder are replaced or removed.
    """
    with reporting():
        from charm.app.show import show_photo

        show_photo(photo, model, selection, out or Path(f"{Path(photo).stem}-charm"))


@app.command()
def tokenize(
    photo: Photo,
    model: SeenBy = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to save the tokens' arrays, a .npz file.")
    ] = None,
) -> None:
    """Print what becomes of a photograph.

    \b
        charm tokenize beach.jpg --out tokens.npz

    What the model's tokenizer does to it: the size of the photograph, the size that it is fitted to, grids and tokens
    of each scale, how many tokens were dropped or are padding, how much of its area is seen, and what the draw of
    patches follows from. The file has the arrays patches, patch_coord, scale_id, patch_valid and grids; numpy.load
    opens it.
    """
    with reporting():
        from charm.app.show import tokenize_photo

        tokenize_photo(photo, model, out)


app.command()(teach)
app.command()(export)


@app.command(help=_SERVE_HELP)
def serve(
    model: Model = MODEL,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for every network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="NUMBER", help="Port to listen on.")] = 8000,
    draws: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=SERVER_LIMITS.draws,
            metavar="K",
            help="How many draws of patches a score is averaged over, where a request does not say; more than one give "
            "the page spreads to show. Else as many as in the model's evaluation.",
        ),
    ] = None,
    device: Device = "auto",
    precision: Precision = "float32",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name that the server has besides: of a proxy or a service; repeatable."),
    ] = None,
    root_path: Annotated[
        str, typer.Option(metavar="PATH", help="What a proxy puts before its routes, as /charm.")
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds a token; requests need it as `Authorization: Bearer TOKEN`."),
    ] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="A proxy whose X-Forwarded-Host and -For are believed; repeatable."),
    ] = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="Print a line for each request.")] = False,
) -> None:
    with reporting():
        from charm.app.access import Access, read_token
        from charm.app.server import serve

        token = read_token(token_file)
        access = Access(host, allow_host or (), root_path, token, trust_proxy or (), access_log)
        serve(model, access, port, draws, device, precision)


app.command(name="import")(import_model)
app.command()(publish)


def main() -> None:
    run_command(lambda: app(prog_name="charm"))


if __name__ == "__main__":
    main()
