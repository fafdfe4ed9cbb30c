"""The paper's figures: each is a CSV file and an SVG drawing that parses, and what is missing is named."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from charm.drawing import make_axis
from charm.runtime.errors import UserError
from pipeline.__main__ import main
from pipeline.experiments.paper_tables import read_tables
from pipeline.experiments.run import plan_row
from pipeline.figures import numbers
from pipeline.figures import run as figures
from pipeline.figures.draw import Panel, Series, draw_chart, draw_sheet
from pipeline.figures.images import PATCH_SIZE
from pipeline.manifest.table import read_manifest
from pipeline.settings.params import Params, read_document
from tests.conftest import ROOT

Workspace = tuple[Path, Params]
Rows = list[dict[str, str]]
SVG = "{http://www.w3.org/2000/svg}"


def draw(out: Path, *arguments: str) -> tuple[Rows, ElementTree.Element]:
    main(["figures", *arguments, "--out", str(out)])
    with (out / f"{arguments[0]}.csv").open(newline="") as file:
        return list(csv.DictReader(file)), ElementTree.parse(out / f"{arguments[0]}.svg").getroot()


def column(rows: Rows, name: str, **where: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name] and where.items() <= row.items()]


def is_deterministic_at_one_and_freer_above(rows: Rows) -> bool:
    overlaps = [np.mean(column(rows, "overlap", column=f"t = {t}")) for t in ("1", "1.5", "4")]
    return overlaps[0] == 1 > overlaps[1] > overlaps[2]


SHEETS: dict[str, tuple[set[str], Callable[[Rows], bool]]] = {
    "fig7": ({"image", "salient object"}, lambda rows: 0 <= min(column(rows, "coverage")) < 1),
    "fig8": (
        {"image", "random", "frequency", "gradient", "entropy", "saliency"},
        lambda rows: column(rows, "overlap", column="entropy") == [1, 1, 1] and min(column(rows, "native_patches")) > 0,
    ),
    "fig9": ({"t = 1", "t = 1.5", "t = 2", "t = 4"}, is_deterministic_at_one_and_freer_above),
    "fig11": ({"image", "normalized"}, lambda rows: 0.3 < np.mean(column(rows, "clipped")) < 0.9),
    "fig12": ({"image", "HF", "R", "G", "HF + R", "HF + R + G"}, lambda rows: max(column(rows, "turns")) == 1),
    "fig14": ({"image", "bilinear", "Muller"}, lambda rows: min(column(rows, "clipped")) > 0.01),
    "fig15": (
        {"image", "standard", "padding"},
        lambda rows: min(column(rows, "black", column="padding")) > 0.1 > max(column(rows, "black", column="standard")),
    ),
}


@pytest.fixture
def at_work(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(figures, "load_params", lambda: workspace[1])
    return workspace


@pytest.mark.parametrize("name", SHEETS)
def test_sheets_show_images_and_their_facts(name: str, at_work: Workspace, tmp_path: Path) -> None:
    rows, svg = draw(tmp_path, name)
    columns, holds = SHEETS[name]
    assert {row["column"] for row in rows} == columns
    assert len(list(svg.iter(f"{SVG}image"))) == len(rows)
    assert holds(rows), rows


def test_outlines_are_the_native_patches(at_work: Workspace, tmp_path: Path) -> None:
    rows, svg = draw(tmp_path, "fig8")
    outlines = [path.get("d", "").count("M") for path in svg.iter(f"{SVG}path") if path.get("class") == "outline"]
    assert outlines == [int(row["native_patches"]) for row in rows if row["native_patches"]]


def test_sizes_of_other_data_sets_are_kept_from_earlier_drawings(
    at_work: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, _ = draw(tmp_path, "fig13")
    assert [row["series"] for row in rows] == ["train", "val", "test"]
    for row in rows:
        table = read_manifest(Path("data/manifest")).of_split(row["series"]).table.to_pylist()
        pixels = [image["raw_height"] * image["raw_width"] / 1e6 for image in table]
        assert float(row["median"]) == pytest.approx(np.median(pixels))
    assert "fig13: incomplete: uv run dvc exp run -S dataset=ava -S labels=/" in capsys.readouterr().err
    text = (tmp_path / "fig13.csv").read_text()
    (tmp_path / "fig13.csv").write_text(text + "".join(text.splitlines(True)[1:]).replace(",csv,", ",koniq10k,"))
    again, svg = draw(tmp_path, "fig13")
    assert [row["category"] for row in again] == ["koniq10k", "csv"] * 3
    assert len([path for path in svg.iter(f"{SVG}path") if "zM" in path.get("d", "")]) == 6
    assert "koniq10k" not in capsys.readouterr().err


def test_times_are_measured_for_each_selection(
    at_work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbers, "PIXELS", [(60, 60), (450, 460)])
    rows, _ = draw(tmp_path, "fig6")
    made = [f"{name}, {how}" for name in ("frequency", "gradient", "entropy") for how in ("made on the way", "given")]
    assert [row["series"] for row in rows[::2]] == ["standard", "random", *made, "saliency"]
    assert column(rows, "x")[:2] == [0.0036, 0.207]
    assert min(column(rows, "y")) > 0


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any] | None]:
    """Finished runs by digest, as `dvc exp show` would give them; filled by the test."""
    monkeypatch.chdir(ROOT)
    found: dict[str, dict[str, Any] | None] = {}
    monkeypatch.setattr(numbers, "read_results", lambda: found)
    return found


def digest(table: str, name: str, dataset: str, seed: int = 0) -> str:
    row = next(row for row in read_tables()[1][table] if row.name == name)
    return plan_row(row, dataset, [seed], {}, read_document(ROOT / "params.yaml")).experiments[0].digest


def test_the_papers_models_are_hollow_beside_ours(
    results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results[digest("table2", "DINOv2-small + Charm", "ava")] = {"parameters": 22_000_000, "plcc": 0.75}
    rows, svg = draw(tmp_path, "fig4")
    assert [(row["x"], row["y"], row["label"]) for row in rows if row["of_paper"] == "False"] == [
        ("22.0", "0.75", "DINOv2-small + Charm")
    ]
    paper = {row["label"]: (row["x"], row["y"]) for row in rows if row["of_paper"] == "True"}
    assert paper["[54]"] == ("135500.0", "0.834")
    assert len(paper) == 11
    hollow, full = (group for group in svg.iter(f"{SVG}g"))
    assert (hollow.get("fill"), len(list(hollow.iter(f"{SVG}circle")))) == ("none", 11)
    assert (full.get("fill"), len(list(full.iter(f"{SVG}circle")))) == (full.get("stroke"), 1)
    command = "fig4: incomplete: uv run python -m pipeline experiments table2 table13 --seeds 0 --run"
    assert capsys.readouterr().err.splitlines() == [command]


def test_the_papers_models_stand_beside_no_other_data_set(results: dict[str, Any], tmp_path: Path) -> None:
    results[digest("table2", "DINOv2-small + NaFlex", "demo")] = {"parameters": 1000, "plcc": 0.5}
    rows, _ = draw(tmp_path, "fig4", "--dataset", "demo")
    assert [row["series"] for row in rows] == ["ours, on demo"]


def test_epochs_are_averaged_over_the_seeds(results: dict[str, Any], tmp_path: Path) -> None:
    for seed, epoch in enumerate((4, 7)):
        results[digest("table1", "AADB, Charm", "aadb", seed)] = {"best_epoch": epoch}
        results[digest("table1", "AADB, standard", "aadb", seed)] = {"best_epoch": 10 * epoch}
    rows, _ = draw(tmp_path, "fig5", "--seeds", "0", "1")
    assert [(row["series"], row["category"], row["y"]) for row in rows] == [
        ("standard", "aadb", "55.0"),
        ("Charm", "aadb", "5.5"),
    ]


def test_validation_scores_lie_over_the_thresholds(
    results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("1", "1.25", "1.5", "2", "3", "4")):
        scores = {"val_plcc": 0.1 * number, "val_srcc": None, "val_acc": 0.5}
        results[digest("figure10", name, "demo")] = scores
    rows, svg = draw(tmp_path, "fig10", "--dataset", "demo")
    assert column(rows, "x", series="PLCC") == [1, 1.25, 1.5, 2, 3, 4]
    np.testing.assert_allclose(column(rows, "y", series="PLCC"), np.arange(6) / 10)
    assert {row["y"] for row in rows if row["series"] == "SRCC"} == {"nan"}  # undefined in every run
    assert len([circle for group in svg.iter(f"{SVG}g") for circle in group.iter(f"{SVG}circle")]) == 12
    assert capsys.readouterr().err == ""


def test_what_cannot_be_drawn_is_named_with_the_command_that_makes_it(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["figures", "fig8", "fig5", "--dataset", "aadb"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"fig8: data/shards is missing: uv run dvc exp run -S dataset=aadb -S labels={tmp_path}/datasets/aadb shards",
        "fig5: there is nothing to draw yet: "
        "uv run python -m pipeline experiments table1 --dataset aadb --seeds 0 --run",
        "error: not drawn: fig8, fig5",
    ]


def test_images_of_another_data_set_are_refused(at_work: Workspace) -> None:
    with pytest.raises(UserError, match=r"^data/ holds csv, not ava: uv run .* -S labels=\S+/datasets/ava shards$"):
        figures.open_gallery(at_work[1], "ava")


def test_every_figure_of_numbers_or_images_is_there() -> None:
    assert list(figures.FIGURES) == [f"fig{number}" for number in range(4, 16)]
    assert {name for name, one in figures.FIGURES.items() if one.show} == SHEETS.keys()


def test_names_of_strangers_are_text() -> None:
    name = 'a<b>&"\x01\N{COMBINING ACUTE ACCENT}.jpg'
    image = np.zeros((PATCH_SIZE, 20, 3), np.uint8)
    shown = "".join(ElementTree.fromstring(draw_sheet("x", [Panel(name, image, row=name)])).itertext())
    assert shown.count('a<b>&"\N{REPLACEMENT CHARACTER}') == 2
    chart = ElementTree.fromstring(draw_chart(name, ("x", "y"), [Series(name, [(0, 1, name)])], (name,)))
    assert "".join(chart.itertext()).count("a<b>&") == 4


def test_a_logarithmic_axis_has_a_step_for_each_power_of_ten() -> None:
    axis = make_axis([0.02, 135_500], 0, 700, is_log=True)
    assert axis.ticks == [
        *(("0.01", 0), ("0.1", 87.5), ("1", 175), ("10", 262.5), ("100", 350)),
        *(("1,000", 437.5), ("10,000", 525), ("100,000", 612.5), ("1,000,000", 700)),
    ]
