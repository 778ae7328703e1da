"""The page as somebody uses it: drawing by mouse, finger and keys, choosing, sending links, hearing it read."""

import base64
import io
import itertools
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from PIL import Image

from atelier.contract import TOLERANCES
from tests.serving.playground.page.conftest import PAGE_DIR
from tests.serving.playground.page.drawings import DRAWINGS, Line, lines_of
from tests.serving.playground.page.pages import (
    OpenPage,
    check_answer,
    choose,
    image_of,
    opened,
    settle,
    taken_for,
    without_webgl,
)

pytestmark = pytest.mark.slow

BOOT = lines_of(DRAWINGS[18][1], 0.62, 0.0, 0.0)
# A hundred images in less than a second; then when the looks began.
HURRY = """async () => {
  performance.clearResourceTimings();
  for (let i = 1; i <= 100; i++) {
    atelier.set({ image: atelier.state.image.slice().fill(i, 0, 9), source: { kind: 'link' } });
    await new Promise((done) => setTimeout(done, 5));
  }
  const looks = performance.getEntriesByType('resource').filter(({ name }) => name.includes('/api/look'));
  return looks.map(({ startTime }) => startTime);
}"""
MAX_FIRST_BYTES, MAX_FIRST_GZIPPED_BYTES = 120_000, 36_000  # of scripts, styles and markup as the page opens
MAX_SOURCE_BYTES = 190_000  # of all there are, both languages
# What the browser has got of scripts, styles and markup: as it was sent, and as it is.
GOT = """() => [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
  .filter(({ name }) => !/[/]api[/]|[.](png|svg)$/.test(name.split('?')[0]))
  .map(({ encodedBodySize, decodedBodySize }) => [encodedBodySize, decodedBodySize])"""


def draw_by_mouse(page: Any, lines: list[Line]) -> None:
    box = page.locator("#pad").bounding_box()
    at = [[(box["x"] + x / 112 * box["width"], box["y"] + y / 112 * box["height"]) for x, y in line] for line in lines]
    for line in at:
        page.mouse.move(*line[0])
        page.mouse.down()
        for point in line[1:]:
            page.mouse.move(*point, steps=4)
        page.mouse.up()


def at(page: Any, address: str) -> Any:
    page.goto(address)
    return page


def test_a_boot_drawn_by_mouse_is_filled_and_taken_for_one(served: Any, open_page: OpenPage) -> None:
    address = served("trained")
    page = opened(open_page, address)
    draw_by_mouse(page, BOOT)
    check_answer(page, address)
    assert taken_for(page) == "Ankle boot"
    image = image_of(page).reshape(28, 28)
    assert (image[20:26, 12:24] >= 190).mean() > 0.7  # filled
    assert max(image.any(1).sum(), image.any(0).sum()) == 28  # and as large as the image
    page.get_by_label("Fill and centre").uncheck()
    check_answer(page, address)
    assert image_of(page).sum() < image.sum() / 2
    page.get_by_role("button", name="Undo").click()
    check_answer(page, address)
    assert not image_of(page).any()


@pytest.mark.parametrize("size", [(1440, 900), (390, 844)], ids=["desktop", "phone"])
def test_the_answer_leads_to_its_arithmetic(served: Any, open_page: OpenPage, size: tuple[int, int]) -> None:
    width, height = size
    page = opened(open_page, served("trained"), "tab=calculator", width=width, height=height)
    draw_by_mouse(page, BOOT)
    settle(page)
    page.get_by_role("button", name="Why this answer?").click()
    page.locator("#panel-arithmetic table").first.wait_for()
    assert page.evaluate("() => atelier.state.cell") == {"layer": "linear3", "map": 9, "y": 0, "x": 0}
    assert page.locator("#panel-arithmetic select").first.evaluate("(select) => select.value") == "linear3"
    box = page.locator("#panel-arithmetic").bounding_box()
    assert box["y"] < height - 100  # on a phone the sheet is up


@pytest.mark.timing
def test_looks_are_at_most_30_a_second_and_the_last_image_is_looked_at(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served())
    starts = page.evaluate(HURRY)
    assert len(starts) > 3 and min(np.diff(starts)) > 25  # 33 between them, when the machine is not busy
    settle(page)
    assert page.evaluate("() => atelier.state.looked[0]") == 100


def test_picture_of_an_address_that_changes_is_kept(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served())
    picture = base64.urlsafe_b64encode(bytes([7]) * 784).rstrip(b"=").decode()
    page.evaluate("(hash) => { location.hash = hash; }", f"image=p{picture}")
    page.wait_for_function("() => atelier.state.source.kind === 'link'")
    settle(page)
    assert (image_of(page) == 7).all()


def test_a_boot_drawn_without_webgl_is_taken_for_one(served: Any, open_page: OpenPage) -> None:
    address = served("trained")
    page = without_webgl(opened(open_page, address))
    draw_by_mouse(page, BOOT)
    check_answer(page, address)
    assert taken_for(page) == "Ankle boot"


def test_a_boot_drawn_with_a_finger_is_taken_for_one(served: Any, open_page: OpenPage) -> None:
    address = served("trained")
    page = opened(open_page, address, "lang=zh&theme=light", width=390, height=844, has_touch=True, is_mobile=True)
    box = page.locator("#pad").bounding_box()
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *point: float) -> None:
        at = (
            {"x": box["x"] + point[0] / 112 * box["width"], "y": box["y"] + point[1] / 112 * box["height"]}
            if point
            else None
        )
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [at] if at else []})

    for line in BOOT:
        touch("touchStart", *line[0])
        for (x0, y0), (x1, y1) in itertools.pairwise(line):
            for part in (0.5, 1.0):
                touch("touchMove", x0 + (x1 - x0) * part, y0 + (y1 - y0) * part)
        touch("touchEnd")
    check_answer(page, address)
    assert taken_for(page) == "短靴"
    assert page.evaluate("() => scrollY") == 0  # the pad draws, it does not scroll
    assert (image_of(page).reshape(28, 28)[20:26, 12:24] >= 190).mean() > 0.7


def test_keys_draw_and_erase(served: Any, open_page: OpenPage) -> None:
    address = served()
    page = opened(open_page, address)
    page.focus("#pad")
    page.keyboard.press("Space")
    for key, times in (("ArrowUp", 8), ("ArrowRight", 6), ("ArrowDown", 8), ("ArrowLeft", 6)):
        for _ in range(times):
            page.keyboard.press(key)
    assert page.evaluate("() => atelier.state.drawing")
    page.keyboard.press("Space")
    check_answer(page, address)
    image = image_of(page).reshape(28, 28)
    assert image.any(1).sum() == 28 and image[14, 14] == 200  # a closed square is filled
    page.keyboard.press("x")
    assert page.get_by_role("button", name="Eraser").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Control+z")
    check_answer(page, address)
    assert not image_of(page).any()


def draw_by_keys(page: Any, *strokes: list[tuple[str, int]]) -> None:
    """Moves the cursor as the first stroke says, then draws with the next, and so on."""
    for number, stroke in enumerate(strokes):
        for key, times in stroke:
            for _ in range(times):
                page.keyboard.press(f"Arrow{key}")
        if number < len(strokes) - 1 or number % 2:
            page.keyboard.press("Space")


BAG_BY_KEYS = [
    [("Up", 2)],
    [("Right", 10), ("Down", 10), ("Left", 20), ("Up", 10), ("Right", 10)],
    [("Left", 4)],
    [("Up", 5), ("Right", 8), ("Down", 5)],
]
BOOT_BY_KEYS = [
    [("Up", 10), ("Left", 2)],
    [("Right", 9), ("Down", 18), ("Left", 20), ("Up", 5), ("Right", 6), ("Up", 4), ("Right", 5), ("Up", 9)],
]


@pytest.mark.parametrize(("strokes", "name"), [(BAG_BY_KEYS, "Bag"), (BOOT_BY_KEYS, "Ankle boot")], ids=["bag", "boot"])
def test_what_is_drawn_by_keys_is_taken_for_what_it_is(
    strokes: Any, name: str, served: Any, open_page: OpenPage
) -> None:
    address = served("trained")
    page = opened(open_page, address)
    page.focus("#pad")
    draw_by_keys(page, *strokes)
    check_answer(page, address)
    assert taken_for(page) == name


def test_garments_are_test_images_and_the_arrow_keys_choose_among_them(
    served: Any, open_page: OpenPage, data: Any
) -> None:
    page = opened(open_page, served(), "image=g2")
    first = [np.flatnonzero(data.test_labels == label) for label in range(10)]
    assert image_of(page).tolist() == data.test_images[first[2][0]].ravel().tolist()
    page.locator(".garment").nth(2).focus()
    for key in ("ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    settle(page)
    assert image_of(page).tolist() == data.test_images[first[3][1]].ravel().tolist()
    page.get_by_role("button", name="Other test images").click()
    page.locator(".garment").first.click()
    settle(page)
    assert image_of(page).tolist() == data.test_images[first[0][5]].ravel().tolist()


def test_a_photograph_is_prepared_by_the_server_and_its_box_is_shown(
    served: Any, open_page: OpenPage, data: Any
) -> None:
    address = served()
    page = opened(open_page, address)
    picture = np.full((200, 160), 235, np.uint8)
    picture[60:144, 40:124] = 235 - np.kron(data.test_images[1][0], np.ones((3, 3), np.uint8)) // 2
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    page.set_input_files("input[type=file]", {"name": "a.png", "mimeType": "image/png", "buffer": file.getvalue()})
    page.wait_for_function("() => atelier.state.source.kind === 'photograph'")
    check_answer(page, address)
    source = page.evaluate("() => atelier.state.source")
    assert source["inverted"] and np.abs(np.subtract(source["box"], [60, 40, 144, 124])).max() <= 25
    assert "inverted" in page.locator("[role=note]").inner_text()
    pad = "() => document.getElementById('pad').getContext('2d').getImageData(56, 5, 1, 1).data[0]"
    assert page.evaluate(pad) > 200  # the photograph's paper


def test_all_that_the_page_loads_comes_over_few_connections(served: Any, open_page: OpenPage) -> None:
    page, statuses, counts = opened(open_page, served("played back"), permissions=["camera"]), [], []
    port = urlsplit(page.url).port
    page.on("response", lambda response: statuses.append(response.status))

    def count_connections() -> None:
        open_now = [each for each in psutil.net_connections("tcp") if each.status == "ESTABLISHED"]
        counts.append(sum(each.laddr[1:] == (port,) for each in open_now))

    for lang in ("zh", "en"):
        page.evaluate("(lang) => atelier.set({ lang, cell: { layer: 'conv2', map: 1, y: 2, x: 3 } })", lang)
        for tab in ("connections", "calculator", "training", "compare", "arithmetic"):
            page.evaluate("(tab) => atelier.set({ tab })", tab)
            page.locator(f"#panel-{tab} > *").first.wait_for()
            count_connections()
        page.locator("#tour-button").click()
        page.locator("#tour p").first.wait_for()
        draw_by_mouse(page, BOOT)
        count_connections()
    page.get_by_role("button", name="Camera").click()
    page.locator("dialog").wait_for()
    count_connections()
    assert max(statuses) < 400 and len(statuses) > 15
    assert 1 <= max(counts) <= 6  # of the 16 that the page's process takes


def test_a_link_holds_the_picture(served: Any, open_page: OpenPage) -> None:
    address = served()
    page = opened(open_page, address)
    draw_by_mouse(page, BOOT)
    settle(page)
    choose(page, cell={"layer": "conv2", "map": 5, "y": 4, "x": 5}, view="flat", lang="zh", theme="light", minus=True)
    page.wait_for_function("() => location.hash.includes('lang=zh')")  # a moment later, and with all that was chosen
    wanted = image_of(page)
    link = page.evaluate("() => location.href")
    other = opened(open_page, address, link.partition("#")[2])
    settle(other)
    assert image_of(other).tolist() == wanted.tolist()
    kept = ("cell", "view", "lang", "theme", "minus")
    states = [each.evaluate("(keys) => keys.map((key) => atelier.state[key])", list(kept)) for each in (page, other)]
    assert states[0] == states[1] == [{"layer": "conv2", "map": 5, "y": 4, "x": 5}, "flat", "zh", "light", True]
    assert other.evaluate("() => [document.documentElement.lang, document.title]") == ["zh-CN", "走进 LeNet-5"]
    nonsense = "cell=conv1:99,2,3&view=5d&image=g999&camera=a,b&off=conv1:77&epoch=x"
    assert opened(open_page, address, nonsense).evaluate("() => [atelier.state.cell, atelier.state.off]") == [None, []]


def test_an_idle_page_asks_nothing(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served(), "cell=conv2:5,4,5")
    page.locator("#panel-arithmetic table").first.wait_for()
    page.wait_for_load_state("networkidle")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.evaluate(
        "() => { globalThis.frames0 = 0; const frame = requestAnimationFrame;"
        " requestAnimationFrame = (paint) => (frames0++, frame(paint)); }"
    )
    page.wait_for_timeout(1500)
    asked = [url for url in requests if not url.endswith("/icon.svg")]  # which a busy browser fetches late
    assert (asked, page.evaluate("() => frames0")) == ([], 0)


def test_a_refusal_is_told_with_its_cure_and_the_maps_stay(served: Any, open_page: OpenPage) -> None:
    address = served()
    page = opened(open_page, address)
    refusal = {
        "reason": "QUEUE_FULL",
        "message": "QUEUE_FULL: 4090 images wait (try again later)",
        "cure": "try again later",
        "retry_after_ms": None,
    }

    def refuse(route: Any) -> None:
        frame = route.fetch().body()
        length = int.from_bytes(frame[:4], "little")
        head = json.loads(frame[4 : 4 + length]) | {
            "answer": None,
            "refusal": refusal,
            "max_abs_diff_probability": None,
        }
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 4)
        route.fulfill(
            body=len(text).to_bytes(4, "little") + text + frame[4 + length :], content_type="application/octet-stream"
        )

    page.route("**/api/look*", refuse)
    page.locator(".garment").nth(3).click()
    page.locator(".problem").wait_for()
    assert page.locator(".problem").inner_text().startswith("QUEUE_FULL 4090 images wait; try again later")
    assert page.locator(".bars.unserved").count() == 1
    assert page.evaluate("() => atelier.state.looked === atelier.state.image")  # the maps are this image's
    page.unroute("**/api/look*")
    page.get_by_role("button", name="Ask again").click()
    page.locator(".problem").wait_for(state="hidden")
    check_answer(page, address)


def test_a_look_that_came_too_fast_is_made_again(served: Any, browser: Any) -> None:
    address = served()
    page = opened(lambda url: at(browser.new_page(), url), address)
    refused: list[int] = []

    def refuse_once(route: Any) -> None:
        refused.append(1)
        body = {"reason": "TOO_FAST", "message": "more than 60 looks a second", "cure": "wait", "retry_after_ms": 100}
        route.fulfill(status=429, body=json.dumps(body), content_type="application/json")

    page.route("**/api/look*", refuse_once, times=1)
    page.locator(".garment").nth(3).click()
    check_answer(page, address)
    assert refused == [1]
    page.close()


def test_what_could_not_be_loaded_is_told_and_loaded_the_next_time(served: Any, browser: Any) -> None:
    page = opened(lambda url: at(browser.new_page(), url), served(), "lang=en")
    page.route("**/more.css", lambda route: route.abort(), times=1)
    page.locator("#tour-button").click()
    page.get_by_text("NO_ANSWER The server does not answer").wait_for()
    assert page.locator("#tour").is_hidden()
    page.locator("#tour-button").click()
    page.locator("#tour").get_by_text("1 of 11").wait_for()
    page.close()


def test_the_tree_leads_readers_through_shelves_and_maps(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served())
    page.get_by_role("button", name="Layers and maps").focus()
    page.locator("[role=tree] > [role=treeitem]").first.wait_for()
    assert page.locator("[role=tree]").bounding_box()["height"] > 50  # seen while it has the focus
    page.keyboard.press("ArrowDown")
    shelf = page.evaluate("() => document.activeElement.getAttribute('aria-label')")
    assert shelf.startswith("Convolution conv1: 6 maps of 28 × 28, from ")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    settle(page)
    cell = page.evaluate("() => atelier.state.cell")
    assert (cell["layer"], cell["map"]) == ("conv1", 1)
    page.focus("#maps")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("() => atelier.state.cell.x") in ((cell["x"] + 1) % 28, 0)
    page.keyboard.press("PageUp")
    assert page.evaluate("() => atelier.state.cell.layer") == "pool1"
    page.wait_for_function("() => /^pool1.+ = [−0-9.]+$/.test(document.getElementById('live').textContent)")


def test_the_answer_is_told_to_readers_once_a_second(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served())
    page.wait_for_timeout(1200)
    page.locator("#live").evaluate(
        "(node) => { node.texts = [];"
        " new MutationObserver(() => node.texts.push(node.textContent)).observe(node, { childList: true }); }"
    )
    began_s = time.monotonic()
    for i in range(6):
        page.locator(".garment").nth(i).click()
        page.wait_for_timeout(150)
    page.wait_for_timeout(1200)
    took_s = time.monotonic() - began_s  # a busy browser takes longer
    texts = page.locator("#live").evaluate("(node) => node.texts")
    top = page.locator(".bars .top")
    assert (
        1 <= len(texts) <= 1 + took_s
        and texts[-1] == f"{top.locator('.name').inner_text()}, {top.locator('.share').inner_text()}"
    )


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("width", [1440, 390])
def test_axe_finds_nothing(width: int, lang: str, theme: str, served: Any, open_page: OpenPage) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(open_page, served(), f"lang={lang}&theme={theme}&cell=conv2:5,4,5", width=width)
    page.locator(".compare").wait_for(state="attached")
    choose(page, sheet=True)
    page.wait_for_timeout(300)
    violations = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in violations] == []


def test_both_languages_have_the_same_words(modules: Any) -> None:
    names = ("text.en", "text.zh", "more.en", "more.zh")
    read = "async (names) => Promise.all(names.map(async (name) => (await import(`/${name}.js`)).default))"
    en, zh, more_en, more_zh = modules.evaluate(read, list(names))
    assert (list(en), list(more_en)) == (list(zh), list(more_zh))
    assert not set(en) & set(more_en)
    en, zh = en | more_en, zh | more_zh
    places = [
        [sorted({part.split("}")[0] for part in text.split("{")[1:]}) for text in words.values()] for words in (en, zh)
    ]
    assert places[0] == places[1]


def test_the_tolerances_are_the_gates(modules: Any) -> None:
    tolerances = modules.evaluate("async () => (await import('/verify.js')).TOLERANCES")
    assert tolerances == {name: [row.rtol, row.atol] for name, row in TOLERANCES.items()}


@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_what_is_loaded_at_first_is_small(served: Any, open_page: OpenPage, locale: str) -> None:
    page = opened(open_page, served(), locale=locale)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(500)  # nothing that would be loaded a moment later is left out
    sent, whole = np.sum(page.evaluate(GOT), axis=0)
    assert whole <= MAX_FIRST_BYTES
    assert sent <= MAX_FIRST_GZIPPED_BYTES


def test_the_page_is_small() -> None:
    sources = [path for path in PAGE_DIR.iterdir() if path.suffix in (".js", ".css", ".html")]
    assert sum(path.stat().st_size for path in sources) <= MAX_SOURCE_BYTES
    assert (PAGE_DIR / "garments.png").stat().st_size < 45_000


def test_the_garments_are_the_first_ten_test_images_of_each_class(data: Any, tmp_path: Path) -> None:
    from examples.playground_garments import main

    main([str(tmp_path / "garments.png")])
    assert (tmp_path / "garments.png").read_bytes() == (PAGE_DIR / "garments.png").read_bytes()
