"""The maps are the served values: every colour, every number, and every place that is pointed at."""

import math
from typing import Any

import numpy as np
import pytest

from tests.serving.playground.page.pages import (
    Look,
    OpenPage,
    choose,
    image_of,
    look,
    network_of,
    opened,
    picture_of,
    settle,
    without_webgl,
)

pytestmark = pytest.mark.slow

NUM_CELLS = 200
# Random cells whose sides are at least so many pixels; with 5 the pixel in the middle is the cell's alone.
CELLS = """async ([count, smallest]) => {
  const { cellCorners, middleOf } = await import('/layout.js');
  const { stage } = document.getElementById('stage'), { network } = atelier.state, cells = [];
  let seed = 1;
  const random = (n) => { seed = (seed * 48271) % 2147483647; return seed % n; };
  while (cells.length < count) {
    const shelf = stage.layout.shelves[random(stage.layout.shelves.length)], layer = network.layers[shelf.shown];
    const [map, y, x] = [shelf.maps, shelf.height, shelf.width].map(random);
    const corners = cellCorners(shelf, { map, y, x });
    const points = corners.map((corner) => stage.view.toPixels(corner));
    const width = points[1][0] - points[0][0], height = points[3][1] - points[0][1];
    if (Math.min(width, height) < smallest) continue;
    const middle = stage.view.toPixels(middleOf(corners[0], corners[2]));
    const index = layer.start + (map * shelf.height + y) * shelf.width + x;
    cells.push({ layer: shelf.first, shown: shelf.shown, map, y, x, index, middle, picked: stage.cellAt(...middle) });
  }
  return cells;
}"""
PALETTE = "async (theme) => (await import('/palette.js')).PALETTES[theme]"


def expected_color(value: float, of_layer: Any, is_sigmoid: bool, is_input: bool, palette: Any) -> list[float]:
    """The colour of a value on its shelf's scale: by the page's promise, not by its code."""
    center = 0.5 if is_sigmoid else min(0.0, float(of_layer.min())) if is_input else 0.0
    reach = (
        0.5 if is_sigmoid else max(1.0, float(of_layer.max())) - center if is_input else float(np.abs(of_layer).max())
    )
    t = max(-1.0, min(1.0, (value - center) / reach))
    end = palette["paper"] if is_input else palette["cool"] if t < 0 else palette["warm"]
    share = max(0.0, t) if is_input else abs(t) ** palette["gamma"]
    return [255 * (zero + (e - zero) * share) for zero, e in zip(palette["zero"], end, strict=True)]


def check_colors(page: Any, network: Any, values: Any, theme: str) -> None:
    picture, palette = picture_of(page), page.evaluate(PALETTE, theme)
    cells = page.evaluate(CELLS, [NUM_CELLS, 5])
    assert len({cell["layer"] for cell in cells}) >= 5
    for cell in cells:
        layer = network["layers"][cell["shown"]]
        of_layer = values[layer["start"] :][: math.prod(layer["shape"])]
        before = [each for each in network["layers"][: cell["shown"] + 1] if each["kind"] not in ("pool", "pad")]
        is_sigmoid, is_input = before[-1].get("function") == "sigmoid", cell["layer"] == "input"
        wanted = expected_color(values[cell["index"]], of_layer, is_sigmoid, is_input, palette)
        x, y = (int(part) for part in cell["middle"])
        assert np.abs(picture[y, x] - wanted).max() <= 2, cell
        assert cell["picked"] == {key: cell[key] for key in ("layer", "map", "y", "x")}


@pytest.mark.parametrize(
    ("architecture", "theme", "view", "width", "height"),
    [
        ("tutorial", "dark", "3d", 1900, 1300),
        ("tutorial", "light", "flat", 1900, 1300),
        ("classic", "dark", "flat", 1900, 1300),
        ("modern", "light", "3d", 2600, 1900),  # its cells are smaller
    ],
)
def test_every_cell_has_the_color_of_its_served_value_and_is_found_under_the_pointer(
    architecture: str, theme: str, view: str, width: int, height: int, served: Any, open_page: OpenPage
) -> None:
    address = served(architecture)
    page = opened(open_page, address, f"theme={theme}&view={view}", width=width, height=height)
    check_colors(page, network_of(address), look(address, image_of(page)).values, theme)


def test_without_webgl_a_plain_canvas_has_the_same_colors(served: Any, open_page: OpenPage) -> None:
    address = served()
    page = opened(open_page, address, "theme=dark", width=1900, height=1300)
    settle(without_webgl(page))
    assert page.get_by_role("button", name="Flat").is_disabled()
    check_colors(page, network_of(address), look(address, image_of(page)).values, "dark")


@pytest.mark.parametrize("architecture", ["tutorial", "classic", "modern"])
def test_the_panel_shows_the_served_values_and_the_same_recomputed(
    architecture: str, served: Any, open_page: OpenPage
) -> None:
    address = served(architecture)
    page = opened(open_page, address, width=1200, height=600)
    found: Look = look(address, image_of(page))
    page.evaluate("() => atelier.loadWeights()")
    for cell in page.evaluate(CELLS, [10, 0]):
        choose(page, cell={key: cell[key] for key in ("layer", "map", "y", "x")})
        text = page.locator(".compare").inner_text().replace("−", "-")
        served_text, here_text = (part.split()[-1] for part in text.split(" · ")[:2])
        value = float(found.values[cell["index"]])
        assert float(served_text) == pytest.approx(value, rel=1e-6, abs=1e-9), cell
        assert float(here_text) == pytest.approx(value, rel=2e-5, abs=2e-5), cell


CHECK = """async (spoil) => {
  await atelier.loadWeights();
  const { verify } = await import('/verify.js'), { state } = atelier;
  const net = structuredClone(state.network), weights = state.weights.slice();
  const conv = net.layers.find(({ kind }) => kind === 'conv'), { start } = net.weights[conv.weight];
  if (spoil === 'padding') net.layers.find(({ padding }) => padding?.[0]).padding = [0, 0];
  const transpose = (_, i) => { weights[start + i] = state.weights[start + (i % 5) * 5 + Math.floor(i / 5)]; };
  if (spoil === 'kernel') Array.from({ length: 25 }, transpose);
  if (spoil === 'start') conv.start += 1;
  if (spoil === 'replicate') conv.padding_mode = 'zeros';
  return verify(net, state.values, weights, state.looked);
}"""


@pytest.mark.parametrize("architecture", ["tutorial", "classic", "modern", "replicate"])
def test_all_values_are_recomputed_within_the_gate_and_an_error_is_seen(
    architecture: str, served: Any, open_page: OpenPage
) -> None:
    address = served(architecture)
    page = opened(open_page, address, "image=g2")  # a pullover reaches the border, where padding matters
    rows = page.evaluate(CHECK, "nothing")
    assert [row["name"] for row in rows] == [layer["name"] for layer in network_of(address)["layers"]]
    assert sum(row["count"] for row in rows) == network_of(address)["num_values"]
    assert max(row["share"] for row in rows) <= 1
    assert any(row["worst"] > 0 for row in rows)  # float32 is not float64
    for spoil in ("padding", "kernel", "start", *(["replicate"] if architecture == "replicate" else [])):
        assert max(row["share"] for row in page.evaluate(CHECK, spoil)) > 1, spoil
    page.click("#check")
    page.locator(".check .good").wait_for()
    assert page.locator(".check tbody tr").count() == len(rows)


RING = """async () => {
  const { linesOf } = await import('/links.js'), { stage } = document.getElementById('stage');
  const [input, conv] = stage.layout.shelves, { x, y, width, height } = input.quads[0];
  const lines = linesOf(stage.layout, { ...atelier.state, cell: { layer: conv.first, map: 0, y: 0, x: 0 } });
  return lines.filter(({ from, to, alpha }) => { // hatches are faint
    const [px, py] = from.map((part, i) => (part + to[i]) / 2);
    return alpha < 1 && (Math.abs(px - x) > width / 2 || Math.abs(py - y) > height / 2);
  }).length;
}"""


@pytest.mark.parametrize("architecture", ["tutorial", "replicate"])
def test_padding_is_a_hatched_ring_round_the_map_whatever_lies_there(
    architecture: str, served: Any, open_page: OpenPage
) -> None:
    page = opened(open_page, served(architecture))
    assert page.evaluate(RING) > 4 * (28 // 2)  # a hatch for each two cells of the border


# The signs of the lines that lead to a cell.
SIGNS = """async (cell) => {
  const { linesOf } = await import('/links.js'), { stage } = document.getElementById('stage');
  return linesOf(stage.layout, { ...atelier.state, cell }).map(({ sign }) => sign).filter((sign) => sign !== undefined);
}"""


def test_a_map_that_is_switched_off_is_marked_and_checked_as_such(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served(), "cell=conv2:5,4,5")
    page.get_by_role("button", name="Switch map 5 off").click()
    page.wait_for_function("() => atelier.state.head.answer === null")
    assert "not served" in page.locator("#served").inner_text()
    assert page.locator(".bars.unserved").count() == 1
    settle(page)
    served_text, here_text = (part.split()[-1] for part in page.locator(".compare").inner_text().split(" · ")[:2])
    assert float(served_text) == float(here_text) == 0
    assert page.evaluate(SIGNS, {"layer": "conv2", "map": 5, "y": 4, "x": 5}) == [0] * 6  # nothing comes from anywhere
    assert set(page.evaluate(SIGNS, {"layer": "conv2", "map": 4, "y": 4, "x": 5})) >= {-1, 1}
    page.click("#check")
    page.locator(".check .good").wait_for()
    assert "off=conv2:5" in page.evaluate("() => new Promise((done) => setTimeout(() => done(location.hash), 500))")


def test_a_dense_units_lines_and_the_softmax_are_those_of_the_output(served: Any, open_page: OpenPage) -> None:
    address = served()
    page = opened(open_page, address, "cell=linear3:7,0,0")
    page.locator(".list caption").wait_for()
    rows = page.locator("table.list").nth(1).locator("tbody tr")
    found = look(address, image_of(page))
    shares = [float(rows.nth(i).locator("td").nth(3).inner_text().rstrip(" %")) for i in range(10)]
    assert shares == pytest.approx([100 * p for p in found.head["answer"]["probabilities"]], abs=0.006)
    assert rows.nth(7).get_attribute("class") == "chosen"


# A pixel that lies so many pixels above the upper edge of a map.
ABOVE = """([shelf, map, distance]) => {
  const { stage } = document.getElementById('stage');
  const { left, top } = document.getElementById('maps').getBoundingClientRect();
  const [[x0, y0], [x1, y1]] = stage.view.outline(stage.layout.shelves[shelf].quads[map]);
  return [left + (x0 + x1) / 2, top + (y0 + y1) / 2 - distance];
}"""


def test_a_click_on_a_maps_frame_switches_it_off_and_on(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served(), "view=flat&cell=conv1:0,3,3")
    for shelf, map_, distance, off in (
        (1, 2, 3, [{"layer": "conv1", "map": 2}]),
        (1, 2, 3, []),
        (3, 1, 2, [{"layer": "conv2", "map": 1}]),
    ):
        page.mouse.click(*page.evaluate(ABOVE, [shelf, map_, distance]))
        page.wait_for_function("(off) => JSON.stringify(atelier.state.off) === JSON.stringify(off)", arg=off)
    assert page.evaluate("() => atelier.state.cell.map") == 0
    page.mouse.click(*page.evaluate(ABOVE, [2, 0, 2]))  # of a pooling: it has no switch
    page.wait_for_function("() => atelier.state.cell === null")
    assert page.evaluate("() => atelier.state.off.length") == 1


def test_a_click_beside_the_units_of_a_convolution_switches_none_off(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served("classic"), "view=flat&cell=c1:0,3,3")
    c5 = 5
    page.mouse.click(*page.evaluate(ABOVE, [c5, 0, 2]))
    page.wait_for_function("() => atelier.state.cell === null")
    assert page.evaluate("() => atelier.state.off") == []


def test_the_canvas_has_a_summary_for_readers(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served(), "lang=en")
    page.keyboard.press("Tab")  # before the focus comes to the canvas
    page.wait_for_function("() => document.getElementById('stage-summary')?.textContent")
    ids = page.locator("#maps").get_attribute("aria-describedby").split()
    summary = page.locator(f"#{ids[1]}").text_content()
    assert ids[0] == "stage-keys"
    values = page.evaluate("() => [...atelier.state.values]")[shown_start(page, "conv1") :][: 6 * 28 * 28]
    written = [f"{value:.2f}".replace("-", "−") for value in (min(values), max(values))]
    assert f"Convolution conv1: 6 maps of 28 × 28, from {written[0]} to {written[1]}; strongest: Map " in summary
    page.locator(".garment").nth(3).click()
    settle(page)
    assert page.locator("#stage-summary").text_content() != summary


def shown_start(page: Any, name: str) -> int:
    """Where the values begin that a shelf shows."""
    shelves = "document.getElementById('stage').stage.layout.shelves"
    return int(page.evaluate(f"(name) => {shelves}.find(({{ first }}) => first === name).layer.start", name))


def test_the_legend_of_a_difference_is_of_the_shelf_that_differs_most(served: Any, open_page: OpenPage) -> None:
    page = opened(open_page, served(), "lang=en")
    put = """([index, value]) => {
      const values = new Float32Array(atelier.state.network.num_values);
      values[index] = value;
      atelier.set({ difference: { values, title: '' } });
      return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    }"""
    page.evaluate("() => atelier.loadMore()")
    for name, value, written in (("linear1", -0.00123, "−1.2e-3 … 0"), ("conv2", 0.5, "0 … 0.50")):
        page.evaluate(put, [shown_start(page, name), value])
        legend = page.locator(".legend").inner_text()
        assert name in legend and written in legend
