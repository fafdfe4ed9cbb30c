"""The paper's tables: what each row changes, and the scores that it has there. paper_tables.yaml has them all."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

METRICS = ["plcc", "srcc", "acc"]  # of a table that names no others
Numbers = tuple[float | None, ...]  # of the metrics of a table, in their order


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    name: str
    table: str  # as in "table3"
    dataset: str  # the paper's
    # params.yaml's keys, with dots, and values, on data of the kinds "paper", "demo" and "csv"
    settings: dict[str, dict[str, Any]]
    missing: dict[str, str]  # by the same kinds, why the row cannot be run; "" if it can
    metrics: tuple[str, ...]  # of the table, keys of metrics.json
    paper: Numbers  # its numbers of these; None each where it has none
    is_quoted: bool = False  # the numbers are of somebody else's model, which is never run
    # fields of pipeline.experiments.cost.Pass; then nothing is trained, and one forward pass measured. None for a row
    # that is trained.
    cost: dict[str, Any] | None = None


@cache
def read_tables() -> tuple[dict[str, str], dict[str, list[Row]]]:
    """Titles, and rows, of each table, by "table<number>"."""
    file = YAML(typ="safe").load(Path(__file__).with_suffix(".yaml"))
    every_row, on_the_papers_data = file["every_row"], file["on_the_papers_data"]
    titles: dict[str, str] = {}
    tables: dict[str, list[Row]] = {}
    for name, table in file["tables"].items():
        titles[name], tables[name] = table["title"], []
        every_one, metrics = every_row | table.get("set", {}), tuple(table.get("metrics", METRICS))
        for row in table["rows"]:
            own, missing = row.get("set", {}), row.get("missing") or row.get("quoted", "")
            settings = {
                "paper": every_one | on_the_papers_data | own,
                "demo": every_one | row.get("on_demo", own),
                "csv": every_one | own,
            }
            reasons = {"paper": missing, "demo": row.get("missing_on_demo", missing), "csv": missing}
            papers = row.get("paper", [None] * len(metrics))
            for dataset, paper in (papers if isinstance(papers, dict) else {"": papers}).items():
                measured_on = dataset or row.get("dataset") or table["dataset"]
                facts = (measured_on, settings, reasons, metrics, tuple(paper), "quoted" in row, row.get("cost"))
                tables[name].append(Row(row["row"], name, *facts))
    return titles, tables
