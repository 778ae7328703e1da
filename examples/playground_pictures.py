"""Takes the pictures of the page that looks inside: `python -m examples.playground_pictures docs`."""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from atelier.program import run_program
from examples.browser import chromium
from loadtest.server_process import server_process

READY = "() => document.documentElement.dataset.ready === 'yes' && atelier.state.values !== null"
DESKTOP, PHONE = {"width": 1440, "height": 860}, {"width": 390, "height": 844}
NUM_COLOURS = 192  # of a picture: enough for two palettes, and a quarter of the bytes
# File; what is chosen, as the page's links say it; the browser.
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "playground.png": ("image=g29&cell=conv2:5,4,5", {"viewport": DESKTOP, "color_scheme": "dark"}),
    "playground-compare.png": (
        "image=g29&tab=compare&off=conv2:3,conv2:6",
        {"viewport": DESKTOP, "color_scheme": "light"},
    ),
    "playground-tour.png": (
        "image=g29&tour=7&cell=linear1:57,0,0&lang=zh",
        {"viewport": PHONE, "color_scheme": "dark"},
    ),
}
# Where what is done is done, once it is there; what; and what is seen then.
ACTIONS = {
    "playground-compare.png": (
        "#panel-compare select",
        """() => {
      const select = document.querySelector('#panel-compare select');
      select.value = 'served';
      select.dispatchEvent(new Event('change'));
      document.getElementById('occlusion').click();
    }""",
        "canvas.occlusion",
    ),
    "playground-tour.png": ("#stage", "() => document.getElementById('stage').scrollIntoView()", "#maps"),
}


def main(arguments: list[str]) -> int:
    """Serves the newest version, opens links to its page in Chromium, and writes what is seen."""
    parser = argparse.ArgumentParser(prog="python -m examples.playground_pictures", description=__doc__)
    parser.add_argument("directory", type=Path, help="where the PNGs go")
    parser.add_argument("--repository", type=Path, default=Path("artifacts/models"), help="(%(default)s)")
    options = parser.parse_args(arguments)
    settings = ("--repository", str(options.repository), "--port", "0", "--metrics-port", "0")
    with server_process("serving", *settings) as server, chromium() as browser:
        address = server.ready["playground"][0]
        for name, (choices, context) in PICTURES.items():
            page = browser.new_page(**context)
            seen = screenshot(page, f"{address}#{choices}", ACTIONS.get(name))
            page.close()  # and its connections: the server has few
            seen.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(options.directory / name, optimize=True)
    return 0


def screenshot(page: Any, address: str, action: tuple[str, str, str] | None) -> Image.Image:
    """Opens the page, does what is to be done there, and returns what is seen once it is still."""
    page.goto(address)
    page.wait_for_function(READY)
    page.wait_for_load_state("networkidle")
    if action:
        place, script, result = action
        page.wait_for_selector(place)
        page.evaluate(script)
        page.wait_for_selector(result)
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(1000)  # no more is asked; the answer is being drawn
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


if __name__ == "__main__":
    sys.exit(run_program(main))
