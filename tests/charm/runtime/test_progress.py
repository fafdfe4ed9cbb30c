"""A line now and then, where there is no terminal."""

import pytest

from charm.runtime.progress import Progress


def test_progress_in_a_log_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = Progress("maps", 5, "shard", done=1)
    for _ in range(4):
        progress.move()
    progress.close()
    assert capsys.readouterr().err == "maps: 3 of 5 shards done\nmaps: 5 of 5 shards done\n"
