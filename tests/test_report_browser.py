"""The report in a browser: what is hidden stays hidden until it is asked for, and nothing is fetched from anywhere."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from palimpsest import report
from palimpsest.report import paging
from synthetic import SyntheticRun, demonstration, won

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
VISIBLE = "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).map(e => e.className)"
FILTER = "return getComputedStyle(arguments[0]).filter"


class Browser:
    """A headless browser, and what it said and asked for since the page was opened."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path) -> None:
        self.emulate()
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(path.as_uri())

    def emulate(self, *, width: int = 1280, medium: str = "") -> None:
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium})

    def asked_for(self) -> list[str]:
        """Every address that was asked for, pictures inside the page left out."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith("data:")]

    def visible(self, what: str) -> list[str]:
        """The classes of what is to be seen of these."""
        found: list[str] = self.driver.execute_script(VISIBLE, what)
        return found

    def click(self, what: str, number: int = 0) -> Any:
        found = self.driver.find_elements("css selector", what)[number]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", found)
        found.click()
        return found

    def filter(self, picture: Any) -> str:
        """How a picture is blurred, once it has stopped changing."""
        self.driver.execute_script("document.getAnimations().forEach(change => change.finish())")
        return str(self.driver.execute_script(FILTER, picture))

    def sideways(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.driver.execute_script("return document.documentElement.scrollWidth - innerWidth"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'palimpsest[browser]'")
    binary = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    chromedriver = shutil.which("chromedriver")
    if not (binary and chromedriver):
        pytest.skip(f"needs one of {', '.join(BROWSERS)}, and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(demonstration().write(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose concept has 3 pages; labels and names are as long as they come."""
    concept = "a cathedral with a name that goes on and on, and-a-word-without-any-place-to-break-it-in-two"
    run = SyntheticRun(kinds={concept: "object"}, goals=501, pictures=True)
    erasers = [f"receler(mask=attention,steps=1000,strength=0.{number})" for number in (5, 7)]
    run.cell(concept, "nothing", "direct", won(501, 501))
    for eraser in erasers:
        run.cell(concept, eraser, "direct", won(0, 501))
        run.cell(concept, eraser, "unlearn_diff", won(250, 501))
    return report.write(run.write(tmp_path_factory.mktemp("large")))


def test_a_page_opens_in_silence(browser: Browser, small: Path, large: Path) -> None:
    for page in (small, large, *sorted((large.parent / paging.FOLDER).iterdir())):
        browser.open(page)
        assert browser.driver.get_log("browser") == []
        asked = browser.asked_for()
        assert page.as_uri() in asked
        run = page.parent if page.name == "report.html" else page.parent.parent
        assert [url for url in asked if not url.startswith(run.as_uri())] == []


def test_a_script_would_be_refused(browser: Browser, small: Path, tmp_path: Path) -> None:
    """That the log is read at all: the same page with a script in it has something to say."""
    page = tmp_path / "report.html"
    html = small.read_text(encoding="utf-8").replace("<main>", "<main><script>document.title = 'ran'</script>", 1)
    page.write_text(html, encoding="utf-8")
    browser.open(page)
    assert any("Content Security Policy" in entry["message"] for entry in browser.driver.get_log("browser"))
    assert browser.driver.title != "ran"


def test_a_picture_is_blurred_until_it_is_clicked(browser: Browser, small: Path) -> None:
    browser.open(small)
    pictures = browser.driver.find_elements("css selector", ".goal:not(.rest) img")
    assert len(pictures) > 50
    assert all("blur" in browser.filter(picture) for picture in pictures)
    browser.click(".goal:not(.rest) label.frame", 3)
    assert [number for number, picture in enumerate(pictures) if browser.filter(picture) == "none"] == [3]
    browser.click(".goal:not(.rest) label.frame", 3)
    assert "blur" in browser.filter(pictures[3])
    browser.click("nav label")
    assert all(browser.filter(picture) == "none" for picture in pictures)


def test_boxes_choose_tiles_and_prompts(browser: Browser, small: Path) -> None:
    browser.open(small)
    one, others = ".concept:nth-of-type(3)", ".concept:nth-of-type(4)"
    assert "church" in browser.driver.find_element("css selector", f"{one} h2").text
    before = browser.visible(f"{others} .tile")
    assert len(browser.visible(f"{one} .goal")) == paging.OPEN_GOALS
    browser.click(f"{one} summary", -1)
    all_of_it = browser.driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.className)", f"{one} .pick"
    )

    def chosen(*classes: str) -> list[str]:
        return [name for name in all_of_it if any(set(mine.split()) <= set(name.split()) for mine in classes)]

    browser.click(f"{one} label:has(> .on-a2)")
    assert browser.visible(f"{one} .pick") == chosen("a2")
    browser.click(f"{one} label:has(> .on-yes)")
    assert browser.visible(f"{one} .pick") == chosen("a2 yes")
    # What holds nothing that was chosen is gone; the base stays beside the rest.
    goals = len(browser.visible(f"{one} .goal"))
    assert 0 < goals < 22
    holding = "return document.querySelectorAll(arguments[0]).length"
    assert goals == browser.driver.execute_script(holding, f"{one} .goal:has(.pick.a2.yes)")
    assert len(browser.visible(f"{one} .victim:not(.holder) .tile")) == goals
    # Boxes of a kind add up.
    browser.click(f"{one} label:has(> .on-a1)")
    assert browser.visible(f"{one} .pick") == chosen("a1 yes", "a2 yes")
    browser.click(f"{one} label:has(> .on-no)")
    assert browser.visible(f"{one} .pick") == chosen("a1", "a2")
    for box in ("a1", "a2", "yes"):
        browser.click(f"{one} label:has(> .on-{box})")
    assert browser.visible(f"{one} .pick") == chosen("no")
    assert browser.visible(f"{one} .none-of-these")
    browser.click(f"{one} label:has(> .on-no)")
    assert len(browser.visible(f"{one} .goal")) == paging.OPEN_GOALS
    browser.click(f"{one} .more")
    assert len(browser.visible(f"{one} .goal")) == 22
    # Another concept has boxes of its own.
    assert browser.visible(f"{others} .tile") == before


def test_verdicts_are_chosen_by_how_they_ended(browser: Browser, small: Path) -> None:
    browser.open(small)
    assert len(browser.visible(".card")) == 12
    browser.click(".tally label:has(> .on-withstands)")
    cards = browser.visible(".card")
    assert len(cards) == 3 and all("withstands" in card for card in cards)


def test_pictures_of_a_large_run_are_drawn_from_its_folder(browser: Browser, large: Path) -> None:
    browser.open(large)
    browser.click("#verdicts h3 a")
    assert browser.driver.current_url.startswith((large.parent / paging.FOLDER).as_uri())
    browser.click(".tile label.frame")
    first = browser.driver.find_elements("css selector", ".tile img")[0]
    browser.driver.execute_async_script("arguments[0].decode().then(arguments[1])", first)
    assert browser.driver.execute_script("return arguments[0].naturalWidth", first) == 64
    assert browser.driver.get_log("browser") == []
    # Those far below are not read before they are scrolled to.
    last = browser.driver.find_elements("css selector", ".tile img")[-1]
    assert browser.driver.execute_script("return arguments[0].complete && arguments[0].naturalWidth", last) in (
        0,
        False,
    )


def test_print_has_the_tables_and_no_clear_picture(browser: Browser, small: Path) -> None:
    browser.open(small)
    browser.click("nav label")
    browser.emulate(width=720, medium="print")  # the width of a sheet of A4 between its margins
    pictures = browser.driver.find_elements("css selector", ".goal:not(.rest) img")
    assert all("blur" in browser.filter(picture) for picture in pictures)
    assert len(browser.visible("table.glance, table.cells, #controls table")) == 1 + 3 + 3
    assert browser.visible("nav, .concept .filters, .more") == []
    assert browser.visible(".tally") == ["filters tally"]
    assert browser.sideways() <= 0
    # Not by `print_page`, which gives up after ten seconds: a blurred picture takes long to print.
    sheets = base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert sheets.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", sheets)) > 5
    # What was chosen on the screen is printed, and says what was chosen.
    browser.emulate()
    browser.click(".concept label:has(> .on-a2)")
    browser.emulate(width=720, medium="print")
    assert set(browser.visible(".concept:nth-of-type(3) .tile.pick")) <= {"tile pick a2 yes", "tile pick a2 no"}
    shown = [
        label.text for label in browser.driver.find_elements("css selector", ".concept .filters label") if label.text
    ]
    assert shown == ["unlearn_diff"]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_sideways(browser: Browser, small: Path, large: Path, width: int) -> None:
    for page in (small, large, *sorted((large.parent / paging.FOLDER).iterdir())):
        browser.open(page)
        browser.emulate(width=width)
        assert browser.driver.execute_script("return innerWidth") == width
        assert browser.sideways() <= 0, page.name
