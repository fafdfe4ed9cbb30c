"""Draws of splits that keep equal files and groups together, from rows that the labels leave to be drawn."""

from collections import Counter
from typing import Any

import pytest

from pipeline.manifest.splits import draw_splits

SHARES = {"test": 0.2, "val": 0.1}


def rows_of(*images: tuple[str, str | None]) -> list[dict[str, Any]]:
    """Rows of (sha256, group), for training."""
    return [{"sha256": sha, "group": group, "split": "train", "reason": ""} for sha, group in images]


def drawn(*images: tuple[str, str | None], seed: int = 0, shares: dict[str, float] = SHARES) -> list[str]:
    rows = rows_of(*images)
    draw_splits(rows, shares, seed)
    return [row["split"] for row in rows]


BURSTS = [(f"{index:03d}", f"scene {index // 5}") for index in range(200)]


def splits_by(names: list[str], splits: list[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, split in zip(names, splits, strict=True):
        found.setdefault(name, set()).add(split)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shares", [SHARES, {"val": 0.1}, {"test": 0.2}, {}], ids=str)
def test_groups_stay_together_and_shares_are_kept(shares: dict[str, float], seed: int) -> None:
    splits = drawn(*BURSTS, seed=seed, shares=shares)
    assert all(len(found) == 1 for found in splits_by([group for _, group in BURSTS], splits).values())
    left, expected = 200.0, {}
    for split, share in shares.items():
        expected[split] = share * left
        left -= expected[split]
    counted = Counter(splits)
    assert set(counted) == {"train", *shares}
    assert all(abs(counted[split] - count) <= 2.5 for split, count in expected.items())


def test_equal_files_tie_groups_together() -> None:
    """A chain: each group shares a file with the next."""
    images = [(f"{(index + 1) // 2}", f"{index // 2}") for index in range(40)]
    assert len(set(drawn(*images, *BURSTS)[:40])) == 1


def test_images_without_a_group_are_drawn_as_if_there_were_no_column() -> None:
    alone = [(f"{index:03d}", None) for index in range(100)]
    assert Counter(drawn(*alone)) == {"test": 20, "val": 8, "train": 72}
    assert drawn(*alone) == drawn(*alone[::-1])[::-1] != drawn(*alone, seed=1)


def test_a_new_image_of_a_group_does_not_move_it() -> None:
    before = drawn(*BURSTS)
    after = drawn(*BURSTS, ("", "scene 7"))
    assert sum(one != other for one, other in zip(before, after[:-1], strict=True)) <= 5
    assert after[-1] == after[35]


@pytest.mark.parametrize("sizes", [(100, 100, 100), (300, 10, 10), (2, 1, 1), (1, 1, 1, 1, 1)], ids=str)
def test_few_large_groups_leave_no_split_empty(sizes: tuple[int, ...]) -> None:
    images = [(f"{group} {index}", str(group)) for group, size in enumerate(sizes) for index in range(size)]
    for seed in range(5):
        assert set(drawn(*images, seed=seed, shares={"test": 0.34, "val": 0.34})) == {"train", "val", "test"}
