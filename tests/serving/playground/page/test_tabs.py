"""Table, training, comparison and tour, held to what the server says beside the page."""

import json
import urllib.request
from typing import Any

import numpy as np
import pytest

from tests.serving.playground.page.pages import choose, image_of, network_of, opened, settle

pytestmark = pytest.mark.slow

PARAMETERS = {"tutorial": "61,706", "classic": "60,850"}


def asked(address: str, route: str, image: Any) -> tuple[Any, Any]:
    """Header and values of a frame, asked for beside the page."""
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"{address}api/{route}", image.tobytes(), headers)  # noqa: S310 # it is http
    with urllib.request.urlopen(request, timeout=20) as reply:  # noqa: S310
        frame = reply.read()
    length = int.from_bytes(frame[:4], "little")
    return json.loads(frame[4 : 4 + length]), np.frombuffer(frame, "<f4", offset=4 + length)


def text_of(locator: Any) -> str:
    return " ".join(locator.inner_text().split())


@pytest.mark.parametrize("architecture", ["tutorial", "classic"])
def test_the_table_says_who_is_connected_and_counts_only_that(served: Any, open_page: Any, architecture: str) -> None:
    page = opened(open_page, served(architecture), "tab=connections&lang=en")
    panel = page.locator("#panel-connections")
    assert text_of(panel.locator("table.list tr").last) == f"Σ {PARAMETERS[architecture]}"
    if architecture == "tutorial":
        assert panel.get_by_text("Every one of the 16 output maps sees all 6 input maps.").is_visible()
        assert "conv2 (16, 6, 5, 5) 2,416" in text_of(panel)
        return
    assert "60 connections × 25 weights + 16 biases = 1516 parameters." in text_of(panel)
    table = next(layer["table"] for layer in network_of(served(architecture))["layers"] if layer["name"] == "c3")
    rows = panel.locator("table.connections tbody tr").all()
    assert [[td.inner_text() == "×" for td in row.locator("td").all()] for row in rows] == [
        [i in inputs for inputs in table] for i in range(6)
    ]
    panel.get_by_role("button", name="Output map 3 sees input maps 3, 4, 5").focus()
    assert page.evaluate("() => atelier.state.marks") == [
        {"layer": "c3", "map": 3},
        *({"layer": "s2.pool", "map": i} for i in (3, 4, 5)),
    ]


def test_two_versions_are_compared_value_by_value(served: Any, open_page: Any) -> None:
    page, address = opened(open_page, served(), "tab=compare&lang=en"), served()
    panel = page.locator("#panel-compare")
    panel.get_by_label("Compare with").select_option("2")
    panel.locator("table.list").wait_for()
    here, there = (asked(address, f"look?answer=0{query}", image_of(page))[1] for query in ("", "&version=2"))
    shown = page.evaluate("() => [...atelier.state.difference.values]")
    assert shown == pytest.approx((here - there).tolist(), abs=1e-6)
    layers = network_of(address)["layers"]
    conv2 = layers[[layer["name"] for layer in layers].index("conv2")]  # has no activation
    of_layer = np.abs(here - there)[conv2["start"] :][:1600].reshape(16, 10, 10)
    map_, y, x = (int(i) for i in np.unravel_index(of_layer.argmax(), of_layer.shape))
    panel.get_by_role("button", name=f"conv2[{map_}, {y}, {x}]").click()
    assert page.evaluate("() => atelier.state.cell") == {"layer": "conv2", "map": map_, "y": y, "x": x}
    choose(page, tab="arithmetic")
    assert page.evaluate("() => atelier.state.difference") is None


def test_a_link_holds_what_is_compared_with(served: Any, open_page: Any) -> None:
    page = opened(open_page, served(), "tab=compare&lang=en")
    page.get_by_label("Compare with").select_option("2")
    page.wait_for_function("() => location.hash.includes('compare=2')")
    other = opened(open_page, served(), page.url.partition("#")[2])
    other.locator("#panel-compare table.list").wait_for()
    assert other.get_by_label("Compare with").input_value() == "2"
    opened(open_page, served(), "tab=compare&lang=en&compare=77").wait_for_function(
        "() => document.querySelector('#panel-compare select')?.value === '' && atelier.state.compare === null"
    )


def test_the_pixels_that_matter_are_found_by_the_server(served: Any, open_page: Any) -> None:
    page, address = opened(open_page, served(), "tab=compare&lang=en"), served()
    panel = page.locator("#panel-compare")
    panel.get_by_role("button", name="Ask the server").click()
    panel.locator("canvas").wait_for()
    head, values = asked(address, "occlusion?size=5&stride=2", image_of(page))
    losses = values.reshape(13, 13)
    row, column = np.unravel_index(losses.argmax(), losses.shape)
    name = network_of(address)["classes"][head["label"]]
    said = f"{name} loses most, {100 * losses.max():.1f} points, when row {2 * row + 1}, column {2 * column + 1} is"
    assert panel.get_by_text(said).first.is_visible()
    assert "170 images in one call" in text_of(panel)
    assert "as it is served" not in text_of(panel)


@pytest.mark.parametrize("experiment", ["off=conv2:5", "version=2"])
def test_in_an_experiment_the_pixels_that_matter_are_said_to_be_the_served_networks(
    served: Any, open_page: Any, experiment: str
) -> None:
    panel = opened(open_page, served(), f"tab=compare&lang=en&{experiment}").locator("#panel-compare")
    panel.get_by_text("of the network as it is served").wait_for()


def test_what_the_server_refuses_is_told_once(served: Any, browser: Any) -> None:
    page = browser.new_page()
    told = {"reason": "QUEUE_FULL", "message": "QUEUE_FULL: 9 images wait (try later)", "cure": "try later"}
    page.route("**/api/occlusion*", lambda route: route.fulfill(status=503, json=told))
    opened(lambda url: page.goto(url) and page, served(), "tab=compare&lang=en")
    page.get_by_role("button", name="Ask the server").click()
    page.locator("#panel-compare .problem").wait_for()
    assert text_of(page.locator("#panel-compare .problem")) == "QUEUE_FULL: 9 images wait; try later"
    page.route("**/api/network*", lambda route: route.fulfill(status=503, json=told))
    page.reload()
    page.get_by_text("QUEUE_FULL: 9 images wait; try later").wait_for()
    page.close()


def test_maps_are_switched_off_and_on(served: Any, open_page: Any) -> None:
    page = opened(open_page, served(), "tab=compare&lang=en")
    panel = page.locator("#panel-compare")
    panel.get_by_role("button", name="Switch off map 5 of conv2").click()
    settle(page)
    shown = page.evaluate("() => [...atelier.state.values]")
    assert shown == asked(served(), "look?answer=0&off=conv2:5", image_of(page))[1].tolist()
    assert "not served" in text_of(page.locator("#header"))
    panel.get_by_label("Compare with").select_option("served")
    panel.locator("table.list").wait_for()
    assert "conv1 0" in text_of(panel.locator("table.list"))  # before conv2 nothing differs
    panel.get_by_role("button", name="All on").click()
    settle(page)
    assert "not served" not in text_of(page.locator("#header"))


@pytest.mark.parametrize(("architecture", "lang"), [("tutorial", "en"), ("classic", "zh"), ("modern", "en")])
def test_the_tour_goes_through_eleven_steps(served: Any, open_page: Any, architecture: str, lang: str) -> None:
    page = opened(open_page, served(architecture), f"lang={lang}")
    page.locator("#tour-button").click()
    tour, seen = page.locator("#tour"), []
    for step in range(11):
        tour.get_by_text(f"{step + 1} of 11" if lang == "en" else f"{step + 1} / 11").wait_for()
        settle(page)
        state = page.evaluate("() => { const { cell, source, tour } = atelier.state; return { cell, source, tour }; }")
        seen.append(state["cell"] and state["cell"]["layer"])
        words = tour.locator("p").first.inner_text()
        assert (state["tour"], "{" in words, "undefined" in words) == (step, False, False)
        tour.get_by_role(
            "button", name=["Next", "End"][step == 10] if lang == "en" else ["下一步", "结束"][step == 10], exact=True
        ).press("Enter")
    assert tour.is_hidden()
    assert len(set(seen[:9])) >= 6 and seen[9:] == [None, None]


@pytest.mark.parametrize(("step", "layer"), [(3, "conv1"), (7, "linear1"), (8, "linear3")])
def test_the_tours_strongest_cell_is_of_its_own_image(served: Any, open_page: Any, step: int, layer: str) -> None:
    page, address = opened(open_page, served(), f"lang=en&tour={step - 1}&image=g29&off=conv1:0"), served()
    page.locator(".garment").nth(3).click()
    settle(page)
    page.locator("#tour").get_by_role("button", name="Next").click()
    page.wait_for_function("() => atelier.state.source.index === 29")
    settle(page)
    shelf, values = shelf_named(page, layer), asked(address, "look?answer=0", image_of(page))[1]
    of_layer = np.abs(values[shelf["start"] :][: shelf["size"]])
    cell = page.evaluate("() => atelier.state.cell")
    place = (cell["map"] * shelf["height"] + cell["y"]) * shelf["width"] + cell["x"]
    assert (cell["layer"], place) == (layer, int(of_layer.argmax()))
    page.get_by_label("Map", exact=True).fill("1")  # what the reader chooses stays
    page.locator(".garment").nth(4).click()
    settle(page)
    assert page.evaluate("() => atelier.state.cell.map") == 1


def shelf_named(page: Any, name: str) -> Any:
    """Where the values that a shelf shows lie, and its sides."""
    return page.evaluate(
        """async (name) => {
      const { shelvesOf, size } = await import('/layout.js');
      const { layer, height, width } = shelvesOf(atelier.state.network).find(({ first }) => first === name);
      return { start: layer.start, size: size(layer.shape), height, width };
    }""",
        name,
    )


def test_the_tour_ends_when_a_link_without_it_is_pasted(served: Any, open_page: Any) -> None:
    page = opened(open_page, served(), "lang=en&tour=9")
    page.locator("#tour").get_by_text("10 of 11").wait_for()
    page.locator("#tour").get_by_role("button", name="Coat minus pullover").click()
    page.wait_for_function("() => atelier.state.difference !== null")
    page.evaluate("() => { location.hash = 'lang=en&tab=compare'; }")
    page.locator("#tour").wait_for(state="hidden")
    assert page.evaluate("() => [atelier.state.difference, atelier.state.marks]") == [None, []]
    page.evaluate("() => { location.hash = 'lang=en&tour=4'; }")
    page.locator("#tour").get_by_text("5 of 11").wait_for()


def test_the_tour_changes_its_language_and_subtracts_two_garments(served: Any, open_page: Any) -> None:
    page = opened(open_page, served(), "lang=en&tour=9")
    page.get_by_role("button", name="中文").click()
    page.locator("#tour").get_by_role("button", name="外套减套头衫").click()
    page.locator(".legend").get_by_text("外套减套头衫").wait_for(state="attached")
    pixels = page.evaluate("() => [...atelier.state.difference.values.slice(0, 784)]")
    images = [page.evaluate(f"async () => [...await (await import('/garments.js')).garment({i})]") for i in (4, 2)]
    assert pixels == pytest.approx(((np.array(images[0], float) - images[1]) / 255).tolist(), abs=1e-6)


def test_the_training_is_played_back_beside_its_curves(served: Any, open_page: Any) -> None:
    address = served("played back")
    page, network = opened(open_page, address, "tab=training&lang=en"), network_of(address)
    panel, last = page.locator("#panel-training"), network["epochs"][-1]
    assert "This is the network that is served." in text_of(panel)
    for epoch, said in ((0, "Not served: random weights"), (1, "Not served: the weights after this epoch.")):
        panel.get_by_role("slider").fill(str(epoch))
        settle(page)
        assert f"Epoch {epoch} of {last}" in text_of(panel) and said in text_of(panel)
        shown = page.evaluate("() => [...atelier.state.values]")
        assert shown == asked(address, f"look?answer=0&epoch={epoch}", image_of(page))[1].tolist()
    assert f"Loss {network['history'][1]['train_loss']:.3f}" in text_of(panel)
    assert panel.locator(".line").count() == 3
    panel.get_by_role("slider").fill(str(last))
    settle(page)
    assert page.evaluate("() => atelier.state.head.answer !== null")


def test_without_the_weights_of_epochs_the_training_tab_says_how_to_keep_them(served: Any, open_page: Any) -> None:
    page = opened(open_page, served(), "tab=training&lang=en")
    assert "--keep-epochs" in text_of(page.locator("#panel-training"))


@pytest.mark.parametrize(("lang", "scheme", "width"), [("en", "dark", 1440), ("zh", "light", 390)])
def test_no_tab_breaks_a_rule_of_accessibility(served: Any, open_page: Any, lang: str, scheme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = opened(open_page, served("classic"), f"lang={lang}&tour=5", width=width, color_scheme=scheme)
    for tab in ("connections", "calculator", "training", "compare"):
        choose(page, tab=tab, sheet=True)
        page.locator(f"#panel-{tab} > *").first.wait_for()
        page.wait_for_timeout(250)  # until the sheet is up
        found = Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], tab
