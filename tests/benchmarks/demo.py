"""Every tokenizer of the paper's Table 3 and every selection of its Table 4 on the built-in data set, over five seeds.

    uv run python -m tests.benchmarks.demo [--seeds 0 1 2 3 4] [--only charm standard] [--epochs 20]

The same model, epochs and images for all; a seed turns over which photographs are held out, and draws everything
else. Two runs at a time, one thread each. Images, shards and maps are made once, and the shards hold pixels: decoding
would be 40 % of an epoch's time. Finished runs are kept in .charm/demo/results.jsonl and are not made again unless a
setting or the code has changed. Prints two Markdown tables.

All inputs have about the token budget of params.yaml but `standard_384` (section 18): a crop of 384 pixels is 27 x 27
tokens. A run of it takes as long as a dozen others, so it is made only by name: `--only standard standard_384`.
"""

import argparse
import contextlib
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from charm.runtime.disk import fingerprint
from pipeline.experiments.sweep import describe, describe_difference
from pipeline.settings.params import Params, load_params
from pipeline.work.code import code_digest
from tests.imports import import_closure

# Heavy modules are imported in functions: Dask's workers import this one.

WORK = Path(".charm/demo")
# Row -> its input, with the settings in which it differs from params.yaml.
TOKENIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "charm": ("charm", {}),
    "standard": ("standard", {}),
    "standard_384": ("standard", {"edge": 439, "crop": 384}),
    "flexi": ("flexi", {}),
    "padding": ("padding", {}),
    "ms": ("square", {"edge": 256}),
    "hr_ms": ("square", {"edge": 0}),
    "naflex": ("naflex", {}),
    "anyres": ("anyres", {}),
    "quadtree": ("quadtree", {}),
    "quadtree_256": ("quadtree", {"edge": 256}),
    "muller": ("muller", {}),
}
SELECTIONS = ("random", "frequency", "gradient", "entropy", "saliency")
COMPARED = [name for name in (*TOKENIZERS, *SELECTIONS) if name != "standard_384"]
PROCESSES = 2


def make_params(base: Params, name: str, seed: int, epochs: int | None) -> Params:
    """Of the run of a tokenizer with random selection, or of a selection with Charm; `random` is `charm`."""
    tokenizer, settings = TOKENIZERS.get(name, ("charm", {}))
    block = replace(getattr(base.inputs, tokenizer), **settings)
    return replace(
        base,
        dataset="demo",
        tokenizer=tokenizer,
        inputs=replace(base.inputs, **{tokenizer: block}),
        selection=name if name in SELECTIONS else "random",
        max_seq_len=base.max_seq_len if block.has_budget else block.length(14),
        seed=seed,
        train=replace(base.train, epochs=epochs or base.train.epochs),
        shards=replace(base.shards, encoding="raw"),
        hardware=replace(base.hardware, device="cpu", loader_workers=0),
        dask=replace(base.dask, workers=PROCESSES),
    )


def digest_run(params: Params, stages: tuple[str, ...]) -> str:
    """Of all settings and of the code that these stages run."""
    settings = {key: value for key, value in asdict(params).items() if key not in ("hardware", "dask", "report")}
    return fingerprint(settings, _digest_code(stages))[:16]


@functools.cache
def _digest_code(stages: tuple[str, ...]) -> str:
    files = {file for stage in stages for file in import_closure(f"stages.{stage}")}
    modules = sorted(file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files)
    return code_digest(*modules)


def prepare_data(params: Params, maps: Sequence[str]) -> Path:
    """The folder data/ of a seed; what the seeds share is in the store."""
    from stages import importance, manifest, shards

    folder = WORK.resolve() / f"seed-{params.seed}-{digest_run(params, ('manifest', 'shards', 'importance'))}"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
        if not Path("packed").is_file():
            manifest.main(params)
            shards.main(params)
            Path("packed").touch()
        for name in maps:
            made = Path("data/maps", name)
            if not made.is_dir():
                importance.main(replace(params, selection=name))
                made.parent.mkdir(exist_ok=True)
                Path("data/importance").rename(made)
    return folder / "data"


def run_once(params: Params, data: Path, digest: str) -> dict[str, Any]:
    """Trains and evaluates; the metrics and how long it took."""
    from stages import evaluate, pos_embeds, train

    started = time.monotonic()
    folder = data.parents[1] / "runs" / digest
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    for name, shared in {"manifest": "manifest", "shards": "shards", "importance": f"maps/{params.selection}"}.items():
        (folder / "data" / name).symlink_to(data / shared)
    with contextlib.chdir(folder), open("log.txt", "w") as log, contextlib.redirect_stdout(log):
        for stage in (pos_embeds, train, evaluate):
            stage.main(params)
        metrics = json.loads(Path("runs/evaluate/metrics.json").read_text())
    shutil.rmtree(folder)
    return metrics | {"seconds": round(time.monotonic() - started, 1)}


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The kept runs by digest; a line that was cut short is none."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            found[record["digest"]] = record
    return found


def make_table(names: Sequence[str], baseline: str, runs: dict[str, list[dict[str, Any]]], lengths: list[int]) -> str:
    """Markdown; `runs` holds a row's results in the order of the seeds."""
    lines = [
        f"| | *l* | SRCC | PLCC | ACC | SRCC less that of `{baseline}` (95 %), seeds above | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, length in zip(names, lengths, strict=True):
        values = {metric: [run[metric] for run in runs[name]] for metric in ("srcc", "plcc", "acc")}
        cells = [f"`{name}`", str(length), *(describe(column) for column in values.values())]
        others = [run["srcc"] for run in runs[baseline]]
        cells.append("" if name == baseline else describe_difference(values["srcc"], others))
        cells.append(f"{np.mean([run['seconds'] for run in runs[name]]):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    from pipeline.settings.inputs import build_tokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", choices=[*TOKENIZERS, *SELECTIONS], default=COMPARED)
    parser.add_argument("--epochs", type=int, help="instead of those of params.yaml")
    chosen = parser.parse_args()
    started = time.monotonic()
    WORK.mkdir(parents=True, exist_ok=True)
    # Before torch is imported, here and in the processes below.
    os.environ.update(OMP_NUM_THREADS="1", CHARM_STORE=str(WORK.resolve() / "store"))
    os.environ.pop("DVC_ROOT", None)

    base = load_params()
    asked = [(name, seed) for name in chosen.only for seed in chosen.seeds]
    params = {(name, seed): make_params(base, name, seed, chosen.epochs) for name, seed in asked}
    digests = {run: digest_run(params[run], ("pos_embeds", "train", "evaluate")) for run in asked}
    kept = read_results(WORK / "results.jsonl")
    # `charm` and `random` are one run, which goes by the first of its names.
    todo = {digest: run for run, digest in reversed(digests.items()) if digest not in kept}
    print(f"{len(set(digests.values()))} runs, {len(todo)} to make", file=sys.stderr)

    maps = [name for name in SELECTIONS if name in {params[run].selection for run in todo.values()}]
    data = {
        seed: prepare_data(make_params(base, "charm", seed, None), maps)
        for seed in sorted({s for _, s in todo.values()})
    }
    print(f"images, shards and maps: {time.monotonic() - started:.0f} s", file=sys.stderr)
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        # The longest first, so that none runs alone at the end.
        order = sorted(todo, key=lambda digest: -params[todo[digest]].max_seq_len)
        futures = {pool.submit(run_once, params[todo[d]], data[todo[d][1]], d): d for d in order}
        for future in as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            digest = futures[future]
            name, seed = todo[digest]
            kept[digest] = {"digest": digest, "name": name, "seed": seed} | future.result()
            with open(WORK / "results.jsonl", "a") as file:  # whose last line may have been cut short
                file.write("\n" + json.dumps(kept[digest], sort_keys=True) + "\n")
            srcc, seconds = describe([kept[digest]["srcc"]]), kept[digest]["seconds"]
            print(f"{name}, seed {seed}: SRCC {srcc}, {seconds} s", file=sys.stderr, flush=True)
    print(f"{time.monotonic() - started:.0f} s in all", file=sys.stderr)

    for names, baseline in ((tuple(TOKENIZERS), "standard"), (SELECTIONS, "random")):
        shown = [name for name in names if name in chosen.only]
        if baseline in shown:
            runs = {name: [kept[digests[name, seed]] for seed in chosen.seeds] for name in shown}
            lengths = [build_tokenizer(params[name, chosen.seeds[0]], 14).max_seq_len for name in shown]
            print(make_table(shown, baseline, runs, lengths) + "\n")


if __name__ == "__main__":
    main()
