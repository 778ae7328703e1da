"""The page when a file of its own does not come, a link is wrong, or a button is pressed twice: the rest goes on."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.playground.page.pages import READY, OpenPage, opened, settle

pytestmark = pytest.mark.slow

MOUNTED = "() => document.documentElement.dataset.ready === 'yes'"
LANGUAGE = "() => [atelier.state.lang, document.documentElement.lang, document.title]"


@pytest.fixture
def page(served: Any, browser: Any) -> Iterator[Any]:
    """The page in English, of which some file may fail to come: what the browser says of that is no complaint."""
    page = browser.new_page()
    page.goto(f"{served()}#lang=en")
    page.wait_for_function(READY)
    yield page
    page.close()


def lose(page: Any, name: str) -> list[str]:
    """Has a file not come, until `page.unroute`; the list has who asked."""
    asked: list[str] = []

    def abort(route: Any) -> None:
        asked.append(route.request.url)
        route.abort()

    page.route(f"**/{name}", abort)
    return asked


def test_a_tab_that_could_not_be_loaded_is_loaded_by_the_next_press(page: Any) -> None:
    lose(page, "connections.js")
    page.locator("#tab-connections").click()
    page.locator(".problem").wait_for()
    page.unroute("**/connections.js")
    page.locator("#tab-connections").click()
    page.locator("#panel-connections > *").first.wait_for()
    num_parts = page.locator("#panel-connections > *").count()
    page.locator("#tab-connections").click()
    assert page.locator("#panel-connections > *").count() == num_parts  # not once more


def test_a_language_that_could_not_be_loaded_is_not_the_pages(page: Any) -> None:
    before = page.evaluate(LANGUAGE)
    lose(page, "text.zh.js")
    page.get_by_role("button", name="中文").click()
    page.locator(".problem").wait_for()
    page.wait_for_function("() => atelier.state.lang === 'en'")
    assert page.evaluate(LANGUAGE) == before
    page.unroute("**/text.zh.js")
    page.get_by_role("button", name="中文").click()
    page.wait_for_function("() => document.title === '走进 LeNet-5'")
    assert page.evaluate(LANGUAGE)[:2] == ["zh", "zh-CN"]


def test_lines_that_could_not_be_loaded_are_asked_for_once(page: Any) -> None:
    asked = lose(page, "links.js")
    lose(page, "formulas.js")  # which asks for them too
    for x in range(5):
        page.evaluate("(x) => atelier.set({ hover: { layer: 'conv1', map: 0, y: 0, x } })", x)
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.locator(".problem").wait_for()
    assert len(asked) == 1


def test_without_its_garments_the_page_opens_and_says_so(served: Any, browser: Any) -> None:
    page = browser.new_page()
    lose(page, "garments.png")
    page.goto(served())
    page.wait_for_function(MOUNTED)
    page.locator(".problem").wait_for()
    page.unroute("**/garments.png")
    page.locator(".garment").nth(3).click()
    settle(page)
    page.locator(".problem").wait_for(state="hidden")
    page.close()


@pytest.mark.parametrize("cell", ["conv9:0,0,0", "conv2:99,0,0", "conv2:5,4,99"])
def test_a_pasted_link_to_a_cell_that_is_not_there_chooses_none(served: Any, open_page: OpenPage, cell: str) -> None:
    page = opened(open_page, served())
    page.evaluate("(hash) => { location.hash = hash; }", f"#cell={cell}&off=conv9:1,conv2:1&view=flat")
    page.wait_for_function("() => atelier.state.view === 'flat'")
    settle(page)
    assert page.evaluate("() => [atelier.state.cell, atelier.state.off]") == [None, [{"layer": "conv2", "map": 1}]]
