"""The page as a browser shows it: the scorer's ranking, the very patches it cut, and names that are only text."""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import simplejpeg
from playwright.sync_api import Browser, Dialog, Locator, Page, Route, expect

from charm.app.access import Access
from charm.images.decode import decode_image
from charm.images.reasons import REASONS
from charm.model.config import Calibration, EvaluationConfig, SolvedConfig
from charm.scorer import CharmScorer
from charm.tokenization.tokens import Tokens
from tests.axe import find_faults
from tests.charm.app.test_explain import paint_path
from tests.conftest import draw_image, needs_chromium
from tests.serving import run_server
from tests.untrained import write_model

pytestmark = needs_chromium

HOSTILE = "<img src=x onerror=\"document.title='owned'\">.jpg"
IMAGES = {
    "=1+1.jpg": draw_image(200, 260, 0),
    HOSTILE: draw_image(210, 170, 1),
    "three.jpg": draw_image(150, 290, 2),
}
FILES = {name: simplejpeg.encode_jpeg(pixels, quality=90) for name, pixels in IMAGES.items()}
REFUSED = "<b>notes</b>.txt"
ALL_FILES = FILES | {REFUSED: b"no image"}


@pytest.fixture(scope="module")
def address(scorer: CharmScorer) -> Iterator[str]:
    with run_server(scorer) as started:
        yield started


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """With the three photos scored and explained, and the text refused; fails for whatever the page did wrong."""
    with open_page(browser, address) as opened:
        attach(opened, ALL_FILES)
        yield opened


@pytest.fixture
def empty(browser: Browser, address: str) -> Iterator[Page]:
    """Without a photo."""
    with open_page(browser, address) as opened:
        yield opened


@pytest.fixture(scope="module")
def scored(browser: Browser, address: str) -> Iterator[Page]:
    """As `page`, for tests that neither add nor remove photos; each may turn views and change the window."""
    with open_page(browser, address) as opened:
        attach(opened, ALL_FILES)
        yield opened


@contextmanager
def open_page(browser: Browser, address: str) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 1200, "height": 3000}) as context:
        opened = context.new_page()
        wrong: list[str] = []
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("console", lambda said: wrong.append(said.text) if "Security Policy" in said.text else None)
        opened.on("request", lambda sent: None if sent.url.startswith((address, "data:")) else wrong.append(sent.url))
        opened.goto(address)
        opened.locator("#model b").first.wait_for()
        yield opened
        assert [one for one in wrong if not one.startswith("blob:")] == []  # of the page's own, when it saves scores


def attach(page: Page, files: dict[str, bytes]) -> None:
    page.set_input_files(
        "#files", [{"name": name, "mimeType": "image/jpeg", "buffer": data} for name, data in files.items()]
    )
    for index in range(len(IMAGES)):
        page.locator(".entry").nth(index).locator("svg").wait_for()
    page.locator("#errors li").wait_for()


def attach_one(page: Page, name: str, called: str = "") -> None:
    page.set_input_files("#files", [{"name": called or name, "mimeType": "image/jpeg", "buffer": FILES[name]}])
    page.locator(".entry .frame svg").wait_for()


def card_of(page: Page, name: str) -> Locator:
    return page.locator(".entry").nth(page.locator(".entry h3").all_text_contents().index(name))


def ranked(scorer: CharmScorer) -> list[tuple[str, float, float]]:
    """Name, score and spread, best first; of what the server decodes, not of what was encoded."""
    images = {name: decode_image(data).pixels for name, data in FILES.items()}
    scores = scorer.score_tokens([scorer.tokenize(image) for image in images.values()])
    rows = [(name, score.score, score.spread) for name, score in zip(images, scores, strict=True)]
    return sorted(rows, key=lambda row: -row[1])


def show(score: float) -> str:
    return f"{score:.2f}".replace("-", "\N{MINUS SIGN}")


def tokens_of(scorer: CharmScorer, name: str) -> Tokens:
    return scorer.tokenize(decode_image(FILES[name]).pixels, draws=1)[0]


def test_photos_are_ranked_as_the_scorer_scores_them(scored: Page, scorer: CharmScorer) -> None:
    expected = ranked(scorer)
    assert [name for name, _, _ in expected] != list(FILES)  # or the order of sending would pass for a ranking
    assert scored.locator(".entry h3").all_text_contents() == [name for name, _, _ in expected]
    assert scored.locator(".entry .rank").all_text_contents() == ["1", "2", "3"]
    assert scored.locator(".entry .score b").all_text_contents() == [show(score) for _, score, _ in expected]
    for place, (_, score, spread) in enumerate(expected):
        card = scored.locator(".entry").nth(place)
        assert float(card.locator(".score").text_content().split("± ")[1].split()[0]) == pytest.approx(spread, rel=0.06)  # type: ignore[union-attr]
        label = card.locator(".track").get_attribute("aria-label")
        assert label == f"{show(score)} on the scale from 1 to 5"
        width = float(card.locator(".track i").get_attribute("style").split("width: ")[1].rstrip("%;"))  # type: ignore[union-attr]
        assert width == pytest.approx(min(100, max(0, 25 * (score - 1))), abs=0.01)  # it does not leave the scale


def test_outlines_go_around_the_patches_that_the_scorer_cut(scored: Page, scorer: CharmScorer) -> None:
    for name in FILES:
        tokens, card = tokens_of(scorer, name), card_of(scored, name)
        assert card.locator(".frame image").count() == 1  # the photograph as it is
        card.locator("label", has_text="Photograph").click()
        assert card.locator("path").count() == 0
        card.locator("label", has_text="Native patches").click()
        grid_h, grid_w = tokens.grids[-1]
        assert card.locator("svg").get_attribute("viewBox") == f"0 0 {14 * grid_w} {14 * grid_h}"
        paths = {path.get_attribute("d") or "" for path in card.locator("path").all()}
        assert len(paths) == 1
        outlined = paint_path(paths.pop(), (14 * grid_h, 14 * grid_w), 14)
        native = tokens.patch_coord[tokens.patch_valid & (tokens.scale_id == 1)]
        assert 0 < len(native) < outlined.size
        assert sorted(map(tuple, native.tolist())) == [
            (y, x) for y in range(grid_h) for x in range(grid_w) if outlined[y, x]
        ]
        said = card.locator(".note").text_content() or ""
        assert f" {len(native)} patches " in said
        assert "downscaled to" not in said  # no photo is larger than in training


def test_names_are_text_and_nothing_else(scored: Page) -> None:
    assert scored.title() == "Charm: score photographs"
    assert scored.locator("main img, main b b, #errors b b").count() == 0
    assert scored.locator("#errors b").all_text_contents() == [REFUSED]
    assert HOSTILE in scored.locator(".entry h3").all_text_contents()


def test_a_name_that_turns_text_about_is_written_out(empty: Page, tmp_path: Path) -> None:
    attach_one(empty, "three.jpg", "photo\u202egpj.\u2066exe\x07.jpg")
    assert empty.locator(".entry h3").text_content() == r"photo\u202egpj.\u2066exe\u0007.jpg"
    empty.set_input_files("#files", [{"name": "\u200f\n.txt", "mimeType": "image/jpeg", "buffer": b"no image"}])
    expect(empty.locator("#errors b")).to_have_text(r"\u200f\u000a.txt")
    with empty.expect_download() as download:
        empty.get_by_role("button", name="Download scores (CSV)").click()
    download.value.save_as(tmp_path / "scores.csv")
    text = (tmp_path / "scores.csv").read_text(encoding="utf-8-sig")
    assert "\u202e" not in text
    assert r"photo\u202egpj" in text


def test_a_hundred_are_a_compact_list(browser: Browser, address: str) -> None:
    """Closed entries cost the server no explanation; one that is opened gets its own."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        explained: list[str] = []
        page.on("request", lambda sent: explained.append(sent.url) if sent.url.endswith("/explain") else None)
        page.goto(address)
        files = [
            {"name": f"{number}.jpg", "mimeType": "image/jpeg", "buffer": FILES["three.jpg"]} for number in range(100)
        ]
        page.set_input_files("#files", files)
        expect(page.locator(".entry.closed")).to_have_count(100)
        heights = [page.locator(".entry").nth(place).bounding_box() for place in (0, 50, 99)]
        assert all(box and box["height"] < 48 for box in heights)
        assert page.locator(".entry .track").first.bounding_box()["width"] > 90  # type: ignore[index]
        assert explained == []
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator(".entry .name").nth(5).click()
        expect(page.locator(".frame svg")).to_have_count(1)
        assert len(explained) == 1
        assert find_faults(page) == []
        page.get_by_role("button", name="Compact list").click()
        expect(page.locator(".entry.closed")).to_have_count(0)
        page.get_by_role("button", name="Clear").click()
        attach_one(page, "three.jpg")
        expect(page.locator(".entry.closed")).to_have_count(0)
        page.get_by_role("button", name="Compact list").click()
        expect(page.locator(".entry.closed .frame svg")).to_be_hidden()
        assert page.locator(".name").get_attribute("aria-expanded") == "false"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_no_fault(scheme: str, width: int, scored: Page) -> None:
    scored.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    scored.set_viewport_size({"width": width, "height": 900})
    for label in scored.locator(".entry label", has_text="Photograph").all():
        label.click()
    assert find_faults(scored) == []
    for place, view in enumerate(["Native patches", "What moved the score", "Why these patches"]):
        scored.locator(".entry").nth(place).locator("label", has_text=view).click()
    assert find_faults(scored) == []


def test_what_scores_mean_and_how_good_they_are_is_said(scored: Page, browser: Browser, scorer: CharmScorer) -> None:
    assert scored.locator("#ranked-title").text_content() == "Highest score first"
    assert scored.locator("#model b").first.text_content() == "the small vision transformer that Charm brings"
    assert scored.locator("#backbone code").text_content() == "charm_demo"
    said = scored.locator("#trust p").all_text_contents()
    (doubt,) = scorer.config.doubts
    assert said == [
        f"A score guesses {scorer.config.labels.meaning}. How good it is was never measured.",
        f"Beware. {doubt}",
    ]
    metrics = {"srcc": {"value": 0.8125, "low": 0.75, "high": 0.9}}
    evaluated = replace(
        scorer.config,
        data=replace(scorer.config.data, dataset="demo"),
        evaluation=EvaluationConfig(120, None, metrics),
    )
    with run_server(CharmScorer(scorer.model, evaluated)) as address, browser.new_context() as context:
        opened = context.new_page()
        opened.goto(address)
        expect(opened.locator("#trust p")).to_have_text(
            f"A score guesses {scorer.config.labels.meaning}. Its order of 120 test images of demo agreed with that of "
            "their labels by an SRCC of 0.813 (95 % interval 0.750 to 0.900; 1 at best, 0 by chance)."
        )
    crossed = replace(evaluated, evaluation=None, solved=SolvedConfig(2, 1.0, EvaluationConfig(40, None, metrics)))
    with run_server(CharmScorer(scorer.model, crossed)) as address, browser.new_context() as context:
        opened = context.new_page()
        opened.goto(address)
        said = "Its order of 40 images of demo agreed with that of their labels in cross-validation by an SRCC of 0.813"
        expect(opened.locator("#trust p")).to_contain_text(said)


def test_an_interval_stands_beside_the_score(browser: Browser, scorer: CharmScorer) -> None:
    known = replace(scorer.config, calibration=Calibration.of([0.0] * 9, [0.5] * 9))
    model = CharmScorer(scorer.model, known)
    name = "three.jpg"
    with run_server(model) as address, browser.new_context() as context:
        opened = context.new_page()
        opened.goto(address)
        attach_one(opened, name)
        shown = opened.locator(".entry .score")
        expect(shown).to_contain_text(" for 9 of 10 photographs like those of its validation")
        low, high = model(FILES[name]).interval() or (0, 0)
        found = re.findall(r"(\d\.\d+) to (\d\.\d+)", shown.text_content() or "")
        assert [tuple(map(float, pair)) for pair in found] == [pytest.approx((low, high), abs=0.006)]


def test_below_a_path_it_asks_for_the_token_once(browser: Browser, scorer: CharmScorer) -> None:
    access = Access(root_path="/charm", token="0123456789abcdef")
    answers = [None, "wrong", access.token]  # dismissed; then, the page loaded anew, two tries

    def answer(asked: Dialog) -> None:
        token = answers.pop(0)
        asked.dismiss() if token is None else asked.accept(token)

    with run_server(scorer, access=access) as address, browser.new_context() as context:
        opened = context.new_page()
        opened.on("dialog", answer)
        opened.goto(f"{address}/charm")
        expect(opened.locator("#model")).to_contain_text("this server asks for its token")
        opened.reload()
        opened.locator("#model b").first.wait_for()
        attach_one(opened, "three.jpg")
        assert (answers, opened.url) == ([], f"{address}/charm/")


def test_what_could_not_be_scored_says_why(scored: Page) -> None:
    assert scored.locator("#errors li span").text_content() == REASONS["format"]
    assert scored.locator("#status").text_content() == "3 photographs scored, 1 not"


def test_views_are_turned_by_mouse_and_by_keyboard(scored: Page, scorer: CharmScorer) -> None:
    name = "three.jpg"
    card, tokens = card_of(scored, name), tokens_of(scorer, name)
    labels = ["Photograph", "Native patches", "What the model sees", "What moved the score", "Why these patches"]
    assert card.locator("label").all_text_contents() == labels

    card.locator("label", has_text="What the model sees").click()
    assert card.locator("svg").get_attribute("aria-label") == f"{name}: What the model sees"
    assert card.locator("path").count() == 0
    said = card.locator(".note").text_content() or ""
    assert said.startswith(f"{tokens.seq_len} tokens of at most 96")
    assert said.endswith(f" Of the area: {scorer.tokenizer.area_seen(IMAGES[name].shape[:2])}.")  # type: ignore[union-attr]

    scored.keyboard.press("ArrowRight")
    assert card.locator("svg").get_attribute("aria-label") == f"{name}: What moved the score"
    said = card.locator(".note").text_content() or ""
    total, score, flat = map(float, re.findall(r"score by (\S+), to (\S+), .* score of (\d+\.\d+)", said)[0])
    direction = -1 if "lowered" in said else 1
    assert direction * total == pytest.approx(score - flat, abs=0.02)
    assert score == pytest.approx(scorer.score_tokens([[tokens]])[0].score, abs=0.006)
    assert "compared with the same photograph without detail" in said

    scored.keyboard.press("ArrowRight")
    assert card.locator("svg").get_attribute("aria-label") == f"{name}: Why these patches"
    assert "Importance by gradient" in (card.locator(".note").text_content() or "")


def test_scores_can_be_saved_and_are_no_formulas(scored: Page, scorer: CharmScorer, tmp_path: Path) -> None:
    with scored.expect_download() as download:
        scored.get_by_role("button", name="Download scores (CSV)").click()
    download.value.save_as(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(name.replace("=1+1", "./=1+1"), score, spread) for name, score, spread in ranked(scorer)]
    assert [(row["rank"], row["name"]) for row in rows] == [
        *((str(place + 1), name) for place, (name, _, _) in enumerate(expected)),
        ("", REFUSED),
    ]
    for row, (_, score, spread) in zip(rows, expected, strict=False):
        assert float(row["score"]) == pytest.approx(score, abs=1e-5)
        assert float(row["spread"]) == pytest.approx(spread, abs=1e-5)
    assert rows[-1]["error"] == REASONS["format"]


def test_more_photos_can_be_added_and_all_cleared(page: Page) -> None:
    attach(page, {"again.jpg": FILES["three.jpg"]})
    page.locator(".entry").nth(3).locator("svg").wait_for()
    assert page.locator(".entry .rank").all_text_contents() == ["1", "2", "3", "4"]
    names = page.locator(".entry h3").all_text_contents()
    assert abs(names.index("again.jpg") - names.index("three.jpg")) == 1  # the same score, to rounding
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".entry").count() == 0
    assert not page.locator("#work").is_visible()


def test_one_photo_can_be_removed(page: Page, scorer: CharmScorer) -> None:
    first, second, third = (name for name, _, _ in ranked(scorer))
    page.get_by_role("button", name=f"Remove {second}").click()
    assert page.locator(".entry h3").all_text_contents() == [first, third]
    assert page.locator(".entry .rank").all_text_contents() == ["1", "2"]
    assert page.locator("#status").text_content() == "2 photographs scored, 1 not"
    expect(page.get_by_role("button", name=f"Remove {third}")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator(".entry")).to_have_count(0)
    expect(page.locator("#ranked")).to_be_hidden()
    expect(page.locator("#files")).to_be_focused()
    attach_one(page, "three.jpg")
    assert page.locator(".entry .rank").all_text_contents() == ["1"]


def test_distributions_are_bars_over_their_ratings(browser: Browser, tmp_path: Path) -> None:
    write_model(tmp_path, num_outputs=5)
    scorer = CharmScorer.from_pretrained(str(tmp_path))
    with run_server(scorer) as address, browser.new_context() as context:
        page = context.new_page()
        page.goto(address)
        attach_one(page, "three.jpg")
        shares = scorer(decode_image(FILES["three.jpg"]).pixels).distribution
        assert shares is not None
        assert len(set(shares.round(3))) == 5  # or wrong bars would pass
        bars = page.locator(".ratings rect")
        heights = [float(bar.get_attribute("height") or 0) for bar in bars.all()]
        assert heights == pytest.approx(shares / shares.max(), abs=1e-4)
        said = [f"{rating}: {100 * share:.0f} %" for rating, share in zip((1, 2, 3, 4, 5), shares, strict=True)]
        assert bars.locator("title").all_text_contents() == said
        track = page.locator(".track").bounding_box()
        boxes = [bar.bounding_box() for bar in bars.all()]
        assert track
        for index, box in enumerate(boxes):
            assert box
            assert box["x"] + box["width"] / 2 == pytest.approx(track["x"] + track["width"] * index / 4, abs=1)
            assert box["y"] + box["height"] < track["y"]


def test_panoramas_have_the_whole_width(empty: Page) -> None:
    panorama = simplejpeg.encode_jpeg(draw_image(100, 700, 3), quality=90)
    empty.set_input_files("#files", [{"name": "wide.jpg", "mimeType": "image/jpeg", "buffer": panorama}])
    empty.locator(".frame svg").wait_for()
    shown, card = empty.locator(".frame svg").bounding_box(), empty.locator(".entry").bounding_box()
    assert shown
    assert card
    assert shown["width"] == card["width"]


def test_dropped_files_are_scored(empty: Page) -> None:
    transfer = empty.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.jpg"));
            return transfer;
        }""",
        list(FILES["three.jpg"]),
    )
    empty.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    empty.locator(".entry h3", has_text="dropped.jpg").wait_for()


def test_photos_that_come_before_the_page_knows_the_limits_wait(browser: Browser, address: str) -> None:
    page = browser.new_page()
    held: list[Route] = []
    page.route("**/health", lambda route: held.append(route))
    page.goto(address)
    page.set_input_files("#files", [{"name": "three.jpg", "mimeType": "image/jpeg", "buffer": FILES["three.jpg"]}])
    page.wait_for_timeout(300)
    held[0].continue_()
    expect(page.locator(".entry h3")).to_have_text("three.jpg")
    expect(page.locator("#errors li")).to_have_count(0)
    page.close()


def test_fits_a_phone(scored: Page) -> None:
    scored.set_viewport_size({"width": 390, "height": 844})
    assert scored.evaluate("document.documentElement.scrollWidth") <= 390
