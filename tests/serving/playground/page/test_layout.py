"""Nothing lies over a map, nothing is cut off: three architectures, two languages, wide and narrow, deep and flat."""

from typing import Any

import pytest

from tests.serving.playground.page.pages import OpenPage, choose, opened

pytestmark = pytest.mark.slow

# Labels that share pixels with a map or another label, or leave the stage. Those of the classes are turned.
OVERLAPS = """() => {
  const root = document.getElementById('stage'), { stage } = root, bad = [];
  const maps = stage.layout.quads.map((quad) => stage.view.outline(quad));
  const isSeen = (node) => node.checkVisibility({ visibilityProperty: true });
  const labels = [...root.querySelectorAll('.label, .legend, #stage-keys')].filter(isSeen);
  const cornersOf = (node) => {
    const { offsetLeft: left, offsetTop: top, offsetWidth: width, offsetHeight: height } = node;
    const matrix = new DOMMatrix(getComputedStyle(node).transform);
    const turned = node.classList.contains('class') ? height : 0;
    return [[1, 2], [width - 1, 2], [width - 1, height - 2], [1, height - 2]].map(([x, y]) => {
      const point = matrix.transformPoint(new DOMPoint(x, y - turned));
      return [point.x + left, point.y + top + turned];
    });
  };
  const isApart = (p, q) => [...p.keys()].some((i) => { // some side of p has all of q beyond it
    const [a, b] = [p[i], p[(i + 1) % 4]], side = ([x, y]) => (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]);
    return q.every((point) => side(point) <= 0);
  });
  const overlap = (p, q) => !isApart(p, q) && !isApart(q, p);
  const boxes = labels.map(cornersOf), { width, height } = stage.view.screen;
  labels.forEach((node, i) => {
    if (maps.some((map) => overlap(boxes[i], map))) bad.push(`over a map: ${node.textContent}`);
    const isOutside = ([x, y]) => x < 0 || y < 0 || x > width || y > height;
    if (boxes[i].some(isOutside)) bad.push(`cut off: ${node.textContent}`);
    labels.slice(0, i).forEach((other, k) => {
      if (overlap(boxes[i], boxes[k])) bad.push(`over each other: ${node.textContent}, ${other.textContent}`);
    });
  });
  const seen = labels.filter((node) => node.matches('.label')).length, wanted = stage.layout.shelves.length + 10;
  if (seen !== wanted) bad.push(`${seen} labels of ${wanted} are seen`);
  return bad;
}"""
CUT_OFF = """() => {
  const bad = [], words = 'button:not(.garment), .bars *, p, h1, label, figcaption, summary, td, th, .tables';
  if (document.documentElement.scrollWidth > innerWidth) bad.push('the page scrolls sideways');
  for (const node of document.querySelectorAll(words)) {
    if (!node.checkVisibility({ visibilityProperty: true }) || node.closest('.hidden, .bare th, .tree')) continue;
    if (node.clientWidth && node.scrollWidth > node.clientWidth + 1) bad.push(`${node.tagName} ${node.textContent}`);
  }
  return bad;
}"""


@pytest.mark.parametrize(
    ("architecture", "lang"), [("tutorial", "en"), ("classic", "zh"), ("modern", "en"), ("modern", "zh")]
)
def test_no_label_lies_over_a_map_and_nothing_is_cut_off(
    architecture: str, lang: str, served: Any, open_page: OpenPage
) -> None:
    conv = "c3" if architecture == "classic" else "conv2"
    page = opened(open_page, served(architecture), f"lang={lang}&cell={conv}:3,4,5", reduced_motion="reduce")
    page.locator(".compare").wait_for(state="attached")
    for width, height in ((1440, 900), (1024, 768), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        for view in ("3d", "flat"):
            if view == "3d" and width == 390:
                continue  # a phone's are flat
            choose(page, view=view, sheet=width == 390)
            assert page.evaluate(OVERLAPS) == [], (width, view)
            assert page.evaluate(CUT_OFF) == [], (width, view)


# What a finger is to press, and is smaller than 44 x 44; of a checkbox its label is pressed.
SMALL = """() => {
  const isSeen = (node) => node.checkVisibility({ visibilityProperty: true }) && !node.closest('.hidden, .tree');
  return [...document.querySelectorAll('button, select, input:not([type=checkbox]), summary, .tools label')]
    .filter(isSeen).map((node) => [node, node.getBoundingClientRect()])
    .filter(([, { width, height }]) => Math.min(width, height) < 43.99)
    .map(([node, { width, height }]) => `${node.tagName} ${node.className} ${node.textContent} ${width} x ${height}`);
}"""


def test_fingers_find_what_is_to_be_pressed(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served("classic"), "tour=1", width=390, height=844, has_touch=True, is_mobile=True)
    assert page.evaluate("() => atelier.state.view") == "flat"
    page.locator("#tour p").first.wait_for()
    assert page.evaluate(SMALL) == [] and page.locator("button:visible").count() > 60
    choose(page, sheet=True, cell={"layer": "c3", "map": 3, "y": 4, "x": 5})
    for tab in ("arithmetic", "connections", "calculator", "training", "compare"):
        choose(page, tab=tab)
        page.locator(f"#panel-{tab} > *").first.wait_for()
        assert page.evaluate(SMALL) == [], tab
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_no_words_are_smaller_than_11_pixels(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served("played back"), "tab=calculator&cell=conv2:3,4,5")
    small = """() => {
      const hasWords = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
      const isSmall = (node) => parseFloat(getComputedStyle(node).fontSize) < 11;
      return [...document.querySelectorAll('body *')]
        .filter((node) => node.checkVisibility() && !node.closest('.hidden, svg') && hasWords(node) && isSmall(node))
        .map((node) => `${node.tagName} ${node.textContent}`);
    }"""
    for tab in ("calculator", "arithmetic", "training", "compare"):
        choose(page, tab=tab)
        page.locator(f"#panel-{tab} > *").first.wait_for()
        assert page.evaluate(small) == [], tab


def test_the_sheet_is_pulled_up_and_down(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served(), width=390, height=844, has_touch=True, is_mobile=True)
    page.locator(".handle").click()
    page.wait_for_function("() => document.querySelector('#panel').getBoundingClientRect().y < 300")
    page.mouse.move(195, page.locator(".handle").bounding_box()["y"] + 20)
    page.mouse.down()
    page.mouse.move(195, 800, steps=4)
    page.mouse.up()
    page.wait_for_function("() => document.querySelector('#panel').getBoundingClientRect().y > 780")


def test_who_wants_no_motion_gets_the_flat_view_at_once(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served(), reduced_motion="reduce")
    assert page.evaluate("() => atelier.state.view") == "flat"
    flatness = "() => document.getElementById('stage').stage.flatness"
    choose(page, view="3d")
    assert page.evaluate(flatness) == 0
