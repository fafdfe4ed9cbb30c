"""Charm against the standard input: the same model, epochs and pictures, over several seeds.

    uv run python -m tests.benchmarks.demo --seeds 0 1 2
    uv run python -m tests.benchmarks.demo --seeds 0 1 2 3 4 --dataset spaq --set backbone=vit_small_patch16_224

Each run is a `dvc exp run --temp`, so that it leaves the workspace alone, what is there already is not made again, and
`dvc exp show` lists all of them afterwards. A seed also turns over which photographs are held out. Prints a table.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np


def run_experiment(dataset: str, tokenizer: str, seed: int, changes: list[str]) -> dict[str, float]:
    """The test metrics of one run."""
    name = f"{dataset}-{tokenizer}-{seed}"
    changes = [f"tokenizer={tokenizer}", f"seed={seed}", f"dataset={dataset}", *changes]
    if dataset not in ("demo", "csv"):
        changes = [f"manifest.folder={Path('datasets', dataset).resolve()}", *changes]  # a temporary run is elsewhere
    call_dvc(
        "exp", "run", "--temp", "--force", "--name", name, *(part for change in changes for part in ("-S", change))
    )
    metrics = read_metrics(name)
    print(f"{name}: test SRCC {metrics['srcc']:.3f}  PLCC {metrics['plcc']:.3f}", file=sys.stderr, flush=True)
    return metrics


def read_metrics(name: str) -> dict[str, float]:
    """Of an experiment, as `dvc exp show` has them."""
    for commit in json.loads(call_dvc("exp", "show", "--json", "--num", "1")):
        for experiment in commit["experiments"] or []:
            for revision in experiment["revs"]:
                if revision["name"] == name:
                    found: dict[str, float] = revision["data"]["metrics"]["runs/evaluate/metrics.json"]["data"]
                    return found
    sys.exit(f"dvc exp show does not list {name}")


def call_dvc(*arguments: str) -> str:
    """Standard output."""
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"dvc {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokenizers", nargs="+", default=["charm", "standard"])
    parser.add_argument("--dataset", default="demo")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of params.yaml", dest="changes"
    )
    chosen = parser.parse_args()
    found = {
        name: [run_experiment(chosen.dataset, name, seed, chosen.changes) for seed in chosen.seeds]
        for name in chosen.tokenizers
    }
    print(f"| tokenizer | {' | '.join(f'seed {seed}' for seed in chosen.seeds)} | SRCC | PLCC | ACC |")
    print("|---" * (len(chosen.seeds) + 4) + "|")
    for name, runs in found.items():
        columns = [f"{run['srcc']:.3f}" for run in runs]
        for metric in ("srcc", "plcc", "acc"):
            values = np.array([run[metric] for run in runs])
            spread = values.std(ddof=1 if len(values) > 1 else 0)
            columns.append(f"{values.mean():.3f} ± {spread:.3f}, median {np.median(values):.3f}")
        print(f"| `{name}` | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
