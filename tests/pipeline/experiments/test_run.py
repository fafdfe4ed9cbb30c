"""Rows as runs: with settings that DVC and params.yaml know, made once, and shown beside the paper's numbers."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from charm.runtime.errors import UserError
from pipeline.__main__ import main
from pipeline.experiments import run as experiments
from pipeline.experiments.paper_tables import Row, read_tables
from pipeline.experiments.run import Plan, change_params, plan_row, read_results, show_table, start
from pipeline.settings.params import read_document
from tests.conftest import ROOT

SHIPPED = ROOT / "params.yaml"
BASE = read_document(SHIPPED)
_, TABLES = read_tables()
ROWS = [row for rows in TABLES.values() for row in rows]
# What is not run on the built-in data set.
NOT_COVERED = {
    "table2": ["Ghosal et al.", "Chen et al.", "MSViT", "ToMe", "APT"],
    "table9": ["True"],  # its backbone is not pre-trained
    "table10": ["DINOv2's (centre crop, normalized)"],
    **{name: [row.name for row in TABLES[name] if row.is_quoted] for name in ("table15", "table16")},
}


def find_row(table: str, name: str) -> Row:
    return next(row for row in TABLES[table] if row.name == name)


def plan(table: str, name: str, dataset: str = "demo", seeds: tuple[int, ...] = (0,), **extra: Any) -> Plan:
    return plan_row(find_row(table, name), dataset, list(seeds), extra, BASE)


def test_every_other_row_can_be_run() -> None:
    missing: dict[str, list[str]] = {}
    for row in ROWS:
        if plan_row(row, "demo", [0], {}, BASE).missing:
            missing.setdefault(row.table, []).append(row.name)
    assert missing == NOT_COVERED


def list_differing_rows() -> list[Row]:
    """Rows that set something to a value to which none before them sets it."""
    found, seen = [], set()
    for row in ROWS:
        if not row.cost and not row.missing["demo"]:
            settings = {f"{key}={value!r}" for key, value in row.settings["demo"].items()}
            if settings - seen:
                found.append(row)
                seen |= settings
    return found


@pytest.mark.parametrize("row", list_differing_rows(), ids=lambda row: f"{row.table}, {row.name}")
def test_dvc_makes_the_settings_that_were_planned(row: Row, tmp_path: Path) -> None:
    """-S through DVC's own parser, on the shipped params.yaml."""
    (experiment,) = plan_row(row, "demo", [3], {}, BASE).experiments
    arguments = experiment.arguments("--queue")
    overrides = [after for word, after in pairwise(arguments) if word == "-S"]
    changed = tmp_path / "params.yaml"
    changed.write_text(SHIPPED.read_text())
    apply_overrides(changed, overrides)
    document = read_document(changed)
    assert document["seed"] == 3
    assert change_params(document, {}) == ({}, experiment.digest)


def test_a_row_settles_what_it_compares_whatever_params_yaml_says() -> None:
    changes, digest = change_params({**BASE, "selection": "gradient"}, find_row("table3", "MS").settings["demo"])
    assert changes == {"tokenizer": "square", "selection": "random"}
    assert digest == change_params(BASE, {"tokenizer": "square"})[1]


def test_equal_runs_have_equal_digests_and_others_have_not() -> None:
    (charm,) = plan("table3", "Charm").experiments
    assert charm.digest == plan("table4", "Random").experiments[0].digest
    assert charm.name == f"table3-charm-demo-seed0-{charm.digest}"
    others = [plan("table3", "MS"), plan("table3", "Charm", seeds=(1,)), plan("table3", "Charm", **{"train.epochs": 2})]
    assert len({charm.digest, *(other.experiments[0].digest for other in others)}) == 4
    elsewhere = plan("table3", "Charm", **{"hardware.loader_workers": 3, "dask.workers": 1})
    assert elsewhere.experiments[0].digest == charm.digest


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"train.epoch": 3}, r"^params\.yaml:\d+: unknown key train\.epoch; did you mean 'epochs'\?$"),
        ({"dataset": "dmo"}, r"^params\.yaml:\d+: dataset: 'dmo' is not known; did you mean 'demo'\?$"),
        ({"trian.epochs": 3}, r"^params\.yaml has no section trian, which trian\.epochs=3 would change$"),
    ],
    ids=["key", "value", "section"],
)
def test_a_setting_that_is_not_known_is_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        change_params(BASE, wanted)


def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        main(["experiments", "table3", "--dataset", "demo", "-S", "train.epoch=3"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: params.yaml:")


def test_commands_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    main(["experiments", "table7", "table18", "--dataset", "demo", "--seeds", "4"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert all(words[:7] == ["uv", "run", "dvc", "exp", "run", "--queue", "--name"] for words in lines)
    assert [words[8:] for words in lines] == [
        ["-S", "tokenizer=standard", "-S", "seed=4"],
        ["-S", "tokens.redraw=once", "-S", "seed=4"],
        ["-S", "seed=4"],  # Charm, in both tables
        ["-S", "tokens.coarse_ratio=3", "-S", "seed=4"],
        ["-S", "tokens.coarse_ratio=4", "-S", "seed=4"],
    ]


@pytest.mark.parametrize(
    ("before", "dataset", "extra", "labels"),
    [
        ("demo", "demo", {}, None),
        ("demo", "koniq10k", {}, str(Path("datasets/koniq10k").absolute())),
        ("demo", "ava", {"labels": "/disk/ava"}, "/disk/ava"),
        ("ava", "ava", {}, None),
        ("csv", "demo", {}, "pipeline/datasets/demo_images.py"),
        ("demo", "csv", {}, None),
    ],
)
def test_another_data_set_has_its_own_labels(
    before: str, dataset: str, extra: dict[str, str], labels: str | None
) -> None:
    """Labels of downloads are named by their full path, since DVC runs what is queued in a copy of the commit."""
    base = {**BASE, "dataset": before, "labels": "x"}
    assert change_params(base, {"dataset": dataset} | extra)[0].get("labels") == labels


def shown(name: str, state: str | None, srcc: float, **changes: Any) -> dict[str, Any]:
    """As `dvc exp show --json` has an experiment with the shipped params and these changes; of one that failed it
    gives the metrics of an older run."""
    params = YAML(typ="safe").load(SHIPPED) | changes
    data = {
        "metrics": {"runs/evaluate/metrics.json": {"data": {"plcc": 0.5, "srcc": srcc, "acc": 0.75}}},
        "params": {"params.yaml": {"data": params}},
    }
    return {"executor": state and {"state": state}, "revs": [{"name": name, "data": data}]}


@pytest.fixture
def dvc(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The calls of dvc but `exp show`, which lists three experiments of Table 3."""
    names = [plan("table3", name).experiments[0].name for name in ("Charm", "Standard", "MS")]
    listed = [
        shown(names[0], None, 0.75),
        shown("reeky-zack", None, 0.1),
        shown(names[1], "queued", 0.2, tokenizer="standard"),
        shown(names[2], "failed", 0.3, tokenizer="ms"),
    ]
    calls = []

    def call(*arguments: str, shown: bool = False) -> str:
        if arguments[:2] == ("exp", "show"):
            return json.dumps([{"experiments": None}, {"experiments": listed}])
        calls.append(arguments)
        return ""

    monkeypatch.setattr(experiments, "call_dvc", call)
    return calls


def test_only_finished_runs_have_results(dvc: list[tuple[str, ...]]) -> None:
    charm, standard = (plan("table3", name).experiments[0].digest for name in ("Charm", "Standard"))
    assert read_results() == {charm: {"plcc": 0.5, "srcc": 0.75, "acc": 0.75}, standard: None}


@pytest.mark.parametrize(
    "recorded",
    [{"selection": "random"}, {"selection": "saliency", "seed": 1}, {"selection": "gone"}, {"tokens": None}],
    ids=["selection", "seed", "of other code", "no section"],
)
def test_a_run_with_other_settings_than_its_name_says_is_left_out(
    recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """params.yaml was edited between the planning and the running."""
    (saliency,) = plan("table4", "Saliency").experiments
    listed = [shown(saliency.name, None, 0.9, **recorded), {"executor": None, "revs": [{"name": saliency.name}]}]
    listed[1]["revs"][0]["data"] = None  # as DVC gives a commit that it cannot read
    show = json.dumps([{"experiments": listed}])
    monkeypatch.setattr(experiments, "call_dvc", lambda *arguments: show)
    assert read_results() == {}
    line = f"left out: {saliency.name}: it was not run with the settings that its name stands for"
    assert capsys.readouterr().err.splitlines() == [line] * 2


def test_where_a_run_was_made_is_no_part_of_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    (charm,) = plan("table3", "Charm").experiments
    hardware = YAML(typ="safe").load(SHIPPED)["hardware"] | {"loader_workers": 7}
    listed = [shown(charm.name, None, 0.9, hardware=hardware)]
    monkeypatch.setattr(experiments, "call_dvc", lambda *arguments: json.dumps([{"experiments": listed}]))
    assert list(read_results()) == [charm.digest]


def test_what_is_finished_or_waiting_is_not_run_again(dvc: list[tuple[str, ...]]) -> None:
    start([plan("table3", row.name) for row in TABLES["table3"]] + [plan("table4", "Standard")], "--queue")
    assert [call[4].rsplit("-", 1)[0] for call in dvc] == ["table3-ms-demo-seed0", "table3-hr-ms-demo-seed0"]


def test_one_that_fails_stops_no_other_and_is_named_at_the_end(
    dvc: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = experiments.call_dvc

    def fail_first(*arguments: str, shown: bool = False) -> str:
        said = call(*arguments, shown=shown)
        if shown and len(dvc) == 1:
            raise UserError("dvc exp run failed")
        return said

    monkeypatch.setattr(experiments, "call_dvc", fail_first)
    with pytest.raises(UserError, match=r"^1 failed, the same command tries them again: table3-ms-demo-seed0-\w+$"):
        start([plan("table3", row.name) for row in TABLES["table3"]], "--temp")
    assert len(dvc) == 2
    assert capsys.readouterr().err == "error: dvc exp run failed\n"


def test_what_an_experiment_prints_is_seen_as_it_comes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "usage" in experiments.call_dvc("--help").lower()
    assert capfd.readouterr().out == ""
    assert experiments.call_dvc("--help", shown=True) == ""
    assert "usage" in capfd.readouterr().out.lower()


def test_our_numbers_stand_beside_the_papers() -> None:
    charm = plan("table3", "Charm", "ava", seeds=(0, 1))
    results: dict[str, dict[str, Any] | None] = {
        charm.experiments[0].digest: {"plcc": 0.80, "srcc": None, "acc": 0.9},
        charm.experiments[1].digest: {"plcc": 0.82, "srcc": 0.7, "acc": 0.7},
    }
    missing = replace(plan("table3", "HR + MS"), experiments=[], missing="no such thing")
    table = show_table("Table 3", [charm, plan("table3", "MS", "ava"), missing], results).splitlines()
    assert table[2].count("| paper | difference |") == 3
    assert {line.count("|") for line in table[2:6]} == {13}
    assert table[4] == (
        "| Charm | ava | 2 | 0.810 ± 0.014 | 0.779 | +0.031 | undefined | 0.777 |  | 0.800 ± 0.141 | 0.826 | -0.026 |"
    )
    assert table[5] == "| MS | ava | 0 |  | 0.710 |  |  | 0.705 |  |  | 0.801 |  |"
    assert table[6:] == ["", "Not covered: HR + MS: no such thing"]


def test_numbers_of_others_are_printed_and_never_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = TABLES["table16"]
    plans = [plan_row(row, None, [0], {}, BASE) for row in rows]
    ours = plans[-1].experiments[0].digest
    table = show_table("Table 16", plans, {ours: {"plcc": 0.95, "srcc": 0.9301, "parameters": 22_000_000}}).splitlines()
    assert table[4] == "| [43] | spaq | quoted |  | 0.928 |  |  | 0.923 |  |  | 30,970,000 |  |"
    assert table[11] == (
        "| DINOv2-small + Charm | koniq10k | 1 | 0.950 | 0.944 | +0.006 | 0.930 | 0.930 | +0.000 "
        "| 22,000,000 | 21,530,000 | +470,000 |"
    )
    assert table[12:] == ["", "Not covered: [43]; [5]; [22], MUSIQ: another model, not trained here"]
    monkeypatch.chdir(ROOT)
    main(["experiments", "table16"])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert [line.count("dvc exp run") for line in printed.out.splitlines()] == [1, 1]


def test_costs_are_measured_and_not_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        "pipeline.experiments.cost.measure", lambda _: {"tokens": 512, "gmacs": 13.5, "ms": 9, "mb": 90}
    )
    plans = [plan_row(row, "demo", [0], {}, BASE) for row in TABLES["table5"]]
    assert show_table("Table 5", plans, {}).splitlines()[6] == (
        "| 640x640, 2 scales | none | 1 | 512 | 512 | +0.000 | 13.5 | 13.46 | +0.040 | 9 | 7.3 | +1.7 "
        "| 90 | 346 | -256 |"
    )
    monkeypatch.chdir(ROOT)
    main(["experiments", "table5"])
    printed = capsys.readouterr()
    assert printed.out.strip() == ""
    assert printed.err.endswith("nothing to run: --show measures it\n")


@pytest.mark.parametrize("dataset", ["demo", "csv", "para"])
def test_the_papers_numbers_belong_to_its_data_set(dataset: str) -> None:
    charm = plan("table3", "Charm", dataset)
    results: dict[str, dict[str, Any] | None] = {charm.experiments[0].digest: {"plcc": 0.8, "srcc": 0.7, "acc": 0.9}}
    assert show_table("Table 3", [charm], results).splitlines()[2:] == [
        "| | data set | runs | PLCC | SRCC | ACC |",
        "|---|---|---|---|---|---|",
        f"| Charm | {dataset} | 1 | 0.800 | 0.700 | 0.900 |",
    ]


def test_of_a_table_of_several_data_sets_the_same_ones_are_compared() -> None:
    plans = [plan("table1", f"{name}, Charm", "para") for name in ("AVA", "PARA")]
    digest = plans[0].experiments[0].digest
    table = show_table("Table 1", plans, {digest: {"plcc": 0.9, "srcc": 0.9, "acc": 0.9}}).splitlines()
    assert table[4] == "| AVA, Charm | para | 1 | 0.900 |  |  | 0.900 |  |  | 0.900 |  |  |"
    assert table[5] == (
        "| PARA, Charm | para | 1 | 0.900 | 0.938 | -0.038 | 0.900 | 0.905 | -0.005 | 0.900 | 0.892 | +0.008 |"
    )


def test_a_params_yaml_that_is_no_yaml_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text("seed: [1\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["experiments", "table3"])
    assert ended.value.code == 2
    assert re.fullmatch(r"error: params\.yaml:2: not valid YAML: .*\n", capsys.readouterr().err)
