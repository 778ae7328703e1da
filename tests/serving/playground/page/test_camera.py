"""The page's camera: on only as long as its window, and whoever refuses it or pulls it out is told what to do."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.playground.page.conftest import browser_or_skip
from tests.serving.playground.page.pages import OpenPage, check_answer, opened

pytestmark = pytest.mark.slow

# Keeps each stream that the camera gives.
KEEP_STREAMS = """() => {
  const devices = navigator.mediaDevices, get = devices.getUserMedia.bind(devices);
  globalThis.streams = [];
  devices.getUserMedia = async (wanted) => {
    const stream = await get(wanted);
    streams.push(stream);
    return stream;
  };
}"""
CAMERAS_ON = "() => streams.filter((stream) => stream.active).length"
HIDE = """() => {
  Object.defineProperty(document, 'hidden', { value: true });
  document.dispatchEvent(new Event('visibilitychange'));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The whole Chromium: without windows it has nobody to ask for permission, and no camera."""
    yield from browser_or_skip(has_windows=True)


def test_the_camera_takes_a_photograph_and_is_on_only_as_long_as_its_window(served: Any, open_page: OpenPage) -> None:
    address = served()
    page = opened(open_page, address, permissions=["camera"])
    page.evaluate(KEEP_STREAMS)
    page.get_by_role("button", name="Camera").click()
    take = page.get_by_role("button", name="Take the picture")
    take.and_(page.locator(":enabled")).wait_for()
    assert page.evaluate(CAMERAS_ON) == 1
    assert page.evaluate("() => document.querySelector('video').videoWidth") >= 320
    take.click()
    page.locator("dialog").wait_for(state="detached")
    page.wait_for_function("() => atelier.state.source.kind === 'photograph'")
    check_answer(page, address)
    assert page.evaluate(CAMERAS_ON) == 0
    page.get_by_role("button", name="Camera").click()
    take.and_(page.locator(":enabled")).wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")
    assert page.evaluate(CAMERAS_ON) == 0


def test_a_camera_that_is_refused_is_told_with_what_to_do(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served())
    page.get_by_role("button", name="Camera").click()
    page.get_by_text("This page was not allowed to use the camera.").wait_for()
    assert page.get_by_role("button", name="Take the picture").is_disabled()
    page.get_by_role("button", name="Close", exact=True).click()
    page.locator("dialog").wait_for(state="detached")


def test_the_camera_opens_once_and_closes_when_the_page_is_hidden(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served(), permissions=["camera"])
    page.evaluate(KEEP_STREAMS)
    page.get_by_role("button", name="Camera").dblclick()
    page.get_by_role("button", name="Take the picture").and_(page.locator(":enabled")).first.wait_for()
    page.wait_for_timeout(300)
    assert (page.locator("dialog").count(), page.evaluate(CAMERAS_ON)) == (1, 1)
    assert page.evaluate("() => document.activeElement.textContent") == "Close"
    page.evaluate(HIDE)
    page.locator("dialog").wait_for(state="detached")
    assert page.evaluate(CAMERAS_ON) == 0


def test_a_camera_that_is_pulled_out_is_told(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served(), permissions=["camera"])
    page.evaluate(KEEP_STREAMS)
    page.get_by_role("button", name="Camera").click()
    take = page.get_by_role("button", name="Take the picture")
    take.and_(page.locator(":enabled")).wait_for()
    page.evaluate("() => streams[0].getVideoTracks()[0].dispatchEvent(new Event('ended'))")
    page.get_by_text("The camera has gone").wait_for()
    assert take.is_disabled()
