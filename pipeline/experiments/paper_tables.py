"""The paper's tables: what each row changes, and the scores that it has there. paper_tables.yaml has them all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

METRICS = ("plcc", "srcc", "acc")  # the paper's, in its order


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: of the row; table: "table3"; dataset: the paper's.
        settings: params.yaml's keys, with dots, and values, on data of the kinds "paper", "demo" and "csv".
        missing: by the same kinds, why the row cannot be run; "" if it can.
        paper: its PLCC, SRCC and ACC.
    """

    name: str
    table: str
    dataset: str
    settings: dict[str, dict[str, Any]]
    missing: dict[str, str]
    paper: tuple[float, ...]


def read_tables() -> tuple[dict[str, str], dict[str, list[Row]]]:
    """Titles, and rows, of each table, by "table<number>"."""
    file = YAML(typ="safe").load(Path(__file__).with_suffix(".yaml"))
    every_row, on_the_papers_data = file["every_row"], file["on_the_papers_data"]
    titles: dict[str, str] = {}
    tables: dict[str, list[Row]] = {}
    for name, table in file["tables"].items():
        titles[name], tables[name] = table["title"], []
        for row in table["rows"]:
            own, missing = row.get("set", {}), row.get("missing", "")
            settings = {
                "paper": every_row | on_the_papers_data | own,
                "demo": every_row | row.get("on_demo", own),
                "csv": every_row | own,
            }
            reasons = {"paper": missing, "demo": row.get("missing_on_demo", missing), "csv": missing}
            dataset = row.get("dataset") or table["dataset"]
            tables[name].append(Row(row["row"], name, dataset, settings, reasons, tuple(row["paper"])))
    return titles, tables
