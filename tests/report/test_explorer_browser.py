"""The page of a flow graph, clicked through in a headless Chromium."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sae_match.report.explorer import explorer_page
from tests.report.planted_flow import HOSTILE, planted_flow, write_flow

selenium = pytest.importorskip("selenium", reason="no selenium: pip install 'sae-match[dev]'")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

PROGRAMS = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(None in PROGRAMS, reason="no browser: apt-get install chromium chromium-driver")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(PROGRAMS[0])
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("headless=new", "disable-dev-shm-usage", "window-size=1300,900", f"user-data-dir={profile}"):
        options.add_argument(f"--{argument}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # which Chromium refuses to make for root
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(PROGRAMS[1])))
    yield found
    found.quit()


class Page:
    """A page of a flow, opened."""

    def __init__(self, driver: Any, path: Path) -> None:
        self.driver, self.path = driver, path
        self.open("")

    def open(self, address: str) -> None:
        self.driver.get("about:blank")  # else only the part after # would change
        self.driver.get(self.path.as_uri() + address)
        self.wait(lambda: self.driver.execute_script("return document.body.dataset.ready"))

    def wait(self, condition: Callable[[], Any]) -> None:
        WebDriverWait(self.driver, 60, poll_frequency=0.05).until(lambda _: condition())

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def button(self, text: str) -> None:
        self.driver.find_element("xpath", f"//button[normalize-space()='{text}']").click()

    def search(self, query: str) -> list[str]:
        field = self.one("#query")
        field.send_keys(Keys.CONTROL + "a")
        field.send_keys(query)
        self.wait(lambda: self.one("#list").get_attribute("aria-busy") == "false")
        return self.listed

    def texts(self, selector: str) -> list[str]:
        """Read at once, since the page may change between two questions."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        return list(self.driver.execute_script(script, selector))

    @property
    def listed(self) -> list[str]:
        return self.texts("#list b")

    @property
    def drawn(self) -> list[str]:
        script = (
            "return [...document.querySelectorAll('svg a.feature')].map((one) => one.getAttribute('href').slice(1))"
        )
        return sorted(self.driver.execute_script(script))

    @property
    def address(self) -> str:
        return str(self.driver.current_url).partition("#")[2]

    def contrast(self) -> float:
        """Of the text with the page behind it (WCAG 2)."""

        def light(color: str) -> float:
            shares = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
            r, g, b = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
            return 0.2126 * r + 0.7152 * g + 0.0722 * b

        style = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        low, high = sorted(light(color) for color in self.driver.execute_script(style))
        return (high + 0.05) / (low + 0.05)

    def scheme(self, name: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": name}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


@pytest.fixture
def page(driver: Any, tmp_path: Path) -> Iterator[Page]:
    path = tmp_path / "flow.html"
    path.write_text(explorer_page("Flow", write_flow(tmp_path / "flow")))
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path / "saved")}
    )
    yield Page(driver, path)
    assert not driver.get_log("browser")  # no error, nothing that the content security policy refused


def test_events_come_first_with_the_noise_of_two_seeds(page: Page) -> None:
    assert len(page.all(".charts figure")) == 5
    row = page.all("table.events tbody tr")[0]
    assert row.text.split() == ["11", "→", "12", "3", "2", "3", "1", "2", "0", "2", "1", "1", "1", "0", "0.300", "5%"]
    row.find_elements("tag name", "button")[3].click()  # the birth of layer 12
    page.wait(lambda: page.listed == ["L12/3"])


def test_from_a_search_along_an_edge_and_back(page: Page) -> None:
    assert page.search("12/1") == ["L12/1"]
    page.one("#list a").click()
    page.wait(lambda: page.one("main h2").text == "Layer 12, feature 1")
    assert page.address == "12/1"
    assert page.drawn == ["11/0", "12/1", "13/1"]
    page.one("svg a[href='#11/0']").click()
    page.wait(lambda: page.address == "11/0")
    assert page.drawn == ["11/0", "12/0", "12/1", "13/0", "13/1"]
    assert [badge.text for badge in page.all(".head .badge")] == ["persist", "split"]
    partners = [row.text.split() for row in page.all(".partners tbody tr")]
    assert ["L12/0", "alpha", "·", "0.900", "0.800", "0.500", "both"] in [
        [word for word in row if not word.startswith(("<", "src", "onerror"))] for row in partners
    ]
    assert page.one(".head a").get_attribute("href") == "https://www.neuronpedia.org/m/11-res/0"
    page.driver.back()
    page.wait(lambda: page.one("main h2").text == "Layer 12, feature 1")


def test_tokens_and_text_are_found(page: Page) -> None:
    fires, beside = ["L11/1", "L12/1", "L13/1"], ["L11/0", "L12/0", "L13/0"]
    assert page.search("beta") == fires + beside
    assert page.search("gamma alpha") == beside
    assert page.search("no such text") == []
    assert page.search("1") == fires


def test_weak_edges_are_left_out_below_the_floor(page: Page) -> None:
    page.open("#11/0")
    page.driver.execute_script(
        "const floor = document.getElementById('floor'); floor.value = 0.66; floor.dispatchEvent(new Event('input'))"
    )
    assert page.drawn == ["11/0", "12/0", "13/0"]


def test_numbers_are_saved_as_csv(page: Page, tmp_path: Path) -> None:
    page.button("CSV")
    page.open("#11/0")
    page.button("CSV of edges")
    page.button("CSV of features")
    names = ["flow_events.csv", "flow_11_0_edges.csv", "flow_11_0_features.csv"]
    page.wait(lambda: all((tmp_path / "saved" / name).is_file() for name in names))
    events, edges, nodes = (pd.read_csv(tmp_path / "saved" / name) for name in names)
    expected = planted_flow().through(11, 0)
    columns = ["layer", "feature", "layer_to", "feature_to"]
    both = edges.merge(expected.edges, on=columns, suffixes=("", "_exact"))
    assert len(both) == len(edges) == len(expected.edges)
    for name in ("similarity", "coactivation", "deactivation"):
        pd.testing.assert_series_equal(
            both[name], both[f"{name}_exact"], check_names=False, check_dtype=False, rtol=1e-3
        )
    assert both["best_child"].tolist() == both["best_child_exact"].tolist()
    assert set(zip(nodes["layer"], nodes["feature"], strict=True)) == {(11, 0), (12, 0), (12, 1), (13, 0), (13, 1)}
    assert events["persist"].tolist() == [2, 2, 3]


def test_text_of_documents_stays_text(page: Page) -> None:
    page.open("#12/0")
    page.wait(lambda: page.all(".contexts li"))
    first, second = page.all(".contexts li")
    assert first.find_element("css selector", ".peak").text.strip() == "alpha"
    assert second.find_element("css selector", ".peak").text == HOSTILE.replace("\u202e", "\\u202e")
    assert page.driver.execute_script("return typeof hacked") == "undefined"
    assert len(page.all("svg.chart rect")) == 4
    page.open("#12/3")
    page.wait(lambda: "does not fire" in page.one("main").text)


def test_the_keyboard_suffices(page: Page) -> None:
    body = page.one("body")
    body.send_keys("/")
    page.driver.switch_to.active_element.send_keys("alpha")
    page.wait(lambda: page.listed == ["L11/0", "L12/0", "L13/0"])
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait(lambda: page.address == "12/0")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    page.wait(lambda: page.address == "13/0")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    page.wait(lambda: page.address == "12/0")


def test_text_stands_out_in_light_and_dark(page: Page) -> None:
    backgrounds = set()
    for name in ("light", "dark"):
        page.scheme(name)
        assert page.contrast() > 7
        backgrounds.add(page.driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


def test_a_record_without_text_says_so(driver: Any, tmp_path: Path) -> None:
    path = tmp_path / "flow.html"
    path.write_text(explorer_page("Flow", write_flow(tmp_path / "flow", text=False)))
    page = Page(driver, path)
    page.open("#11/0")
    page.wait(lambda: "holds no text" in page.one("main").text)
    assert "Causal weight: not measured" in page.one("main").text
    page.open("#14/7")
    assert "No feature 7 of layer 14" in page.one("[role=alert]").text
