"""Splits of manifest rows: drawn so that equal files and images of one group stay together, or found not to be."""

from collections.abc import Iterable
from typing import Any

from charm.tokenization.draws import draw_random_bits

Row = dict[str, Any]


def draw_splits(rows: list[Row], shares: dict[str, float], seed: int) -> None:
    """Moves some rows from training to other splits: split -> its share of the files that are left, in this order.

    Equal files go to the same split, whatever their names, as do all images of a group.
    """
    bundles = _bundle(rows)
    # Each bundle has its own draw, so that new files move few others to another split.
    left = sorted(bundles, key=lambda name: int(draw_random_bits(seed, 0, name, "split", 1)[0]))
    sizes = {name: len({row["sha256"] for row in bundle}) for name, bundle in bundles.items()}
    for place, (split, share) in enumerate(shares.items()):
        taken: list[str] = []
        wanted = round(share * sum(sizes[name] for name in left))
        most = len(left) - len(shares) + place  # one bundle at least for training and each later split
        lacking = wanted
        for name in left:
            if sizes[name] <= 2 * lacking and len(taken) < most:  # nearer to what is wanted with it than without
                taken.append(name)
                lacking -= sizes[name]
        if wanted and not taken and most > 0:  # all groups are large
            taken = [min(left, key=lambda name: sizes[name])]
        for name in taken:
            for row in bundles.pop(name):
                row["split"] = split
        left = [name for name in left if name in bundles]


def _bundle(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Returns name -> rows that have to be in one split, because of equal bytes or an equal group.

    A bundle is named by its first group, or by its file's sha256 if it has none.
    """
    parents: dict[tuple[bool, str], tuple[bool, str]] = {}  # a group sorts before a file

    def find(tie: tuple[bool, str]) -> tuple[bool, str]:
        while (parent := parents.setdefault(tie, tie)) != tie:
            parents[tie] = tie = parents[parent]
        return tie

    for row in rows:
        if row["group"] is not None:
            low, high = sorted((find((False, row["group"])), find((True, row["sha256"]))))
            parents[high] = low
    bundles: dict[str, list[Row]] = {}
    for row in rows:
        is_file, name = find((True, row["sha256"]))
        bundles.setdefault(name if is_file else f"group {name}", []).append(row)
    return bundles


def find_clashes(rows: list[Row], same: str, other: str) -> list[list[int]]:
    """Finds groups of kept rows, by index, that are equal in the column `same` and not all equal in `other`."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if not row["reason"] and row[same] is not None:
            groups.setdefault(row[same], []).append(index)
    return [group for group in groups.values() if any(rows[i][other] != rows[group[0]][other] for i in group)]


def find_leaks(rows: list[Row]) -> list[list[int]]:
    """Finds groups of rows, by index, that hold the very same bytes, or are of one group, in more than one split."""
    return [*find_clashes(rows, "sha256", "split"), *find_clashes(rows, "group", "split")]
