"""Plots and words of the report."""

import math

import pytest

from charm.drawing import draw_line, format_score, make_axis
from pipeline.report.page import list_settings

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("values", "least_step", "labels"),
    [
        ([0.02, 0.97], 0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([-0.3, 0.2], 0, [f"{MINUS}0.3", f"{MINUS}0.2", f"{MINUS}0.1", "0.0", "0.1", "0.2"]),
        ([1, 2, 3], 1, ["1", "2", "3"]),
        ([1], 1, ["1", "2"]),
        ([1, 40], 1, ["0", "10", "20", "30", "40"]),
        ([0.243, 0.272], 0, ["0.240", "0.245", "0.250", "0.255", "0.260", "0.265", "0.270", "0.275"]),
        ([math.nan, math.nan], 1, ["0", "1"]),
    ],
    ids=["scores", "negative", "epochs", "one epoch", "many epochs", "narrow", "all undefined"],
)
def test_axis_ticks(values: list[float], least_step: float, labels: list[str]) -> None:
    assert [label for label, _ in make_axis(values, 0, 100, least_step).ticks] == labels


@pytest.mark.parametrize("value", [0.0, 0.3, -5.0, 1e-12, 1e6])
def test_axis_of_equal_values_has_them_inside(value: float) -> None:
    axis = make_axis([value, value], 200, 0)
    assert 0 <= axis.at(value) <= 200
    assert len(axis.ticks) >= 2


def test_axis_runs_from_start_to_stop() -> None:
    axis = make_axis([0, 1], 218, 14)
    assert (axis.at(0), axis.at(0.5), axis.at(1)) == (218, 116, 14)


def test_line_has_a_gap_where_a_score_is_undefined() -> None:
    x, y = make_axis([0, 4], 0, 40, 1), make_axis([0, 1], 100, 0)
    line = draw_line(x, y, [0, 1, 2, 3, 4], [0.0, 1.0, math.nan, 0.5, math.nan])
    assert line == "M0.0 100.0h0L10.0 0.0M30.0 50.0h0"


def test_scores_have_three_decimals_or_are_said_to_be_undefined() -> None:
    assert [format_score(value) for value in (0.81249, -0.5, 1.0, None, math.nan)] == [
        "0.812",
        f"{MINUS}0.500",
        "1.000",
        "undefined",
        "undefined",
    ]


def test_settings_are_listed_by_section() -> None:
    settings = {"seed": 0, "train": {"rate": 1e-5, "flip": True}, "maps": {"a": {"sizes": [28, 32]}, "b": None}}
    assert list_settings(settings) == [
        ("", [("seed", "0")]),
        ("train", [("rate", "1e-05"), ("flip", "true")]),
        ("maps", [("a.sizes", "28, 32"), ("b", "\N{EN DASH}")]),
    ]
