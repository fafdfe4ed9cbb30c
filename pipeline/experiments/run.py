"""The paper's tables as experiments: the `dvc` commands that run them, and our numbers beside the paper's.

    uv run python -m pipeline experiments table3 table4 --dataset demo --seeds 0 1 2     # prints the commands
    uv run python -m pipeline experiments table3 --dataset demo --seeds 0 1 2 --queue    # for `dvc queue start`
    uv run python -m pipeline experiments table3 --dataset demo --seeds 0 1 2 --run      # one after another
    uv run python -m pipeline experiments table3 --dataset demo --seeds 0 1 2 --show     # the table
    uv run python -m pipeline experiments --show     # of any sweep: a row per setting, mean and spread over its seeds

paper_tables.yaml has the rows. An experiment is params.yaml as it is, changed by what a row, a data set and a seed say.
A digest of all settings that matter tells which run it is, and its name ends in it: what is finished or waiting is not
run again, and tables share their rows. The digest of a run is that of the params that DVC recorded with it, since
params.yaml may be edited between the planning and the running; where its name says otherwise, it is left out. A commit
starts anew, as `dvc exp show` does.
"""

import argparse
import contextlib
import copy
import json
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from charm.runtime.disk import fingerprint
from charm.runtime.errors import UserError, escape_controls
from pipeline.datasets.published import LAYOUTS
from pipeline.experiments.paper_tables import Row, read_tables
from pipeline.settings.params import check_params, read_document

_WHERE = ("hardware", "dask", "report")  # sections that change no number


@dataclass(frozen=True)
class Experiment:
    """A run: its name, which ends in `digest`, and how it differs from params.yaml."""

    name: str
    digest: str
    changes: dict[str, Any]

    def arguments(self, how: str) -> list[str]:
        """Returns the arguments of `dvc`; `how` is "--queue" or "--temp"."""
        changes = [f"{key}={_show(value)}" for key, value in self.changes.items()]
        return ["exp", "run", how, "--name", self.name, *(word for change in changes for word in ("-S", change))]


@dataclass(frozen=True)
class Plan:
    """A row on a data set: one experiment per seed, or why there is none; a row of cost has neither."""

    row: Row
    dataset: str
    experiments: list[Experiment]
    missing: str


def plan_row(row: Row, dataset: str | None, seeds: list[int], extra: dict[str, Any], base: dict[str, Any]) -> Plan:
    """Plans the experiments of a row on a data set (None: the row's own), on top of a params.yaml, `base`."""
    if row.cost:
        return Plan(row, row.dataset, [], "")
    dataset = dataset or row.dataset
    kind = dataset if dataset in row.settings else "paper"
    slug = re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-")
    experiments: list[Experiment] = []
    try:
        if row.missing[kind]:
            raise UserError(row.missing[kind])
        for seed in seeds:
            wanted = row.settings[kind] | {"dataset": dataset, "seed": seed} | extra
            changes, digest = change_params(base, wanted)
            experiments.append(Experiment(f"{row.table}-{slug}-{dataset}-seed{seed}-{digest}", digest, changes))
    except UserError as error:
        return Plan(row, dataset, [], str(error))
    return Plan(row, dataset, experiments, "")


def default_labels(dataset: str) -> dict[str, Any]:
    """Returns the setting that says where a data set's labels lie, empty for the user's own data sets."""
    if dataset == "demo":
        return {"labels": "pipeline/datasets/demo_images.py"}
    # By its full path: DVC runs what is queued in a copy of the commit, which has no downloads.
    return {"labels": str(Path("datasets", dataset).absolute())} if dataset in LAYOUTS else {}


def change_params(base: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns the settings `wanted` that differ from a params.yaml, `base`, and the digest of the result.

    A data set other than that of `base` brings its `default_labels`, unless `wanted` has others.

    Raises:
        UserError: a setting is not known, or cannot have this value.
    """
    document = copy.deepcopy(base)
    dataset = wanted.get("dataset", document["dataset"])
    wanted = (default_labels(dataset) if dataset != document["dataset"] else {}) | wanted
    changes = {}
    for key, value in wanted.items():
        *sections, name = key.split(".")
        holder: Any = document
        for section in sections:
            holder = holder.get(section)
            if not isinstance(holder, dict):
                raise UserError(f"params.yaml has no section {section}, which {key}={_show(value)} would change")
        if name not in holder or holder[name] != value:
            holder[name] = changes[key] = value
    return changes, digest_params(document)


def digest_params(document: dict[str, Any]) -> str:
    """Returns the digest of all settings that matter in the content of a params.yaml, in which `auto` is replaced."""
    settings = asdict(check_params(document, Path("params.yaml")))
    if default_labels(settings["dataset"]):
        del settings["labels"]  # where a published data set lies changes no number
    return fingerprint({name: value for name, value in settings.items() if name not in _WHERE})[:8]


def _show(value: Any) -> str:
    """Formats a value as DVC reads it after `-S key=`."""
    return value if isinstance(value, str) else json.dumps(value)


def read_results() -> dict[str, dict[str, Any] | None]:
    """Reads the test metrics of each experiment on this commit by digest; None while it waits or runs.

    The digest is that of the params that the run had. What has another one in its name is named on stderr, and left
    out.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for state, revision in _read_revisions():
        named = re.search(r"-([0-9a-f]{8})$", revision["name"] or "")
        if named is None:
            continue
        digest = None
        with contextlib.suppress(LookupError, TypeError, UserError):  # its params are no params.yaml
            digest = digest_params(revision["data"]["params"]["params.yaml"]["data"])
        if digest is None or digest != named[1]:
            problem = "it was not run with the settings that its name stands for"
            print(f"left out: {revision['name']}: {problem}", file=sys.stderr)
        elif state == "success":
            found[digest] = _metrics_of(revision)
        else:
            found.setdefault(digest, None)
    return found


def _read_revisions() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields state and revision, as `dvc exp show` has them, of the experiments on this commit that have not failed."""
    for commit in json.loads(call_dvc("exp", "show", "--json", "--num", "1")):
        for experiment in commit["experiments"] or []:
            state = (experiment["executor"] or {}).get("state", "success")
            if state != "failed":
                yield from ((state, revision) for revision in experiment["revs"])


def _metrics_of(revision: dict[str, Any]) -> dict[str, Any]:
    metrics: dict[str, Any] = revision["data"]["metrics"]["runs/evaluate/metrics.json"]["data"]
    return metrics


def _show_sweep() -> None:
    """Prints the finished experiments on this commit, whatever their settings, and names those that are not."""
    from pipeline.experiments.sweep import show_sweep  # SciPy takes a second to import

    runs, waiting = [], []
    for state, revision in _read_revisions():
        try:
            if state != "success":
                raise LookupError
            runs.append((revision["data"]["params"]["params.yaml"]["data"], _metrics_of(revision)))
        except (LookupError, TypeError):
            waiting.append(revision["name"] or revision["rev"])
    if not runs:
        raise UserError(f"no experiment on this commit is finished, {len(waiting)} wait or run: uv run dvc queue start")
    print(show_sweep(runs, _WHERE))
    if waiting:
        print(f"not finished: {', '.join(waiting)}", file=sys.stderr)


def call_dvc(*arguments: str, shown: bool = False) -> str:
    """Runs `dvc` and returns its standard output; "" if it is `shown` as it comes."""
    out = None if shown else subprocess.PIPE
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], stdout=out, text=True, check=False)
    if done.returncode:
        said = f":\n{done.stdout[-2000:]}" if done.stdout else ""
        raise UserError(f"dvc {shlex.join(arguments)} failed{said}")
    return done.stdout or ""


def start(plans: list[Plan], how: str) -> None:
    """Queues ("--queue") or runs ("--temp") what is not finished or waiting; a UserError then names what failed."""
    results = read_results()
    failed = []
    for experiment in _distinct(plans):
        if experiment.digest not in results:
            print(f"{experiment.name} ...", flush=True)
            try:
                call_dvc(*experiment.arguments(how), shown=True)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                failed.append(experiment.name)
    if failed:
        raise UserError(f"{len(failed)} failed, the same command tries them again: {', '.join(failed)}")


def _distinct(plans: list[Plan]) -> list[Experiment]:
    """Returns each run once, though it is in several rows."""
    found: dict[str, Experiment] = {}
    for plan in plans:
        for experiment in plan.experiments:
            found.setdefault(experiment.digest, experiment)
    return list(found.values())


def show_table(title: str, plans: list[Plan], results: dict[str, dict[str, Any] | None]) -> str:
    """Renders Markdown: for each row data set, finished runs and metrics, median ± standard deviation.

    The paper's numbers stand beside those of the data set that they were measured on, and of no other. Rows of cost are
    measured now.
    """
    metrics = plans[0].row.metrics
    compared = [plan.dataset == plan.row.dataset and any(plan.row.paper) for plan in plans]
    beside = " paper | difference |" if any(compared) else ""
    lines = [f"**{title}**", ""]
    lines.append("| | data set | runs |" + "".join(f" {_label(name)} |{beside}" for name in metrics))
    lines.append("|---|---|---|" + "---|" * (lines[-1].count("|") - 4))
    for plan, is_compared in zip(plans, compared, strict=True):
        if plan.missing and not is_compared:
            continue
        runs = [run for experiment in plan.experiments if (run := results.get(experiment.digest)) is not None]
        if plan.row.cost:
            from pipeline.experiments.cost import Pass, measure  # models take seconds to import

            runs = [measure(Pass(**plan.row.cost))]
        state = "quoted" if plan.row.is_quoted else "not covered" if plan.missing else str(len(runs))
        cells = [plan.row.name, escape_controls(plan.dataset), state]
        for name, paper in zip(metrics, plan.row.paper, strict=True):
            ours, middle = _summarize([run.get(name) for run in runs])
            cells.append(ours)
            if is_compared:
                cells.append("" if paper is None else _format(paper))
                cells.append("" if paper is None or middle is None else _format(middle - paper, sign="+"))
            elif beside:
                cells += ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *map(escape_controls, list_missing(plans))]).rstrip() + "\n"


def list_missing(plans: list[Plan]) -> list[str]:
    """Says why rows are not covered, a line for all that have the same reason."""
    reasons: dict[str, list[str]] = {}
    for plan in plans:
        if plan.missing:
            reasons.setdefault(plan.missing, []).append(plan.row.name)
    return [f"Not covered: {'; '.join(dict.fromkeys(names))}: {reason}" for reason, names in reasons.items()]


def _label(metric: str) -> str:
    as_said = {"gmacs": "GMACs"} | {name: name for name in ("tokens", "ms", "parameters")}
    return as_said.get(metric, metric.upper().replace("_", " "))


def _format(value: float, sign: str = "") -> str:
    """Formats a score, or what is counted in larger numbers."""
    return (
        f"{value:{sign}.3f}" if abs(value) <= 1 else f"{value:{sign},.0f}" if abs(value) > 999 else f"{value:{sign}.4g}"
    )


def _summarize(values: list[float | None]) -> tuple[str, float | None]:
    """Returns a cell with median and standard deviation, and the median; None without finished runs."""
    defined = [value for value in values if value is not None]
    if len(defined) < len(values) or not values:
        return "undefined" if values else "", None
    middle = statistics.median(defined)  # as the paper reports runs of several splits
    spread = f" ± {statistics.stdev(defined):.3f}" if len(defined) > 1 else ""
    return f"{_format(middle)}{spread}", middle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m pipeline experiments`."""
    names = [*read_tables()[1], "all"]
    told = f"{', '.join(names)}; with --show none for all finished experiments, as of a sweep"
    parser.add_argument("tables", nargs="*", choices=[*names, []], metavar="table", help=told)
    parser.add_argument("--dataset", help="instead of the paper's: demo, csv, or any other of params.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("-S", "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every run")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--queue", action="store_true", help="queue what is neither finished nor waiting")
    action.add_argument("--run", action="store_true", help="run it, one after another")
    action.add_argument("--show", action="store_true", help="print our numbers, beside the paper's on its data sets")


def run(chosen: argparse.Namespace) -> None:
    """Prints the commands of the chosen tables, queues or runs them, or shows their results."""
    if not chosen.tables:
        if not chosen.show:
            raise UserError("experiments: expected the name of a table, or --show for the experiments of this commit")
        _show_sweep()
        return
    titles, tables = read_tables()
    base = read_document(Path("params.yaml"))
    extra = dict(_parse_setting(text) for text in chosen.set)
    change_params(base, extra | ({"dataset": chosen.dataset} if chosen.dataset else {}))  # a mistake stops here
    plans = {
        name: [plan_row(row, chosen.dataset, chosen.seeds, extra, base) for row in tables[name]]
        for name in (tables if "all" in chosen.tables else chosen.tables)
    }
    if chosen.show:
        results = read_results()
        for name, rows in plans.items():
            print(show_table(titles[name], rows, results))
        return
    everything = [plan for rows in plans.values() for plan in rows]
    for name, rows in plans.items():
        for line in list_missing([plan for plan in rows if not plan.row.is_quoted]):
            print(escape_controls(f"{titles[name]}: {line}"), file=sys.stderr)
        if any(plan.row.cost for plan in rows):
            print(f"{titles[name]}: nothing to run: --show measures it", file=sys.stderr)
    if chosen.queue or chosen.run:
        start(everything, "--queue" if chosen.queue else "--temp")
    else:
        print("\n".join(shlex.join(["uv", "run", "dvc", *one.arguments("--queue")]) for one in _distinct(everything)))


def _parse_setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"-S {text}: expected KEY=VALUE, for example -S train.epochs=5")
    return key, YAML(typ="safe").load(value)
