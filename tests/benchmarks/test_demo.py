"""The comparison on the built-in data set: which runs there are, when one is made again, and its statistics."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.settings.params import Params
from tests.benchmarks.demo import (
    SELECTIONS,
    TOKENIZERS,
    describe,
    describe_difference,
    digest_run,
    make_params,
    make_table,
    read_results,
)

STAGES = ("pos_embeds", "train", "evaluate")


def test_charm_is_the_run_with_random_selection(shipped_params: Params) -> None:
    runs = {name: make_params(shipped_params, name, 2, None) for name in (*TOKENIZERS, *SELECTIONS)}
    assert len({digest_run(params, STAGES) for params in runs.values()}) == 16
    assert runs["charm"] == runs["random"]
    assert (runs["gradient"].tokenizer, runs["gradient"].selection) == ("charm", "gradient")
    assert (runs["hr_ms"].tokenizer, runs["hr_ms"].selection, runs["hr_ms"].seed) == ("square", "random", 2)
    own = {name: run.max_seq_len for name, run in runs.items() if run.max_seq_len != shipped_params.max_seq_len}
    assert own == {"standard": 81, "standard_384": 729, "flexi": 196, "padding": 81, "muller": 81, "anyres": 80}


def test_a_run_is_made_again_where_a_setting_differs_but_not_where_it_runs(shipped_params: Params) -> None:
    params = make_params(shipped_params, "charm", 0, None)
    assert digest_run(replace(params, hardware=shipped_params.hardware), STAGES) == digest_run(params, STAGES)
    for other in (make_params(shipped_params, "charm", 1, None), make_params(shipped_params, "charm", 0, 3)):
        assert digest_run(other, STAGES) != digest_run(params, STAGES)
    assert digest_run(params, ("manifest",)) != digest_run(params, STAGES)


def test_a_line_that_was_cut_short_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert read_results(path) == {}
    lines = [json.dumps({"digest": digest, "srcc": 0.5}) for digest in "abc"]
    path.write_text(f"{lines[0]}\n{lines[1][:-3]}\n\n{lines[2]}\n")
    assert list(read_results(path)) == ["a", "c"]


def test_differences_are_paired_by_seed() -> None:
    """Gaps of 0.1, 0.2 and 0.3: standard error 0.1 / sqrt(3), Student's t of 2 degrees of freedom 4.303."""
    assert describe_difference([0.5, 0.9, 0.7], [0.4, 0.7, 0.4]) == "+0.200 (-0.048 to +0.448), 3 of 3"
    assert describe_difference([0.5, None, 0.75], [0.25, 0.7, 0.75]) == "+0.125 (-1.463 to +1.713), 1 of 2"
    assert describe_difference([0.5], [0.4]) == ""


@pytest.mark.parametrize(
    ("values", "text"),
    [([0.5, 0.7], "0.600 ± 0.141"), ([0.5], "0.500"), ([0.5, None, 0.7], "undefined in 1 of 3")],
    ids=["two", "one", "undefined"],
)
def test_a_mean_is_given_with_its_spread(values: list[float | None], text: str) -> None:
    assert describe(values) == text


def test_table_has_a_row_per_input_and_no_difference_to_itself() -> None:
    runs = {
        "charm": [{"srcc": 0.8, "plcc": 0.8, "acc": 0.8, "seconds": 40}] * 2,
        "standard": [{"srcc": 0.3, "plcc": 0.4, "acc": 0.6, "seconds": 20}] * 2,
    }
    lines = make_table(["charm", "standard"], "standard", runs, [96, 96]).splitlines()
    assert lines[2] == (
        "| `charm` | 96 | 0.800 ± 0.000 | 0.800 ± 0.000 | 0.800 ± 0.000 | +0.500 (+0.500 to +0.500), 2 of 2 | 40 |"
    )
    assert lines[3] == "| `standard` | 96 | 0.300 ± 0.000 | 0.400 ± 0.000 | 0.600 ± 0.000 |  | 20 |"
