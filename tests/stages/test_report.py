"""The page stands alone, says what the run found, and trusts no name."""

import csv
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from playwright.sync_api import Browser

from charm.hub import write_model_folder
from charm.model.config import Calibration, TrainingConfig
from charm.runtime.errors import UserError
from charm.tokenization.budget import AreaSeen
from pipeline.importance.make import encode_mask, write_coverages
from pipeline.manifest.labels import Listed, Listing
from pipeline.manifest.table import write_manifest
from pipeline.pos_embeds.axes import AreaSummary, write_area
from pipeline.settings.params import Params, load_params
from pipeline.shards.read import ShardReader
from pipeline.shards.write import pack_shard, write_shard
from pipeline.work.store import write_record
from stages.report import main
from tests.axe import find_faults
from tests.conftest import needs_chromium
from tests.untrained import describe

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
HOSTILE = "<script>alert('x')</script>\"><img src=https://example.org/x>\u202egnp.\x07.jpg"
METRICS = {
    **{"plcc": 0.81249, "plcc_low": 0.62, "plcc_high": 0.9},
    **{"srcc": None, "srcc_low": None, "srcc_high": None},
    **{"krcc": -0.25, "krcc_low": -0.5, "krcc_high": 0.0},
    **{"acc": 0.75, "acc_low": 0.5, "acc_high": 1.0},
    **{"mae": 0.125, "mae_low": 0.1, "mae_high": 0.1499},
    **{"interval_reach": 0.25, "interval_coverage": 0.75},
    "scored": 4,
    "best_epoch": 2,
    "parameters": 1000,
    **{f"{split}_{name}": None for split in ("val", "train") for name in ("plcc", "srcc", "acc")},
    "draw_spread": 0.05,
    "draws": 4,
    "dataset": "demo",
    "split_sha256": "",
    "leaks": 0,
    "notes": {},
    "saliency_empty_rate": None,
    "saliency_small_rate": None,
    "listed": 7,
    "packed": 6,
    "rejected": {"corrupt": 1},
}
HISTORY = """epoch,learning_rate,train_loss,val_plcc,val_srcc,val_krcc,val_acc,val_mae
1,0.001,0.31,nan,nan,nan,0.5,0.3
2,0.001,0.25,0.4,0.3,0.2,0.5,0.2
"""


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Settings of a run whose folders are in the working directory: four test images, one with a hostile name."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    rows = []
    for index in range(7):
        image = random.integers(0, 256, (84 + index, 112, 3), np.uint8)
        data = simplejpeg.encode_jpeg(image, quality=90)
        Path(f"{index}.jpg").write_bytes(data)
        rows.append(
            {
                "key": f"{index:08}",
                "name": HOSTILE if index == 1 else f"{index}.jpg",
                "path": f"{index}.jpg",
                "extension": "jpg",
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "raw_height": 84 + index,
                "raw_width": 112,
                "height": 84 + index,
                "width": 112,
                "split": "test" if index < 4 else "train" if index == 4 else "val",
                "group": None,
                "target": [index / 6],
                "ratings": 1,
                "spread": None,
                "notes": [],
                "reason": "corrupt" if index == 6 else "",
            }
        )
    for folder in ("data/manifest", "data/shards", "data/pos_embeds", "runs/train", "runs/evaluate"):
        Path(folder).mkdir(parents=True)
    listing = Listing(tmp_path, [Listed("0.jpg", "0.jpg", (0.0,), None, "")], (0.0, 1.0), 0.5, "nothing")
    write_manifest(Path("data/manifest"), rows, listing, "demo")
    pack_shard(rows[:6], str(tmp_path), "jpg", 95, (0.0, 1.0), Path("data/shards/shard-000000"))
    write_area(Path("data/pos_embeds"), AreaSummary(AreaSeen(0.1, 0.3, 0.6), AreaSeen(0.05, 0.15, 0.8)))
    config = replace(describe(), training=TrainingConfig(2, 112, None, None))
    write_model_folder(Path("runs/train"), {}, config)
    calibration = Calibration.of([0.0] * 12, [error / 48 for error in range(1, 13)])
    write_model_folder(Path("runs/evaluate/model"), {}, replace(config, calibration=calibration))
    Path("runs/train/history.csv").write_text(HISTORY)
    Path("runs/evaluate/metrics.json").write_text(json.dumps(METRICS))
    with open("runs/evaluate/predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "name", "target", "predicted", "spread", "raw"])
        for row, raw in zip(rows[:4], (0.1, 0.3, 0.2, 0.3), strict=True):
            writer.writerow([row["key"], row["name"], row["target"][0], 0.4, 0.0, raw])
    return replace(PARAMS, max_seq_len=40, selection="entropy")


def make_page(params: Params) -> str:
    main(params)
    return Path("runs/report/report.html").read_text()


class Tags(HTMLParser):
    """Fails where an element is closed that is not the last opened."""

    # Elements of SVG that the page closes in the tag itself are reported as both opened and closed.
    void = ("meta", "img", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_needs_no_other_file(params: Params) -> None:
    page = make_page(params)
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    links = [value for name, value in tags.attributes if name in ("src", "href")]
    assert len(links) > 20
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert not re.search(r"url\(|@import|<script", page)
    names = [value for name, value in tags.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert {link[1:] for link in links if link.startswith("#")} <= set(names)


def test_numbers_are_those_of_the_run(params: Params) -> None:
    page = make_page(params)
    scores = re.findall(r'<td [^>]*class="number[^"]*">([^<]+)<(?:small>([^<]+)<)?', page)
    assert scores == [
        ("0.812", "0.620 to 0.900"),
        ("undefined", ""),
        ("\N{MINUS SIGN}0.250", "\N{MINUS SIGN}0.500 to 0.000"),
        ("0.750", "0.500 to 1.000"),
        ("0.125", "0.100 to 0.150"),
        ("\N{EN DASH}", ""),
        ("\N{EN DASH}", ""),
        ("\N{EN DASH}", ""),
        ("0.000", ""),  # the only training image is good, and no test image
        ("0.417", ""),
    ]
    assert "no model: 0.667, the mean training label, for every image" in page
    assert "of 100 pairs" not in page
    assert re.search(r"7 images listed = 6 packed\s+\+ 1 rejected", page)
    assert "damaged or cut short" in page
    assert "undefined where all predicted scores" in page


def test_what_scores_mean_and_what_speaks_against_them(params: Params) -> None:
    page = make_page(params)
    assert "A score guesses nothing." in page  # the meaning of these labels
    assert "learnt from 1 image," in page
    assert "<b>Beware.</b> On the test images the order of the scores is no better than chance: SRCC undefined." in page
    assert "random weights" not in page  # of the built-in data
    Path("runs/evaluate/metrics.json").write_text(
        json.dumps(METRICS | {"srcc": 0.5, "srcc_low": 0.4, "srcc_high": 0.6})
    )
    page = make_page(params)
    assert "Beware" not in page
    assert (
        "different labels, the model puts 75 of 100 pairs in the right order" in page
    )  # 4 of 6, and a tie is half right


def test_the_area_that_is_seen_is_told(params: Params) -> None:
    page = make_page(params)
    assert "in the median 10 % native, 30 % downscaled, 60 % dropped; of the image" in page
    assert "least of, 5 % native, 15 % downscaled, 80 % dropped" in page
    assert "More than half of the area of most images is dropped" in page
    write_area(Path("data/pos_embeds"), AreaSummary(AreaSeen(0.2, 0.3, 0.5), AreaSeen(0.05, 0.15, 0.8)))
    assert "More than half" not in make_page(params)
    write_area(Path("data/pos_embeds"), None)
    assert "in the median" not in make_page(replace(params, tokenizer="standard", max_seq_len=None))


@needs_chromium
@pytest.mark.parametrize("selection", ["random", "entropy"])
def test_it_fits_and_axe_finds_no_fault(selection: str, params: Params, browser: Browser) -> None:
    make_page(replace(params, selection=selection))
    page = browser.new_page()
    page.goto(Path("runs/report/report.html").absolute().as_uri())
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert find_faults(page) == []


def test_where_chance_decides_there_is_no_map(params: Params) -> None:
    page = make_page(params)
    by_strategy = re.findall(r'<div class="view (\w+)">(.*?)</div>\n    ', page, flags=re.DOTALL)
    tiles = {name: part.count('<figure class="tile"') for name, part in by_strategy}
    assert tiles["random"] == 2
    assert "Any coarse patch is as likely as any other." in page
    assert "No map" not in page


def test_hostile_name_is_text(params: Params) -> None:
    """Of a setting, too; characters that turn text about, or are none to be seen, are written out."""
    page = make_page(replace(params, labels="\u2067photos\x1b[2J.csv"))
    assert HOSTILE not in page
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)" in page
    assert r"\u202egnp.\x07.jpg" in page
    assert r"\u2067photos\x1b[2J.csv" in page
    assert not set("\u202e\u2067\x07\x1b") & set(page)


def test_equal_inputs_give_equal_bytes(params: Params) -> None:
    assert make_page(params) == make_page(params)


def test_the_strategy_in_use_is_marked(params: Params) -> None:
    page = make_page(params)
    assert re.findall(r'id="show-(\w+)"( checked)?', page) == [
        ("random", ""),
        ("frequency", ""),
        ("gradient", ""),
        ("entropy", " checked"),
        ("saliency", ""),
    ]
    assert page.count('class="image"') == 4


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"tokenizer": "standard", "max_seq_len": None}, "there are no strategies to compare"),
        ({"max_seq_len": 512}, "there was nothing to select"),
    ],
    ids=["standard input", "small images"],
)
def test_without_selection_there_are_no_strategies(params: Params, changed: dict, why: str) -> None:
    page = make_page(replace(params, **changed))
    assert why in page
    assert "show-entropy" not in page
    assert "What the model sees" in page


def test_missing_evaluation_is_one_line(params: Params) -> None:
    Path("runs/evaluate/metrics.json").unlink()
    with pytest.raises(UserError, match=r"runs/evaluate/metrics\.json: .*; run dvc repro"):
        main(params)


def test_a_run_by_saliency_shows_its_own_masks(params: Params) -> None:
    """Those that were read for training, not what the detector without weights would have found."""
    samples = []
    for key in ShardReader(Path("data/shards")):
        mask = np.zeros((84 + int(key), 112), bool)
        mask[:28, :28] = key != "00000003"
        samples.append((key, encode_mask(mask)))
    folder = Path("data/importance")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_shard(folder / "shard-000000", samples, ShardReader(Path("data/shards")).images["shard-000000"])
    facts = {
        "map": "saliency",
        "backend": "sam_hq",
        "settings": {"sam": "vit_b", "prompt": "camo <object>"},
    } | write_coverages(folder)
    write_record(folder / "column.json", facts)
    page = make_page(replace(params, selection="saliency"))
    assert re.search(r"SAM-HQ \(vit_b\) looked for “camo &lt;object&gt;” in 6 images", page)
    assert re.search(r"1 image \(16\.67 %\) came out empty", page)
    assert len(re.findall(r"<figcaption>[^<]+<br>[78]\.\d %</figcaption>", page)) == 5
    covered = [int(share) for share in re.findall(r"object, (\d+)% of the image", page)]
    assert sorted(covered) == [0, 8, 8, 8]  # in the gallery, of the fitted images
    assert "Saliency masks" not in make_page(params)
