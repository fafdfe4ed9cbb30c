"""The stars that images get on the page of `charm teach`, kept in a journal as they come."""

import threading
from typing import Any

from charm.app.journal import Lines

STARS = (1, 2, 3, 4, 5)
_ABOUT = {"made_by": "charm teach", "version": 1}
Given = list[tuple[str, int | None]]


class Answers(Lines):
    """A line per answer: an image's key, and its stars or null where it was skipped. Undoing is a line, too."""

    remedy = "take out the line that is no answer, then run this again"

    def load(self) -> None:
        """Reads the answers of earlier runs.

        Raises:
            UserError: the journal is damaged, or of something else.
        """
        self._lock = threading.RLock()
        self._given: Given = []
        try:
            for line in self.read(_ABOUT):
                self._given = _change(self._given, line)
        except (LookupError, TypeError, ValueError) as error:
            raise self.damaged() from error

    @property
    def stars(self) -> dict[str, int | None]:
        """The last answer about each image, by its key."""
        return dict(self._given)

    def give(self, key: str, stars: int | None) -> None:
        """Keeps an answer.

        Raises:
            ValueError: stars are none of STARS and not None.
        """
        self._keep({"key": key, "stars": stars})

    def undo(self) -> None:
        """Takes back the last answer, if there is one."""
        with self._lock:
            if self._given:
                self._keep({"undo": self._given[-1][0]})

    def _keep(self, line: dict[str, Any]) -> None:
        with self._lock:
            changed = _change(self._given, line)
            self.add([line])
            self._given = changed


def _change(given: Given, line: dict[str, Any]) -> Given:
    """Returns the answers after a line; raises LookupError, TypeError or ValueError where it is none."""
    if "undo" in line:
        if given[-1][0] != line["undo"]:
            raise ValueError(f"{line['undo']} was not answered last")
        return given[:-1]
    stars = line["stars"]
    if stars is not None and (type(stars) is not int or stars not in STARS):
        raise ValueError(f"{stars!r}: expected one of {STARS}")
    return [*given, (str(line["key"]), stars)]
