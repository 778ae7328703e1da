"""What the page's head says of the network that answers and of the one that is looked at; and links to the page."""

import json
from typing import Any

import pytest

from tests.serving.playground.page.pages import OpenPage, choose, opened, settle

pytestmark = pytest.mark.slow


def test_the_head_of_fp16_says_why_maps_and_answer_differ(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served("fp16"), "lang=en")
    page.get_by_text("fp16: the maps").wait_for()
    assert "4e-3" in page.locator("#served").inner_text()
    page.get_by_role("button", name="中文").click()
    page.locator("#served", has_text="舍入").wait_for()
    assert page.evaluate("() => atelier.state.head.max_abs_diff_probability") < 4e-3


def test_the_head_of_another_runtime_has_the_largest_difference(served: Any, browser: Any) -> None:
    page = browser.new_page()

    def as_tensorrt(route: Any) -> None:
        network = route.fetch().json()
        network["model"] |= {"backend": "tensorrt", "device": "cuda:0"}
        network["probe"]["is_served_runtime"] = False
        route.fulfill(body=json.dumps(network), content_type="application/json")

    page.route("**/api/network*", as_tensorrt)
    opened(lambda url: page.goto(url) and page, served(), "lang=en")
    head = page.locator("#served", has_text="largest difference of a probability")
    head.wait_for()
    said = "answers: tensorrt on cuda:0; maps: onnxruntime on cpu, from the same model.onnx; "
    difference = page.evaluate("() => atelier.state.head.max_abs_diff_probability")
    assert f"{said}largest difference of a probability {written(difference)}" in head.inner_text()
    choose(page, off=[{"layer": "conv1", "map": 0}])
    assert "largest" not in page.locator("#served").inner_text()  # nothing to compare with
    page.close()


def written(difference: float) -> str:
    """As JavaScript writes it: 4.6e-8."""
    if difference == 0:
        return "0"
    mantissa, _, exponent = f"{difference:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def test_a_link_says_what_depends_on_the_device(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served(), locale="en-GB")
    choose(page, minus=True)
    page.wait_for_function("() => location.hash.includes('minus=1')")
    link = page.url.partition("#")[2]
    assert "view=3d" in link and "lang=en" in link
    other = opened(open_page, served(), link, width=390, height=844, locale="zh-CN")
    assert other.evaluate("() => [atelier.state.view, atelier.state.lang]") == ["3d", "en"]


def test_a_pasted_link_begins_from_nothing_but_the_image(served: Any, open_page: OpenPage) -> None:
    page = opened(
        open_page, served(), "lang=en&image=g3&cell=conv2:5,4,5&off=conv2:1&minus=1&theme=dark&camera=1,0,1,0,0"
    )
    page.evaluate("() => { location.hash = 'lang=en&tab=compare'; }")
    page.wait_for_function("() => atelier.state.tab === 'compare'")
    settle(page)
    left = """() => {
      const { cell, off, minus, theme, epoch, camera } = atelier.state;
      return [cell, off, minus, theme, epoch, camera.azimuth];
    }"""
    assert page.evaluate(left) == [None, [], False, "system", None, -0.42]
    assert page.evaluate("() => atelier.state.source.index") == 3
