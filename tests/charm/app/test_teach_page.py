"""The page of `charm teach` in a browser: keys alone do all of it, a finger does, too, and names are only text."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from charm.app.answers import Answers
from charm.app.learner import Learner
from charm.scorer import CharmScorer
from tests.axe import find_faults
from tests.charm.app.test_teach import HOSTILE, open_learner, serve_page, write_photos
from tests.conftest import needs_chromium

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def served(scorer: CharmScorer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Learner, list[str]]]:
    """The address of the page, whose thirty images are looked at, and what has ended it."""
    folder = tmp_path_factory.mktemp("teach")
    write_photos(folder / "photos")
    with open_learner(scorer, folder / "photos", folder) as learner, serve_page(learner) as (client, ended):
        yield str(client.base_url), learner, ended


@pytest.fixture(scope="module")
def page(served: tuple[str, Learner, list[str]], browser: Browser) -> Iterator[Page]:
    """Fails for whatever the page did wrong."""
    address, *_ = served
    wrong: list[str] = []
    with browser.new_context(viewport={"width": 1280, "height": 900}, has_touch=True) as context:
        opened = context.new_page()
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("console", lambda said: wrong.append(said.text) if "Security Policy" in said.text else None)
        opened.on("request", lambda sent: None if sent.url.startswith(address) else wrong.append(sent.url))
        opened.goto(address)
        yield opened
    assert wrong == []


def count(answers: Answers) -> tuple[int, int]:
    stars = list(answers.stars.values())
    return len(stars) - stars.count(None), stars.count(None)


def press(page: Page, key: str, says: str) -> None:
    see(page)
    page.keyboard.press(key)
    expect(page.locator("#status")).to_contain_text(says)


def see(page: Page) -> None:
    """Waits for the image, without which nothing is answered."""
    expect(page.locator("#image")).to_have_js_property("complete", True)


def hold(page: Page, key: str) -> None:
    see(page)
    for _ in range(6):
        page.keyboard.down(key)
    page.keyboard.up(key)


def test_keys_alone_do_all_of_it(page: Page, served: tuple[str, Learner, list[str]]) -> None:
    _, learner, ended = served
    image, first = page.locator("#image"), learner.folder.files[0]
    expect(page.locator("#name")).to_have_text(learner.folder.name(first.path))
    shown = image.get_attribute("src")
    press(page, "4", "1 answer;")
    expect(image).not_to_have_attribute("src", str(shown))
    press(page, " ", "1 answer, 1 skipped")
    press(page, "U", "1 answer;")  # caps lock
    press(page, "ArrowRight", "1 answer, 1 skipped")
    press(page, "Backspace", "1 answer;")
    press(page, "Backspace", "0 answers")
    expect(image).to_have_attribute("src", str(shown))
    page.keyboard.press("Control+4")  # the browser's own
    hold(page, "3")
    expect(page.locator("#status")).to_contain_text("1 answer;")
    page.get_by_role("button", name="3 ★").focus()
    for key, shown in (("Enter", "2 answers;"), (" ", "3 answers;")):  # of which the button makes a click each
        hold(page, key)
        expect(page.locator("#status")).to_contain_text(shown)
    page.get_by_role("button", name="4 ★").dblclick()  # of which the second click would be of another image
    expect(page.locator("#status")).to_contain_text("4 answers;")
    for _ in range(3):
        page.keyboard.press("u")
    expect(page.locator("#status")).to_contain_text("1 answer;")
    expect(page.locator("#agreement")).to_contain_text("After 19 more answers")
    expect(page.locator("#ranking")).to_be_hidden()
    for number in range(1, 24):
        press(page, str(1 + number % 5), f"{number + 1} answers;")
    assert count(learner.answers) == (24, 0)
    assert list(learner.answers.stars) == sorted(learner.folder.paths, key=learner.folder.place)[:24]
    expect(page.locator("#agreement")).to_contain_text("on 24 answers that it had not seen", timeout=60_000)
    expect(page.locator("#best-title")).to_have_text("Best of 30 photographs")
    scores = [text.split()[0] for text in page.locator("#ranking b").all_text_contents()]
    assert len(scores) == 24
    assert learner.answers.stars.keys() & {src.split("/")[-1] for src in _sources(page)}
    assert ended == []


def _sources(page: Page) -> list[str]:
    return [str(one.get_attribute("src")) for one in page.locator("#ranking img").all()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_axe_finds_no_fault(scheme: str, width: int, page: Page) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#undo").bounding_box()
    assert box
    assert box["y"] + box["height"] <= 844  # image and buttons are on the first screen
    assert find_faults(page) == []


def test_names_are_text_and_a_finger_will_do(page: Page, served: tuple[str, Learner, list[str]]) -> None:
    _, learner, ended = served
    page.set_viewport_size({"width": 390, "height": 844})
    names = list[str]()
    while page.locator("#image").is_visible():
        before = count(learner.answers)[0]
        names.append(page.locator("#name").text_content() or "")
        see(page)
        page.get_by_role("button", name=f"{4 + len(names) % 2} ★").tap()  # the same one so soon would be a double tap
        expect(page.locator("#status")).to_contain_text(f"{before + 1} answers;")
    assert count(learner.answers) == (30, 0)
    assert page.title() == "Charm: give stars"
    shown = {str(one.get_attribute("alt")) for one in page.locator("#ranking img").all()} | set(names)
    assert any(HOSTILE.replace("\u202e", r"\u202e") in name for name in shown)
    expect(page.locator("#wait")).to_have_text("No photograph is left")
    page.keyboard.press("f")
    expect(page.locator("#wait")).to_contain_text("Finished.")
    assert ended == ["finish"]
    press(page, "3", "30 answers;")
    assert count(learner.answers) == (30, 0)


def test_an_answer_that_cannot_be_kept_is_told(
    page: Page, served: tuple[str, Learner, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, learner, _ = served
    learner.answers.undo()
    page.goto(address)
    expect(page.locator("#image")).to_be_visible()
    shown = page.locator("#image").get_attribute("src")

    def fail(lines: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(learner.answers, "add", fail)
        see(page)
        page.keyboard.press("1")
        expect(page.locator("#problem")).to_have_text("the answer cannot be kept: No space left on device")
    expect(page.locator("#image")).to_be_visible()
    expect(page.locator("#image")).to_have_attribute("src", str(shown))
    press(page, "1", "30 answers;")
    expect(page.locator("#problem")).to_have_text("")


def test_an_image_that_is_not_there_to_be_seen_gets_no_stars(
    browser: Browser, served: tuple[str, Learner, list[str]]
) -> None:
    """Until it is loaded, the browser goes on showing the one before it."""
    address, learner, _ = served
    while learner.answers.stars:
        learner.answers.undo()
    waiting = list[Route]()
    page = browser.new_page()
    page.route("**/image/*", lambda route: waiting.append(route))
    page.goto(address)
    expect(page.locator("#name")).to_have_text(learner.folder.name(learner.folder.files[0].path))
    for key in "12345":
        page.keyboard.press(key)
    page.keyboard.press("u")
    assert learner.answers.stars == {}
    assert waiting
    page.unroute("**/image/*")  # lets them go on
    press(page, "4", "1 answer;")
    assert list(learner.answers.stars.values()) == [4]
