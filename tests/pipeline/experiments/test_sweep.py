"""Any sweep as a table: seeds are grouped, paired by seed, and fit a terminal."""

import json
from typing import Any

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.experiments import run as experiments
from pipeline.experiments.sweep import show_sweep

Run = tuple[dict[str, Any], dict[str, Any]]


def made(rate: float, seed: int, srcc: float | None, **more: Any) -> Run:
    params = {"seed": seed, "train": {"learning_rate": rate, "epochs": 2}, "hardware": {"device": f"cuda:{seed}"}}
    return params | more, {"srcc": srcc, "plcc": 0.5, "acc": 0.75}


SWEEP = [
    *(made(1e-5, seed, srcc) for seed, srcc in enumerate((0.5, 0.6, 0.7))),
    *(made(3e-5, seed, srcc) for seed, srcc in enumerate((0.6, 0.7, 0.8))),
]


def test_seeds_are_averaged_and_paired() -> None:
    draws = np.random.default_rng(0)
    shuffled = [SWEEP[place] for place in draws.permutation(len(SWEEP))]
    assert show_sweep(shuffled, ["hardware"]).splitlines()[2:] == [
        "| train.learning_rate=1e-05 | 3 | 0.600 ± 0.100 | 0.500 ± 0.000 | 0.750 ± 0.000 |  |",
        "| train.learning_rate=3e-05 | 3 | 0.700 ± 0.100 | 0.500 ± 0.000 | 0.750 ± 0.000 "
        "| +0.100 (+0.100 to +0.100), 3 of 3 |",
    ]


def test_differences_are_of_the_seeds_that_both_have() -> None:
    last = show_sweep([*SWEEP[:2], *SWEEP[4:], made(3e-5, 0, None)], ["hardware"]).splitlines()[-1]
    assert last.endswith("| undefined in 1 of 3 | 0.500 ± 0.000 | 0.750 ± 0.000 |  |")
    uneven = show_sweep([*SWEEP[:3], *SWEEP[4:], made(3e-5, 9, 0.9)], ["hardware"]).splitlines()[-1]
    assert uneven.endswith("+0.100 (+0.100 to +0.100), 2 of 2 |")


@pytest.mark.parametrize("length", range(10, 60, 7))
def test_a_table_fits_a_terminal(length: int) -> None:
    runs = [made(1e-5, seed, 0.1234567 * seed, long={"x" * length: place}) for seed in range(3) for place in (1, 2)]
    lines = show_sweep([*runs, made(1e-5, 4, None, long={"x" * length: 1})], ["hardware"]).splitlines()
    assert max(map(len, lines)) <= 120
    assert sum("x" * length in line for line in lines) == 2


def test_settings_of_strangers_are_written_out() -> None:
    runs = [made(1e-5, 0, 0.5, labels=f"\u202e{name}\x1b.csv") for name in ("one", "two")]
    table = show_sweep(runs, ["hardware"])
    assert r"labels=\u202eone\x1b.csv" in table
    assert not set("\u202e\x1b") & set(table)


def test_show_without_a_table_shows_what_is_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(run: Run | None, state: str | None, name: str) -> dict[str, Any]:
        data = run and {
            "params": {"params.yaml": {"data": run[0]}},
            "metrics": {"runs/evaluate/metrics.json": {"data": run[1]}},
        }
        return {"executor": state and {"state": state}, "revs": [{"name": name, "data": data, "rev": "0"}]}

    found = [listed(one, None, "reeky-zack") for one in SWEEP]
    found += [
        listed(SWEEP[0], "queued", "dozen-calf"),
        listed(SWEEP[0], "failed", "gone"),
        listed(None, None, "bare-owl"),
    ]
    shown: list[Any] = [{"experiments": None}, {"experiments": found}]
    monkeypatch.setattr(experiments, "call_dvc", lambda *arguments: json.dumps(shown))
    main(["experiments", "--show"])
    printed = capsys.readouterr()
    assert printed.out.count("train.learning_rate=") == 2
    assert printed.err == "not finished: dozen-calf, bare-owl\n"

    shown[1]["experiments"] = found[-3:]
    for arguments, told in (
        (["--show"], "no experiment on this commit is finished, 2 wait or run"),
        ([], "expected the name"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["experiments", *arguments])
        assert stopped.value.code == 2
        assert told in capsys.readouterr().err
