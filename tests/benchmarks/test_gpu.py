"""The script for a GPU, at toy size on the CPU: it runs to its end, and each line holds a measured number."""

import re

import pytest

from tests.benchmarks import gpu, loader


@pytest.mark.filterwarnings("ignore")  # of segment_anything_hq
def test_it_runs_to_its_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(loader, "COUNT", 4)
    gpu.main(["--toy", "--device", "cpu"])
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| toy \| (\w+) \| (\d+) \| (\w+) \| False \| ([\d.]+) \| ([\d.]+) \|", printed, re.MULTILINE)
    inputs = [("224", "256"), ("Charm", "48"), ("NaFlex", "48")]
    assert [(*row[:3],) for row in rows] == [(*one, kind) for kind in ("float32", "bfloat16") for one in inputs]
    assert all(float(images) > 0 for *_, images, _ in rows)
    assert all(float(row[4]) == 1 for row in rows if row[0] == "224")
    assert re.search(r"^\| 1 \| [\d.]+ images/s, data \d+ %, model \d+ % \|$", printed, re.MULTILINE)
    assert "Two equal runs of 20 steps: losses equal." in printed
    assert re.search(r"ten boxes of 1024x768: [\d.]+ images/s", printed)
