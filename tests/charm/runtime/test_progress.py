"""A line now and then, where there is no terminal."""

import pytest

from charm.runtime.progress import Progress, format_time


def test_progress_in_a_log_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress("maps", 500, "shard", done=100)
    for count, now in ((0, 31.0), (50, 50.0), (100, 62.0), (50, 80.0), (100, 124.0)):
        progress.move(count, "loss 0.1" if now > 100 else "")
    progress.close()
    assert capsys.readouterr().err == (
        "maps: 100 of 500 shards done\n"
        "maps: 250 of 500 shards done, 2.42 per second, 2 min left\n"
        "maps: 400 of 500 shards done, 2.42 per second, 41 s left, loss 0.1\n"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (22_200, "6 h 10 min"), (360_000, "100 h 0 min")],
)
def test_a_duration_is_said_as_people_do(seconds: float, said: str) -> None:
    assert format_time(seconds) == said
