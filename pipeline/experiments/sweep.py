"""Any sweep as a table: finished experiments of this commit, one row for all seeds of the same settings.

uv run dvc exp run --queue -S 'train.learning_rate=1e-5,3e-5' -S 'seed=0,1,2'
uv run dvc queue start
uv run python -m pipeline experiments --show
"""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from charm.runtime.errors import escape_controls
from pipeline.settings.recipes import flatten

METRICS = ("srcc", "plcc", "acc")
_WIDTH = 120  # columns of a terminal

Settings = tuple[tuple[str, str], ...]  # (key, value) of those that differ between runs


def show_sweep(runs: Sequence[tuple[dict[str, Any], dict[str, Any]]], left_out: Sequence[str]) -> str:
    """Renders the runs of a sweep as Markdown, at most 120 columns wide.

    Of each run there are params and test metrics; sections of params that are `left_out` change no number.

    Returns:
        For each setting the number of seeds, mean ± standard deviation over these, and the paired difference of SRCC
        from the first row over the seeds that both have, with its 95 % interval (Student's t).
    """
    groups = group_runs(runs, left_out)
    named = (", ".join(f"{key}={value}" for key, value in settings) or "one setting" for settings in groups)
    names = [escape_controls(name) for name in named]
    baseline = next(iter(groups.values()), {})
    rows = []
    for seeds in groups.values():
        both = [seed for seed in seeds if seed in baseline and seeds is not baseline]
        gap = describe_difference([seeds[seed]["srcc"] for seed in both], [baseline[seed]["srcc"] for seed in both])
        means = (describe([metrics[metric] for metrics in seeds.values()]) for metric in METRICS)
        rows.append(" | ".join([str(len(seeds)), *means, gap]))
    is_short = all(len(f"| {name} | {row} |") <= _WIDTH for name, row in zip(names, rows, strict=True))
    shown = names if is_short else [f"({number})" for number in range(1, len(names) + 1)]
    lines = ["| | seeds | SRCC | PLCC | ACC | SRCC less that of the first (95 %), above |", "|---|---|---|---|---|---|"]
    lines += [f"| {name} | {row} |" for name, row in zip(shown, rows, strict=True)]
    if not is_short:  # what the numbers stand for comes below
        lines.append("")
        for pair in zip(shown, names, strict=True):
            lines += textwrap.wrap(" ".join(pair), _WIDTH, subsequent_indent="    ")
    return "\n".join(lines)


def group_runs(
    runs: Sequence[tuple[dict[str, Any], dict[str, Any]]], left_out: Sequence[str]
) -> dict[Settings, dict[Any, dict[str, Any]]]:
    """Groups runs by the settings in which any two differ, the seed apart: settings -> seed -> metrics."""
    flat = [flatten({key: value for key, value in params.items() if key not in left_out}) for params, _ in runs]
    keys = sorted({key for one in flat for key in one} - {"seed"})
    differing = [key for key in keys if len({str(one.get(key)) for one in flat}) > 1]
    groups: dict[Settings, dict[Any, dict[str, Any]]] = {}
    for one, (_, metrics) in zip(flat, runs, strict=True):
        settings = tuple((key, str(one.get(key))) for key in differing)
        groups.setdefault(settings, {})[one.get("seed")] = metrics
    return dict(sorted(groups.items()))


def describe(values: Sequence[float | None]) -> str:
    """Formats mean and standard deviation; says how many values are undefined, if any are."""
    defined = [value for value in values if value is not None]
    if len(defined) < len(values):
        return f"undefined in {len(values) - len(defined)} of {len(values)}"
    spread = f" ± {np.std(defined, ddof=1):.3f}" if len(defined) > 1 else ""
    return f"{np.mean(defined):.3f}{spread}"


def describe_difference(values: Sequence[float | None], others: Sequence[float | None]) -> str:
    """Formats the mean of values less others, paired by seed, with its 95 % interval (Student's t), and how often it is
    above 0; "" of fewer than two pairs."""
    pairs = zip(values, others, strict=True)
    gaps = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    if len(gaps) < 2:
        return ""
    mean, error = np.mean(gaps), np.std(gaps, ddof=1) / math.sqrt(len(gaps))
    reach = stats.t.ppf(0.975, len(gaps) - 1) * error
    above = sum(gap > 0 for gap in gaps)
    return f"{mean:+.3f} ({mean - reach:+.3f} to {mean + reach:+.3f}), {above} of {len(gaps)}"
