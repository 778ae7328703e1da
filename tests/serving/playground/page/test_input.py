"""What comes in: photographs that are dropped or pasted anywhere, and what the pad shows of them."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving.playground.page.pages import PREPARED, OpenPage, opened, settle
from tests.serving.playground.page.test_page import draw_by_mouse

pytestmark = pytest.mark.slow

# Gives the page a file as somebody drops or pastes it; returns whether the browser is kept from opening it itself.
GIVE = """async ([selector, kind, data]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), files = new DataTransfer();
  files.items.add(new File([bytes], 'a.png', { type: 'image/png' }));
  const options = { bubbles: true, cancelable: true, [kind === 'paste' ? 'clipboardData' : 'dataTransfer']: files };
  const Kind = kind === 'paste' ? ClipboardEvent : DragEvent, target = document.querySelector(selector);
  if (kind === 'drop' && target.dispatchEvent(new Kind('dragover', options))) return false;
  return !target.dispatchEvent(new Kind(kind, options));
}"""
IS_PHOTOGRAPH = "() => atelier.state.source.kind === 'photograph'"
# How many pixels of the pad have about this colour.
COUNT = """(color) => {
  const copy = new OffscreenCanvas(112, 112).getContext('2d', { willReadFrequently: true });
  copy.drawImage(document.getElementById('pad'), 0, 0);
  const { data } = copy.getImageData(0, 0, 112, 112);
  let count = 0;
  for (let i = 0; i < data.length; i += 4) if (color.every((part, k) => Math.abs(data[i + k] - part) < 40)) count++;
  return count;
}"""
BOX, RING, PAPER = [253, 184, 99], [255, 93, 93], [235, 235, 235]


@pytest.fixture(scope="module")
def picture(data: Any) -> str:
    """A photograph of a pullover on white paper, in base64."""
    paper = np.full((200, 160), 235, np.uint8)
    paper[60:144, 40:124] = 235 - np.kron(data.test_images[1][0], np.ones((3, 3), np.uint8)) // 2
    file = io.BytesIO()
    Image.fromarray(paper).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("selector", "kind"), [("#maps", "drop"), ("#panel", "drop"), ("#pad", "drop"), ("body", "paste")]
)
def test_a_photograph_may_be_dropped_and_pasted_anywhere(
    served: Any, open_page: OpenPage, picture: str, selector: str, kind: str
) -> None:
    page = opened(open_page, served(), "lang=en")
    page.get_by_role("button", name="中文").click()  # the old listeners are gone then
    page.wait_for_function("() => document.documentElement.lang === 'zh-CN'")
    page.wait_for_function("() => document.querySelector('.tools button')")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    assert page.evaluate(GIVE, [selector, kind, picture]) is (kind == "drop")
    page.wait_for_function(IS_PHOTOGRAPH)
    settle(page)
    assert len([url for url in requests if "/api/photograph" in url]) == 1


def test_the_photograph_and_its_box_stay_on_the_pad(served: Any, open_page: OpenPage, picture: str) -> None:
    page = opened(open_page, served(), "lang=en")
    page.evaluate(GIVE, ["#pad", "drop", picture])
    page.wait_for_function(IS_PHOTOGRAPH)
    settle(page)
    seen = [page.evaluate(COUNT, color) for color in (PAPER, BOX)]
    assert min(seen) > 100
    page.focus("#pad")
    page.focus("#maps")
    assert [page.evaluate(COUNT, color) for color in (PAPER, BOX)] == seen
    page.get_by_role("button", name="中文").click()
    page.get_by_role("button", name="画笔").wait_for()
    assert [page.evaluate(COUNT, color) for color in (PAPER, BOX)] == seen
    page.get_by_role("button", name="清空").click()
    settle(page)
    assert page.evaluate(COUNT, PAPER) == 0


def test_the_ring_round_a_gap_stays_until_it_is_closed(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served(), "lang=en")
    draw_by_mouse(page, [[(20, 20), (90, 20), (90, 90), (20, 90), (20, 40)]])
    settle(page)
    ring = page.evaluate(COUNT, RING)
    assert ring > 20
    page.focus("#pad")
    page.focus("#maps")
    assert page.evaluate(COUNT, RING) == ring
    page.get_by_role("button", name="中文").click()
    page.get_by_role("button", name="画笔").wait_for()
    settle(page)
    assert page.evaluate(COUNT, RING) == ring
    draw_by_mouse(page, [[(20, 42), (20, 18)]])
    settle(page)
    assert page.evaluate(COUNT, RING) == 0


def test_a_gap_is_looked_for_once_the_pen_is_up(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served())
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 40, box["y"] + 90, steps=5)
    page.evaluate(PREPARED)
    page.wait_for_function("() => atelier.state.looked === atelier.state.image")
    assert page.evaluate("() => atelier.state.gap") is None
    page.mouse.up()
    page.wait_for_function("() => atelier.state.gap !== null")
