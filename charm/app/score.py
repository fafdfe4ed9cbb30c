"""Photographs to scores: while the model is at work on a group, threads open, decode and cut the next one.

    photographs -> groups -> a child process each thread, which may die of a file   (charm.images.find)
                          -> tokens, in that thread                                  (charm.app.reading)
                          -> the model, in this one                                  (charm.scorer)
                          -> the journal, and lines or a table                       (charm.app.journal, .rows)

Memory is that of two groups of tokens, whatever the number of photographs.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2

from charm.app.journal import Journal, open_journal, read_state
from charm.app.reading import load_scorer, tokenize_file
from charm.app.rows import Row, choose_format, fill_row, format_line, write_table
from charm.images.find import ImageFile, ImageFileReader, describe_passed, escape_path, find_image_files
from charm.images.limits import LIMITS, in_millions
from charm.images.reasons import REASONS, Rejected
from charm.runtime.disk import fingerprint
from charm.runtime.errors import UserError, format_count
from charm.runtime.progress import Progress
from charm.scorer import CharmScorer
from charm.tokenization.tokens import Tokens

GROUP = 16  # photographs; of 512 tokens a full batch, and a few seconds of a CPU
REJECTED = 3  # exit code
_MOST_READERS = 8
_JOURNAL_VERSION = 4

# What a manifest has other words for.
_OUR_REASONS = {
    "outside": "it leads out of its folder; name the file itself, or a --root that holds it",
    "too_large": f"more than {in_millions(LIMITS.max_pixels)} pixels",
}

Opened = tuple[Row, list[Tokens]]
T = TypeVar("T")


@dataclass
class Clock:
    """Seconds spent since the first photograph, and in the model of these; and how many photographs were scored."""

    started: float
    model: float = 0.0
    scored: int = 0


@dataclass(frozen=True)
class Options:
    """What the command line says; see charm.app.command."""

    model: str
    draws: int | None
    out: Path | None
    overwrite: bool
    device: str
    precision: str
    full_size: bool
    percentile: bool
    top: int | None


def score_files(paths: Sequence[str], options: Options) -> int:
    """Scores photographs and says so; the exit code.

    Raises UserError if there are no files, or the table cannot or should not be written.
    """
    image_files, passed = find_image_files(paths)
    if not image_files:
        print(f"no photographs: {describe_passed(passed)}", file=sys.stderr)
        return REJECTED
    out = options.out
    if out is not None:
        choose_format(out)  # says what is wrong before hours of work
    with open_journal(out) if out is not None else nullcontext() as journal:
        if out is not None and out.exists() and not options.overwrite:
            raise UserError(f"{escape_path(str(out))} is there already: --overwrite replaces it")
        scorer = load_scorer(options.model, options.device, options.precision, options.full_size)
        if options.percentile and scorer.config.val_percentiles is None:
            told = (
                "holds no validation scores to compare with, as a model that was imported, or not evaluated in a clone"
            )
            remedy = "leave it out; --top N ranks your photographs among themselves"
            raise UserError(f"--percentile: {escape_path(options.model)} {told}: {remedy}")
        one = Pass(scorer, scorer.draws if options.draws is None else options.draws, options.precision)
        clock = Clock(time.perf_counter())
        prints = out is None and options.top is None  # the best are known at the end
        found = run_pass(one, image_files, journal, clock, options.percentile if prints else None)
        ordered = [found[one.path] for one in image_files]
        best = ordered if options.top is None else find_best(ordered, options.top)
        if out is not None and journal is not None:
            has_no = {"percentile": not options.percentile, "distribution": len(scorer.unit_bins) == 1}
            has_no |= dict.fromkeys(("low", "high"), all(row.low is None for row in best))
            write_table(out, best, [name for name, is_so in has_no.items() if is_so])
            journal.remove()
        elif not prints:
            _print_lines(best, options.percentile)
    if passed:
        print(describe_passed(passed), file=sys.stderr)
    _summarize(ordered, clock)
    return REJECTED if any(row.reason for row in ordered) else 0


@dataclass(frozen=True)
class Pass:
    """A scorer, and all that its scores depend on besides the images; `size` is a fraction of the images' own."""

    scorer: CharmScorer
    draws: int
    precision: str
    size: float = 1.0

    def describe(self) -> dict[str, object]:
        return {
            "version": _JOURNAL_VERSION,
            "weights_sha256": self.scorer.weights_sha256,
            "config_sha256": fingerprint(self.scorer.config.to_json()),
            "max_edge": self.scorer.max_edge,
            "draws": self.draws,
            "precision": self.precision,
            "size": self.size,
        }


def run_pass(
    one: Pass, image_files: Sequence[ImageFile], journal: Journal | None, clock: Clock, printed: bool | None = None
) -> dict[str, Row]:
    """Scores photographs, all but those that are finished in the journal, which keeps each row as it comes.

    Returns path -> row. Rows are printed as they come with percentiles or without (`printed`), or not at all (None).
    """
    found = journal.resume(image_files, one.describe()) if journal else {}
    if found:
        print(f"{len(found)} of {len(image_files)} photographs are done, going on with the rest", file=sys.stderr)
    left = [image_file for image_file in image_files if image_file.path not in found]
    shown = printed is not None and sys.stdout.isatty() and sys.stderr.isatty()
    progress = Progress("score", len(image_files), "photograph", len(found), silent=shown)
    stream = stream_rows(one.scorer, left, one.draws, clock, one.size)
    with closing(progress), closing(stream):
        for group, rows in stream:
            if journal is not None:
                journal.append(rows, group)
            if printed is not None and journal is None:
                _print_lines(rows, printed)
            found |= {row.path: row for row in rows}
            clock.scored += len(rows)
            progress.move(len(rows))
    return found


def find_best(rows: Sequence[Row], count: int) -> list[Row]:
    """Returns the scored photographs of the highest raw scores, best first; of equal ones the first."""
    scored = [row for row in rows if row.raw is not None]
    return sorted(scored, key=lambda row: -(row.raw or 0.0))[:count]


def _print_lines(rows: Sequence[Row], has_percentile: bool) -> None:
    for row in rows:
        if not row.reason:
            print(format_line(row, has_percentile))
    sys.stdout.flush()


def stream_rows(
    scorer: CharmScorer, image_files: Sequence[ImageFile], draws: int, clock: Clock, size: float = 1.0
) -> Generator[tuple[list[ImageFile], list[Row]]]:
    """Yields groups of photographs in their order, each with its rows; the clock gets the time that the model takes.

    The tokenizer runs in threads, the model in this one. `size` is that of the photographs to see, a fraction of their
    own.

    Raises:
        UserError: the model needs saliency masks, and their models cannot be loaded.
        RuntimeError: images cannot be opened apart.
    """
    cv2.setNumThreads(1)  # one per reader, beside those of the model
    groups = [list(image_files[start : start + GROUP]) for start in range(0, len(image_files), GROUP)]
    workers = 1 if scorer.needs_mask else min(_MOST_READERS, max(1, (os.cpu_count() or 1) // 2))
    reader, pool = ImageFileReader(LIMITS), ThreadPoolExecutor(workers, "photographs")
    try:
        read = _reading(scorer, reader, draws, size)
        for group, opened in read_ahead(pool, read, groups):
            good = [tokens for row, tokens in opened if not row.reason]
            started = time.perf_counter()
            scores = iter(scorer.score_tokens(good))
            clock.model += time.perf_counter() - started
            yield group, [row if row.reason else fill_row(row, next(scores)) for row, _ in opened]
    finally:
        pool.shutdown(cancel_futures=True)
        reader.close()


def _reading(scorer: CharmScorer, reader: ImageFileReader, draws: int, size: float) -> Callable[[ImageFile], Opened]:
    def read(image_file: ImageFile) -> Opened:
        state = read_state(image_file)  # before the bytes: a change after this is noticed
        try:
            tokens, seen_hw = tokenize_file(scorer, reader.read(image_file), reader.limits, draws, size)
            return Row(image_file.path, state, downscaled_to=seen_hw and list(seen_hw)), tokens
        except Rejected as error:
            return Row(image_file.path, state, error.reason), []
        except MemoryError:
            return Row(image_file.path, state, "memory"), []

    return read


def read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[ImageFile], T], groups: Sequence[list[ImageFile]]
) -> Iterator[tuple[list[ImageFile], list[T]]]:
    """Yields each group with its images read, while threads read the next group."""
    ahead: deque[tuple[list[ImageFile], list[Future[T]]]] = deque()
    for group in groups:
        ahead.append((group, [pool.submit(read, one) for one in group]))
        if len(ahead) > 1:
            first, futures = ahead.popleft()
            yield first, [future.result() for future in futures]
    for group, futures in ahead:
        yield group, [future.result() for future in futures]


def list_rejected(rows: Sequence[Row]) -> list[tuple[str, str, list[str]]]:
    """Lists the rejected photographs by reason: the reason, what it means, and the escaped paths."""
    paths: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:
            paths.setdefault(row.reason, []).append(escape_path(row.path))
    return [(reason, (REASONS | _OUR_REASONS)[reason], paths[reason]) for reason in REASONS if reason in paths]


def print_rejected(rejected: Sequence[tuple[str, str, list[str]]]) -> None:
    """Prints the rejected photographs of `list_rejected` on stderr."""
    for reason, meaning, paths in rejected:
        print(f"rejected, {reason}: {meaning}", *(f"  {path}" for path in paths), sep="\n", file=sys.stderr)


def _summarize(rows: Sequence[Row], clock: Clock) -> None:
    """Prints the rejected photographs by reason, then a summary, on stderr."""
    rejected = list_rejected(rows)
    print_rejected(rejected)
    seconds = max(time.perf_counter() - clock.started, 1e-9)
    count = sum(len(paths) for _, _, paths in rejected)
    scored = format_count(len(rows) - count, "photograph")
    pace = f"{clock.scored / seconds:.1f} per second; model {clock.model / seconds:.0%} of the time"
    print(f"{scored} scored, {count} rejected, {pace}", file=sys.stderr)
