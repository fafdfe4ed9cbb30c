"""The model that servers and cards are tested with: of 96 tokens by gradient, two draws, images made smaller."""

from pathlib import Path
from typing import Any

import pytest

from charm.scorer import CharmScorer
from tests import untrained

_SERVED: dict[str, Any] = {"max_seq_len": 96, "selection": "gradient", "max_edge": 300, "draws": 2}


def build_scorer(**changes: Any) -> CharmScorer:
    """Arguments as for tests.untrained.describe."""
    return untrained.build_scorer(**(_SERVED | changes))


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a model; read only."""
    folder = tmp_path_factory.mktemp("model")
    untrained.write_model(folder, **_SERVED)
    return folder


@pytest.fixture(scope="session")
def scorer(served_folder: Path) -> CharmScorer:
    return CharmScorer.from_pretrained(str(served_folder))
