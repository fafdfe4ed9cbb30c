"""The command `charm teach`: a model of one person's taste, from stars on a page or from a table of ratings.

    files -> features and previews, kept as they come       (charm.app.image_folder)
    stars -> answers, kept as they come                     (charm.app.answers)
    both  -> a head on the frozen backbone, and a ranking   (charm.app.learner)
    all of it on a page                                     (charm.app.teach_page)

Folder, learner and page have a thread each; this one waits for signals, and writes what was learnt in the end.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import torch
from timm.models import is_model_pretrained

from charm.app.answers import Answers
from charm.app.evaluate import read_labels
from charm.app.image_folder import ImageFolder
from charm.app.journal import open_lines
from charm.app.learner import DATASET, ENOUGH, Learner
from charm.app.reading import explaining, load_scorer
from charm.app.rows import Row
from charm.app.score import REJECTED, list_rejected, print_rejected
from charm.app.server import bind, make_server
from charm.app.teach_page import LIMITS, build_teach_app
from charm.hub import list_versions, read_config
from charm.images.find import ImageFile, describe_passed, escape_path, find_image_files
from charm.model.config import (
    DataConfig,
    InputConfig,
    LabelConfig,
    ModelConfig,
    TrainingConfig,
    ViTConfig,
    format_metric,
)
from charm.model.registry import describe_weights, fetch_model
from charm.runtime.errors import UserError
from charm.runtime.interrupts import Interrupts
from charm.runtime.progress import Progress
from charm.scorer import CharmScorer
from charm.tokenization.tokenizer import CharmTokenizer

_TOKENS, _NATIVE, _EDGE = 512, 0.75, 1024  # of an image: tokens, the fraction of native ones, pixels of its edge


def teach_folder(
    top: str, out: Path, model: str | None, backbone: str, ratings: tuple[Path | None, tuple[str, str]], port: int
) -> int:
    """Teaches a model with the images of the folder `top`; see charm.app.sharing.teach. Returns the exit code.

    Raises:
        UserError: the folder, the ratings, the model or the port are not as they have to be.
    """
    if not os.path.isdir(top):  # noqa: PTH112  (Path's raises where a path is too long for the system)
        raise UserError(f"{escape_path(top)}: expected a folder of photographs")
    image_files, passed = find_image_files([top])
    if passed:
        print(describe_passed(passed), file=sys.stderr)
    if not image_files:
        return REJECTED
    table, columns = ratings
    rated = read_ratings(table, columns, top, image_files) if table else {}
    _check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    with open_lines(out / "answers.jsonl", Answers) as answers, bind("127.0.0.1", port) as bound:
        answers.load()
        scorer = load_scorer(model) if model is not None else start_scorer(backbone)
        learner = Learner(ImageFolder(scorer, top, image_files, out), answers, rated)
        told = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        print(f"Give stars to photographs at {told} (Ctrl-C ends it; the same command goes on)", flush=True)
        _serve_page(learner, bound)
        _write(learner, scorer, out)
    folder = learner.folder
    print_rejected(list_rejected([Row(path, None, reason) for path, reason in folder.reasons.items()]))
    return REJECTED if folder.reasons else 0


def _check_out(out: Path) -> None:
    """Raises UserError if a folder holds a model or a ranking that was not taught, which would be replaced."""
    is_own = (out / "answers.jsonl").exists() or not any((out / name).exists() for name in ("model", "ranking.csv"))
    if (out / "model" / "config.json").exists():
        with explaining(str(out)):
            is_own = read_config(out / "model")[0].data.dataset == DATASET
    if not is_own:
        problem = "holds a model or a ranking.csv made otherwise, which would be replaced: choose another --out"
        raise UserError(f"--out {escape_path(str(out))}: {problem}")


def start_scorer(backbone: str) -> CharmScorer:
    """Builds a scorer whose head is untrained: a published backbone that sees Charm's tokens.

    Raises:
        UserError: there is no such backbone, or its weights cannot be downloaded.
    """
    is_published = is_model_pretrained(backbone)
    if is_published:
        print(f"{escape_path(backbone)}: weights are downloaded unless the hub's cache has them", file=sys.stderr)
    # Frozen weights know normalized pixels alone.
    config = ViTConfig(backbone, num_scales=2, num_outputs=1, head="mean", normalize=is_published, pos_embed="frozen")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of what has no published weights
        model = fetch_model(config, True, "with --model, which takes a model's folder")
    if model.scale_embed is not None:
        torch.nn.init.zeros_(model.scale_embed)  # nothing would learn what it says
    cutter = CharmTokenizer(model.patch_size, max_seq_len=_TOKENS, budget="share", native_share=_NATIVE)
    described = ModelConfig(
        model=config,
        tokenizer=InputConfig("charm", {}, cutter.settings),
        pos_embeds=model.pos_embed_config("bilinear", False),
        labels=LabelConfig(1, (1.0, 5.0), 3.0, "nothing yet"),
        max_edge=_EDGE,
        seed=0,
        draws=1,
        saliency=None,
        data=DataConfig("", "", "", {}),
        training=TrainingConfig(1, _EDGE, *describe_weights(model)),
        versions=list_versions(),
    )
    return CharmScorer(model, described, "auto")


def read_ratings(table: Path, columns: tuple[str, str], top: str, image_files: Sequence[ImageFile]) -> dict[str, float]:
    """Reads a table's ratings of the files: path -> rating; paths start at the table's folder, or at the files'.

    Raises:
        UserError: the table is not as it has to be, or rates none of the files.
    """
    rated = read_labels(table, columns, Path())
    paths = {os.path.realpath(one.path): one.path for one in image_files}
    found: dict[str, float] = {}
    for name, rating in rated.items():
        places = (os.path.realpath(root / name) for root in (table.parent, Path(top)))
        if path := next((paths[place] for place in places if place in paths), ""):
            found[path] = rating
    if not found:
        told = f"none of its {len(rated)} photographs is in {escape_path(top)}"
        raise UserError(f"{escape_path(str(table))}: {told}: expected paths from there, or from the table's folder")
    if len(found) < len(rated):
        print(f"ratings of photographs that are not in {escape_path(top)}: {len(rated) - len(found)}")
    return found


def _serve_page(learner: Learner, bound: Any) -> None:
    """Shows the page until a signal comes, or the page is finished and all images are looked at."""
    folder, stop = learner.folder, Event()
    server = make_server(build_teach_app(learner, lambda: setattr(server, "should_exit", True)), LIMITS)
    with Interrupts() as interrupts, ThreadPoolExecutor(3) as threads:
        looking = threads.submit(folder.look, stop, learner.tell)
        learning = threads.submit(learner.run, stop)
        # Not in the main thread, where uvicorn would take the signals for itself.
        serving = threads.submit(server.run, sockets=[bound])
        left: set[Future[None]] = {looking, serving}
        with closing(Progress("features", len(folder.files), "photograph")) as progress:
            try:
                while left and not (interrupts.came or learning.done()):
                    done, left = wait(left, timeout=0.2, return_when=FIRST_COMPLETED)
                    for one in done:
                        one.result()  # raises what went wrong there
                    if new := folder.done - progress.done:
                        progress.move(new)
            finally:
                server.should_exit = True
                stop.set()
                learner.tell()
    for one in (looking, learning, serving):
        one.result()


def _write(learner: Learner, scorer: CharmScorer, out: Path) -> None:
    """Writes what was learnt and says so, or what is missing."""
    learner.learn()  # of the last answers, and of the last features
    name = escape_path(str(out))
    if learner.solved is None:
        count = sum(key in learner.folder.values for key in learner.list_labels())
        needed = f"a model takes {ENOUGH}, and two that differ"
        print(f"photographs with stars or ratings: {count}; {needed}; the same command goes on")
        return
    learner.write(scorer, out)
    found = learner.solved.agreement
    print(f"SRCC {format_metric(**found.metrics['srcc'])} by cross-validation on {found.scored} photographs")
    print(f"written to {name}: model, and ranking.csv of {len(learner.ranking)} photographs")
