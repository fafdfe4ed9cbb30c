import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import simplejpeg

from charm.runtime.errors import UserError
from pipeline.manifest.rows import inspect_images
from pipeline.manifest.table import read_manifest
from pipeline.settings.params import Params
from pipeline.work.store import read_sidecar, store_folder, write_record
from stages import manifest
from tests.conftest import draw_image
from tests.no_cluster import use_no_cluster
from tests.stages.conftest import small_params

Workspace = tuple[Path, Params]


def test_every_listed_image_is_kept_or_rejected_with_its_reason(workspace: Workspace) -> None:
    folder, _ = workspace
    facts = json.loads((folder / "data/manifest/dataset.json").read_text())
    with (folder / "data/manifest/rejected.csv").open() as text:
        rejected = {row["name"]: row["reason"] for row in csv.DictReader(text)}
    assert rejected == {"missing.jpg": "missing", "empty.jpg": "empty", "cut.jpg": "corrupt"}
    assert (facts["listed"], facts["packed"]) == (30, 27)
    assert facts["rejected"] == {"corrupt": 1, "empty": 1, "missing": 1}
    assert facts["splits"] == {"train": 15, "val": 6, "test": 6}


def test_scores_and_threshold_are_scaled_to_0_1(workspace: Workspace) -> None:
    folder, _ = workspace
    read = read_manifest(folder / "data/manifest")
    first = float((folder / "images/labels.csv").read_text().splitlines()[1].split(",")[1])
    assert read.targets[0, 0] == pytest.approx((first - 1) / 4)
    assert (read.facts.accuracy_threshold, read.unit_threshold) == (3.0, 0.5)


def test_too_many_rejects_stop_the_run(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, params = workspace
    monkeypatch.chdir(tmp_path)
    strict = replace(params, manifest=replace(params.manifest, max_reject_frac=0.05))
    with pytest.raises(UserError, match=r"3 of 30 listed images cannot be used .*max_reject_frac = 0.05"):
        manifest.main(strict)


def test_an_empty_split_stops_the_run(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, params = workspace
    monkeypatch.chdir(tmp_path)
    drawn = replace(params.manifest, split_column=None, val_share=0.0)
    with pytest.raises(UserError, match="no image is in the split 'val'"):
        manifest.main(replace(params, manifest=drawn))


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, store: Path) -> Any:
    """Runs the stage on rows of (file, stars, split) and gives dataset.json."""
    use_no_cluster(monkeypatch)

    def run(*rows: tuple[str, float | str, str], **settings: Any) -> dict[str, Any]:
        lines = ["file,stars,part", *(f"{name},{stars},{split}" for name, stars, split in rows)]
        Path("labels.csv").write_text("\n".join(lines) + "\n")
        params = small_params(Path())
        manifest.main(replace(params, manifest=replace(params.manifest, **{"max_reject_frac": 0.5} | settings)))
        facts: dict[str, Any] = json.loads(Path("data/manifest/dataset.json").read_bytes())
        return facts

    for index in range(4):
        Path(f"{index}.jpg").write_bytes(simplejpeg.encode_jpeg(draw_image(20, 30, index)))
    return run


GOOD = (("0.jpg", 1, "train"), ("1.jpg", 2, "val"), ("2.jpg", 3, "test"))


def test_the_same_file_in_two_splits_stops_the_run_with_both_places(run_here: Any) -> None:
    Path("copy.jpg").write_bytes(Path("1.jpg").read_bytes())
    rows = (*GOOD, ("copy.jpg", 5, "train"), ("3.jpg", 5, "train"))
    with pytest.raises(UserError) as error:
        run_here(*rows)
    assert str(error.value).startswith(
        "2 listed images are the same files in more than one split, for example "
        "1.jpg in val (labels.csv:3) and copy.jpg in train (labels.csv:5); "
    )
    assert "manifest.leaks: allow" in str(error.value)


def test_leaks_of_published_splits_are_allowed_printed_and_counted(
    run_here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("copy.jpg").write_bytes(Path("1.jpg").read_bytes())
    facts = run_here(*GOOD, ("copy.jpg", 5, "train"), leaks="allow")
    assert facts["leaks"] == 2
    assert "2 listed images are the same files in more than one split" in capsys.readouterr().out
    assert run_here(*GOOD, leaks="allow")["leaks"] == 0


def test_copies_in_one_split_are_no_leak(run_here: Any) -> None:
    Path("copy.jpg").write_bytes(Path("0.jpg").read_bytes())
    facts = run_here(*GOOD, ("copy.jpg", 1, "train"))
    assert (facts["leaks"], facts["notes"]) == (0, {})


def test_equal_files_with_different_labels_are_noted_and_above_a_share_refused(
    run_here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("copy.jpg").write_bytes(Path("0.jpg").read_bytes())
    rows = (*GOOD, ("copy.jpg", 5, "train"))
    assert run_here(*rows)["notes"] == {"label_conflict": 2}
    problem = (
        "2 listed images are the same files with different labels, for example 0.jpg labelled [1.0] (labels.csv:2) and "
        "copy.jpg labelled [5.0] (labels.csv:5)"
    )
    assert f"manifest: {problem}\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^2 listed images are the same files .* manifest.max_reject_frac = 0.4: give"):
        run_here(*rows, max_reject_frac=0.4)


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        (("train", "test"), "val"),
        (("train", "val"), "test"),
        (("train",), "val and test"),
        (("train", "val", "test"), None),
    ],
)
def test_splits_that_the_labels_do_not_name_are_drawn_from_train(
    given: tuple[str, ...], drawn: str | None, run_here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"{index}.jpg", 1, given[index % len(given)]) for index in range(4)]
    splits = run_here(*rows, val_share=0.5, test_share=0.5)["splits"]
    assert set(splits) == {"train", "val", "test"}
    note = f"; {drawn} drawn from train, as the labels name none\n"
    assert (note in capsys.readouterr().out) == (drawn is not None)
    given_rows = [row for row in rows if row[2] != "train"]
    found = read_manifest(Path("data/manifest")).table
    named = dict(zip(found["name"].to_pylist(), found["split"].to_pylist(), strict=True))
    assert {name: split for name, _, split in given_rows}.items() <= named.items()


def test_a_group_in_two_given_splits_stops_the_run_or_is_counted(
    run_here: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (*GOOD, ("3.jpg", 3, "train"))  # the column of stars stands for a scene, too
    with pytest.raises(UserError) as error:
        run_here(*rows, group_column="stars")
    assert str(error.value).startswith(
        "2 listed images are of the same group in more than one split, for example "
        "2.jpg in test (labels.csv:4) and 3.jpg in train (labels.csv:5); "
    )
    facts = run_here(*rows, group_column="stars", leaks="allow")
    assert (facts["leaks"], facts["groups"]) == (2, {"test": 1, "train": 2, "val": 1})
    assert "2 listed images are of the same group" in capsys.readouterr().out


def test_several_ratings_and_none(run_here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (*GOOD, ("0.jpg", 2, "train"), ("1.jpg", "", ""), ("3.jpg", "", ""), ("gone.jpg", "", ""))
    facts = run_here(*rows, max_reject_frac=0.0)  # images that nobody has rated are not counted in it
    assert (facts["listed"], facts["packed"], facts["rejected"]) == (5, 3, {"unrated": 2})
    assert (facts["rated_again"], facts["mean_spread"]) == (1, pytest.approx(0.5**0.5))
    table = read_manifest(Path("data/manifest")).table
    assert table["target"].to_pylist() == [[0.125], [0.25], [0.5]]
    assert table["ratings"].to_pylist() == [2, 1, 1]
    assert table["spread"].to_pylist() == [pytest.approx(0.5**0.5), None, None]
    said = capsys.readouterr().out
    assert "labels.csv: 3 of 7 rows have no rating and are left out" in said
    assert "1 image with several ratings, which are averaged; their standard deviation is 0.707 on average" in said


def test_images_that_no_row_lists_are_counted(run_here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(*GOOD)
    assert "manifest: 1 image below . in no row of labels, such as '3.jpg'\n" in capsys.readouterr().out


def test_missing_images_say_where_they_were_looked_for_and_what_is_near(run_here: Any) -> None:
    rows = (*GOOD, *((f"{index}.JPEG", 3, "train") for index in range(3)))
    run_here(*rows)
    with Path("data/manifest/rejected.csv").open() as text:
        meanings = [row["meaning"] for row in csv.DictReader(text)]
    here = Path.cwd()
    assert meanings == [
        f"there is no such file in {here} (manifest.root); there is {index}.jpg, which differs in its ending"
        for index in range(3)
    ]
    with pytest.raises(UserError) as error:
        run_here(*rows, max_reject_frac=0.1)
    assert str(error.value).endswith(f"see data/manifest/rejected.csv; 0.JPEG: {meanings[0]}")


@pytest.mark.parametrize("reason", ["unreadable", "timeout", "memory", "crashed"])
def test_a_reason_that_may_pass_is_not_kept_for_good(
    reason: str, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing about the file changes between the runs."""
    looks = []

    def inspect(root: str, paths: list[str], *rest: Any) -> None:
        looks.append(paths)
        inspect_images(root, paths, *rest)
        if len(looks) <= 2:
            sidecar = rest[-1].with_suffix(".json")
            found = (read_sidecar(sidecar) or {})["images"]
            write_record(sidecar, {"images": [*found[:-1], {"reason": reason}]})

    monkeypatch.setattr(manifest, "inspect_images", inspect)
    rows = (*GOOD, ("3.jpg", 5, "train"))
    assert run_here(*rows)["rejected"] == {reason: 1}
    assert run_here(*rows)["rejected"] == {reason: 1}
    assert run_here(*rows)["rejected"] == {}
    assert run_here(*rows)["rejected"] == {}
    assert len(looks) == 3


def test_lasting_reasons_are_not_looked_at_again(run_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("cut.jpg").write_bytes(Path("0.jpg").read_bytes()[:-50])
    rows = (*GOOD, ("cut.jpg", 5, "train"), ("gone.jpg", 5, "train"))
    assert run_here(*rows)["rejected"] == {"corrupt": 1, "missing": 1}
    monkeypatch.setattr(manifest, "inspect_images", lambda *_: pytest.fail("looked again"))
    assert run_here(*rows)["rejected"] == {"corrupt": 1, "missing": 1}
    assert len(list(store_folder("manifest").glob("*.json"))) == 1


def test_a_missing_image_that_comes_later_is_found(run_here: Any) -> None:
    Path("late.jpg").write_bytes(Path("3.jpg").read_bytes())
    Path("late.jpg").rename("elsewhere")
    assert run_here(*GOOD, ("late.jpg", 5, "train"))["rejected"] == {"missing": 1}
    Path("elsewhere").rename("late.jpg")
    assert run_here(*GOOD, ("late.jpg", 5, "train"))["rejected"] == {}


def test_names_that_turn_text_about_are_written_out(run_here: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Where they are printed; the manifest has them as they are."""
    twin, unlisted = "\u202egnp.0.jpg", "0\u2067new\x07.jpg"
    Path(unlisted).write_bytes(b"")
    Path(twin).write_bytes(Path("0.jpg").read_bytes())
    rows = [("0.jpg", 1, "train"), (twin, 5, "train"), ("1.jpg", 2, "val"), ("2.jpg", 3, "test")]
    run_here(*rows, max_reject_frac=1.0)
    printed = capsys.readouterr().out
    assert r"\u202egnp.0.jpg" in printed
    assert r"0\u2067new\x07.jpg" in printed
    assert not set("\u202e\u2067\x07") & set(printed)
    assert twin in read_manifest(Path("data/manifest")).table["name"].to_pylist()
