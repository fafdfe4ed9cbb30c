"""The paper's numbers as it prints them, and what a row changes on which data."""

import pytest

from pipeline.experiments.paper_tables import Row, read_tables

TITLES, TABLES = read_tables()


def find_row(table: str, name: str) -> Row:
    return next(row for row in TABLES[table] if row.name == name)


@pytest.mark.parametrize(
    ("table", "row", "paper"),
    [
        ("table1", "AVA, standard", (0.734, 0.732, 0.808)),
        ("table1", "TAD66K, Charm", (0.488, 0.458, 0.794)),
        ("table1", "PARA, Charm", (0.938, 0.905, 0.892)),
        ("table1", "BAID, standard", (0.428, 0.342, 0.750)),
        ("table1", "KonIQ-10k, Charm", (0.944, 0.930, 0.954)),
        ("table3", "MS", (0.710, 0.705, 0.801)),
        ("table3", "HR + MS", (0.763, 0.760, 0.820)),
        ("table4", "Frequency", (0.756, 0.747, 0.761)),
        ("table4", "Saliency", (0.751, 0.738, 0.756)),
        ("table6", "AVA, 2", (0.779, 0.779, 0.826)),
        ("table6", "AADB, 3", (0.753, 0.745, 0.775)),
        ("table7", "Random, first epoch", (0.705, 0.693, 0.756)),
        ("table9", "False", (0.488, 0.458, 0.794)),
        ("table11", "None", (0.768, 0.766, 0.822)),
        ("table11", "Flip", (0.776, 0.775, 0.824)),
        ("table12", "1500", (0.736, 0.727, 0.775)),
        ("table13", "ViT-small, Charm", (0.762, 0.760, 0.827)),
        ("table13", "DINOv2-large, standard", (0.734, 0.732, 0.808)),
        ("table14", "1500", (0.940, 0.908, 0.900)),
        ("table18", "42", (0.732, 0.725, 0.774)),
    ],
)
def test_numbers_are_the_papers(table: str, row: str, paper: tuple[float, ...]) -> None:
    assert find_row(table, row).paper == paper


def test_tables_are_whole() -> None:
    counts = {name.removeprefix("table"): len(rows) for name, rows in TABLES.items()}
    assert counts == {
        **{"1": 14, "3": 4, "4": 6, "6": 6, "7": 3, "9": 2},
        **{"11": 5, "12": 3, "13": 6, "14": 3, "18": 3},
    }
    assert all(title.startswith(f"Table {name.removeprefix('table')}: ") for name, title in TITLES.items())
    assert {row.dataset for rows in TABLES.values() for row in rows} == {
        "ava",
        "aadb",
        "tad66k",
        "para",
        "baid",
        "spaq",
        "koniq10k",
    }
    for rows in TABLES.values():
        assert len({row.name for row in rows}) == len(rows)
        assert all(len(row.paper) == 3 and max(row.paper) < 1 for row in rows)


def test_charm_gains_what_the_paper_says() -> None:
    """Percent in PLCC, SRCC and ACC, from the arrows of Table 1."""
    gains = {}
    for standard, charm in zip(TABLES["table1"][::2], TABLES["table1"][1::2], strict=True):
        gains[charm.dataset] = [round(100 * (b - a), 1) for a, b in zip(standard.paper, charm.paper, strict=True)]
    assert gains == {
        "ava": [4.5, 4.5, 1.8],
        "aadb": [7.2, 7.2, 1.3],
        "tad66k": [5.9, 5.7, 14.8],
        "para": [3.4, 5.0, 2.9],
        "baid": [1.1, 2.6, 1.3],
        "spaq": [0.8, 0.8, 1.0],
        "koniq10k": [4.8, 6.2, 1.6],
    }


def test_data_sets_of_the_paper_are_learnt_from_with_its_backbone() -> None:
    settings = find_row("table12", "768").settings
    assert settings["paper"]["backbone"] == "vit_small_patch14_dinov2.lvd142m"
    assert "backbone" not in settings["demo"] | settings["csv"]
    assert [settings[kind]["max_seq_len"] for kind in ("paper", "csv", "demo")] == [768, 768, 72]
    large = find_row("table13", "DINOv2-large, Charm").settings
    assert large["paper"]["backbone"] == large["demo"]["backbone"] == "vit_large_patch14_dinov2.lvd142m"
