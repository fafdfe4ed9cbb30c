"""Labels before any file is opened: wrong ones are named with their line, several of one image are averaged."""

import math
from pathlib import Path
from typing import Any

import pytest

from charm.runtime.errors import UserError
from pipeline.manifest.labels import Listed, Listing, average_ratings, check_listing


def listing(*images: Listed, score_range: tuple[float, float] = (0.0, 1.0)) -> Listing:
    return Listing(Path("/nowhere"), list(images), score_range, 0.5, "nothing")


def listed(name: str = "a.jpg", target: tuple[float, ...] = (0.5,), split: str | None = None, **facts: Any) -> Listed:
    return Listed(name, name, target, split, **{"where": "labels.csv:7"} | facts)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        pytest.param([], "the labels list no images", id="none"),
        pytest.param([listed(""), listed()], "labels.csv:7: the path is empty", id="no path"),
        pytest.param([listed(target=(float("nan"),))], "labels.csv:7: a score of a.jpg is not a number", id="nan"),
        pytest.param([listed(target=(float("inf"),))], "labels.csv:7: a score of a.jpg is not a number", id="infinite"),
        pytest.param(
            [listed(target=(1.01,))], "labels.csv:7: the score 1.01 of a.jpg is outside", id="above the range"
        ),
        pytest.param(
            [listed(target=(-0.1,))], "labels.csv:7: the score -0.1 of a.jpg is outside", id="below the range"
        ),
        pytest.param([listed(target=(0.0, 0.0))], "labels.csv:7: the distribution of a.jpg", id="sum of zero"),
        pytest.param([listed(target=(2.0, -1.0))], "labels.csv:7: the distribution of a.jpg", id="negative share"),
        pytest.param([listed(target=(1.0, float("nan")))], "a score of a.jpg is not a number", id="nan in a share"),
        pytest.param(
            [listed(split="vall")], "labels.csv:7: split 'vall' is not known; did you mean 'val'?", id="split"
        ),
        pytest.param([listed(split="")], "labels.csv:7: a.jpg is in no split: write train, val or test", id="no split"),
    ],
)
def test_wrong_label(images: list[Listed], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_listing(listing(*images))
    assert message in str(error.value)


def test_labels_at_the_ends_of_the_range_are_right() -> None:
    images = [listed("a", (1.0,), "train"), listed("b", (5.0,), "test")]
    check_listing(listing(*images, score_range=(1.0, 5.0)))


def test_an_image_without_a_rating_needs_no_split() -> None:
    check_listing(listing(listed(), listed("b.jpg", (), "")))


@pytest.mark.parametrize(
    ("targets", "mean", "ratings", "spread"),
    [
        pytest.param([(0.5,)], (0.5,), 1, None, id="one"),
        pytest.param([(0.5,), (0.5,)], (0.5,), 2, 0.0, id="equal ones"),
        pytest.param([(0.0,), (0.25,), (0.5,)], (0.25,), 3, 0.25, id="three"),
        pytest.param([(), (0.0,), (), (1.0,)], (0.5,), 2, math.sqrt(0.5), id="rows without a rating"),
        pytest.param([(), (0.5,)], (0.5,), 1, None, id="one row without"),
        pytest.param([(), ()], (), 1, None, id="no rating"),
        pytest.param([(1.0, 0.0, 3.0), (0.0, 1.0, 1.0)], (0.5, 0.5, 2.0), 2, None, id="counts"),
    ],
)
def test_ratings_of_one_image_are_averaged(
    targets: list[tuple[float, ...]], mean: tuple[float, ...], ratings: int, spread: float | None
) -> None:
    names = ["x/a.jpg", "./x/a.jpg", "x//a.jpg", "x/y/../a.jpg"]
    rows = [listed(name, target) for name, target in zip(names, targets, strict=False)]
    other = listed("b.jpg")
    for order in (rows, rows[::-1]):
        first, second = average_ratings(listing(*order, other)).images
        assert (first.target, first.ratings, second) == (mean, ratings, other)
        assert first.spread == (None if spread is None else pytest.approx(spread))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"split": "test"}, "labels.csv:8: a.jpg is in the split 'test', but was in 'train' at labels.csv:7"),
        ({"group": "b"}, "labels.csv:8: a.jpg is in the group 'b', but was in 'a' at labels.csv:7; expected one group"),
        (
            {"group": None},
            "labels.csv:8: a.jpg is in the group None, but was in 'a' at labels.csv:7; expected one group",
        ),
    ],
)
def test_one_image_is_in_one_split_and_group(facts: dict[str, Any], message: str) -> None:
    again = {"split": "train", "group": "a", "where": "labels.csv:8"} | facts
    with pytest.raises(UserError, match=message):
        average_ratings(listing(listed(split="train", group="a"), listed(**again)))
