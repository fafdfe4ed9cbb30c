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
        ("table2", "Ghosal et al.", (0.764, 0.762, None)),
        ("table2", "DINOv2-small + padding", (0.709, 0.703, 0.801)),
        ("table2", "Swin", (0.748, 0.751, 0.816)),
        ("table2", "DINOv2-small + NaFlex", (None, None, None)),
        ("table5", "640x640, 2 scales", (512, 13.46, 7.3, 346.0)),
        ("table8", "Gradient", (0.838, 0.734, 0.845, 0.721, 0.825, 0.766)),
        ("table10", "The paper's (random crop)", (0.710, 0.706, 0.802)),
        ("table11", "None", (0.833, 0.768, 0.829, 0.766, 0.859, 0.822)),
        ("table11", "Flip", (0.818, 0.776, 0.812, 0.775, 0.851, 0.824)),
        ("table15", "[54]", (0.834, 0.819, 135.5e9)),
        ("table16", "[5]", (0.924, 0.921, 25.6e6)),
        ("table17", "640x640", (1600, 58.11, 23.6, 1352.1)),
        ("text", "4.3: ELTA, DINOv2-large + Charm", (0.787, 0.786, 0.829)),
        ("text", "6: AnyRes", (0.637, 0.619, 0.697)),
        ("text", "12: Charm without scale embedding", (0.748, 0.739, 0.750)),
        ("text", "18: standard, 384 pixels", (0.429, 0.404, 0.653)),
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
    counts = {name: len(rows) for name, rows in TABLES.items()}
    assert counts == {
        **{"table1": 14, "table2": 23, "table3": 4, "table4": 6, "table5": 4, "table6": 6, "table7": 3, "table8": 6},
        **{"table9": 2, "table10": 2, "table11": 5, "table12": 3, "table13": 8, "table14": 4, "table15": 29},
        **{"table16": 8, "table17": 4, "table18": 3, "text": 8, "figure10": 6},
    }
    assert {f"table{number}" for number in range(1, 19)} <= counts.keys()
    assert all(TITLES[name].startswith(f"Table {name[5:]}: ") for name in TITLES if name.startswith("table"))
    trained = [row for rows in TABLES.values() for row in rows if not row.cost]
    assert {row.dataset for row in trained} == {"ava", "aadb", "tad66k", "para", "baid", "spaq", "koniq10k"}
    for rows in TABLES.values():
        assert len({(row.name, row.dataset) for row in rows}) == len(rows)
        for row in rows:
            assert len(row.paper) == len(row.metrics) == len(rows[0].metrics)
            scores = [one for name, one in zip(row.metrics, row.paper, strict=True) if name.endswith(("cc", "acc"))]
            assert max((score for score in scores if score is not None), default=0) < 1


def test_what_is_not_run_says_why() -> None:
    silent = [row.name for rows in TABLES.values() for row in rows if row.is_quoted and len(row.missing["paper"]) < 20]
    assert silent == []
    never = {row.name.split(" et")[0] for row in TABLES["table2"] if row.missing["paper"]}
    assert never == {"Ghosal", "Chen", "MSViT", "ToMe", "APT"}


def test_tables_8_and_11_ask_for_training_scores() -> None:
    asked = {
        name for name, rows in TABLES.items() if any(row.settings["demo"]["evaluate.train_scores"] for row in rows)
    }
    assert asked == {name for name, rows in TABLES.items() if "train_plcc" in rows[0].metrics} == {"table8", "table11"}


def test_table_8_extends_table_4() -> None:
    tests = {row.name: row.paper[1::2] for row in TABLES["table8"]}
    assert tests == {row.name: row.paper for row in TABLES["table4"]}


def test_charm_gains_what_the_paper_says() -> None:
    """Percent in PLCC, SRCC and ACC, from the arrows of Table 1."""
    gains = {}
    for standard, charm in zip(TABLES["table1"][::2], TABLES["table1"][1::2], strict=True):
        pairs = zip(standard.paper, charm.paper, strict=True)
        gains[charm.dataset] = [round(100 * (b - a), 1) for a, b in pairs if a is not None and b is not None]
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
