"""Settings beside a trained model: the one module of the library that touches files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_NAME = "charm_tokenizer.json"


def write_settings(folder: str | Path, settings: dict[str, Any]) -> None:
    """Writes folder/charm_tokenizer.json."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / _NAME).write_text(json.dumps(settings, indent=1) + "\n")


def read_settings(folder: str | Path, known: Iterable[str]) -> dict[str, Any]:
    """Undoes `write_settings`.

    Raises:
        OSError: there is no such file.
        ValueError: not JSON, or it holds other names than the known ones.
    """
    path = Path(folder) / _NAME
    settings = json.loads(path.read_text())
    if not isinstance(settings, dict) or settings.keys() - set(known):
        raise ValueError(f"{path} holds {settings}: expected settings out of {', '.join(sorted(known))}")
    return settings
