"""Intervals by the errors on validation images: ranks, coverage where images are exchangeable, and none too early."""

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from charm.model.config import MOST_ERRORS, Calibration, ModelConfig
from charm.scores import Score
from tests.conftest import draw_image
from tests.untrained import build_scorer, describe


@pytest.mark.parametrize(
    ("images", "level", "rank"),
    [
        pytest.param(9, 0.9, 9, id="the least number, by the largest error"),
        pytest.param(8, 0.9, None, id="one fewer"),
        pytest.param(19, 0.9, 18, id="20 * 0.9, which is a hair above 18 in floating point"),
        pytest.param(99, 0.95, 95, id="95 %"),
        pytest.param(1, 0.5, 1, id="one image, as good as a coin"),
        pytest.param(199, 0.995, 199, id="99.5 %"),
        pytest.param(198, 0.995, None, id="one fewer than it needs"),
    ],
)
def test_the_reach_is_the_error_of_a_rank(images: int, level: float, rank: int | None) -> None:
    calibration = Calibration.of(np.zeros(images), np.random.default_rng(0).permutation(images) + 1.0)
    assert calibration.reach(level) == rank


def test_few_errors_stand_for_many_images_on_the_side_of_caution() -> None:
    calibration = Calibration.of(np.zeros(10_007), np.arange(1, 10_008) / 10_007)
    assert len(calibration.errors) == MOST_ERRORS
    for level in (0.05, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999):
        reach = calibration.reach(level)
        assert reach is not None
        assert level <= reach <= level + 1 / MOST_ERRORS + 2 / 10_007


@pytest.mark.parametrize("images", [9, 60, 1500])
def test_intervals_hold_as_often_as_they_say(images: int) -> None:
    """Of a model with errors of heavy tails; 400 validation sets, of which each is right 0.9 of the time on average."""
    draws = np.random.default_rng(images)
    held = []
    for _ in range(400):
        errors = draws.standard_t(2, images + 50)
        reach = Calibration.of(errors[:images], np.zeros(images)).reach(0.9)
        assert reach is not None
        held.append(np.mean(np.abs(errors[images:]) <= reach))
    expected = math.ceil((images + 1) * 0.9) / (images + 1)
    assert np.mean(held) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("level", [0.0, 1.0, 90.0, -0.5])
def test_a_level_is_a_fraction(level: float) -> None:
    with pytest.raises(ValueError, match=rf"^level={level}: expected a number between 0 and 1, for example 0\.9$"):
        Calibration(1, [0.5]).reach(level)


def test_an_interval_ends_within_the_scale_and_needs_a_calibration() -> None:
    calibration = Calibration.of([0.0] * 9, [1.0] * 9)
    score = Score(4.5, None, None, 4.6, None, calibration, (1.0, 5.0))
    assert score.interval(0.9) == score.interval() == (3.5, 5.0)
    assert score.interval(0.95) is None
    assert replace(score, calibration=None).interval() is None
    assert "calibration" not in repr(score)


def test_a_scorer_gives_intervals_of_as_many_draws_as_were_evaluated() -> None:
    scorer = build_scorer(draws=2, selection="random")
    image = draw_image(130, 150)
    assert scorer(image).interval() is None  # a model that was never evaluated
    scorer.config = replace(scorer.config, calibration=Calibration.of([0.0] * 9, [0.25] * 9))
    found = scorer(image)
    assert found.interval() == pytest.approx((found.score - 0.25, found.score + 0.25))
    assert scorer(image, draws=1).interval() is None
    assert scorer(image, draws=3).interval() is not None


@pytest.mark.parametrize(
    "changed",
    [
        {"errors": [2.0, 1.0]},
        {"errors": [1.0]},
        {"images": 3},
        {"images": 0, "errors": [1.0, 2.0]},
        {"errors": [-1.0, 0.0]},
    ],
    ids=["not ascending", "too few", "too many images", "no image", "negative"],
)
def test_errors_that_nobody_measured_are_refused(changed: dict[str, Any]) -> None:
    config = replace(describe(), calibration=Calibration.of([0.0, 0.0], [1.0, 2.0]))
    assert ModelConfig.from_json(config.to_json()) == config
    wrong = config.to_json() | {"calibration": asdict(Calibration(2, [1.0, 2.0])) | changed}
    with pytest.raises(ValueError, match=r"^calibration\."):
        ModelConfig.from_json(wrong)
