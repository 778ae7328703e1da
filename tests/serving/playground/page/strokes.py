"""Measures how long a stroke takes from the hand to the maps, in Chromium and with the real server.

python -m tests.serving.playground.page.strokes
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from atelier.program import run_program
from examples.browser import chromium
from loadtest.server_process import server_process
from tests.serving.playground.page.pages import PREPARED, READY

PAUSE_MS = 50  # behind a look: the next may begin after 33
# For each movement of the pen: ms from the event until all that it changed is painted, the graphics' work included.
KEEP_TIMES = """() => {
  const { stage } = document.getElementById('stage'), paint = stage.paintNow.bind(stage);
  let moved = null;
  globalThis.strokesMs = [];
  document.getElementById('pad').addEventListener('pointermove', ({ buttons, timeStamp }) => {
    if (buttons) moved ??= { timeStamp, image: atelier.state.image };
  }, true);
  stage.paintNow = () => {
    paint();
    const { image, looked } = atelier.state;
    if (!moved || looked !== image || looked === moved.image) return;
    const gl = stage.canvas.getContext('webgl2');
    if (gl) gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4)); // waits for what was drawn
    strokesMs.push(performance.now() - moved.timeStamp);
    moved = null;
  };
}"""


def stroke_ms(page: Any, count: int) -> list[float]:
    """Draws a zigzag of so many lines with the mouse; returns how long each took to be seen, in ms."""
    box = page.locator("#pad").bounding_box()
    page.evaluate(KEEP_TIMES)
    for number in range(count):
        place = number / count
        page.mouse.move(
            box["x"] + box["width"] * (0.1 + 0.8 * place), box["y"] + box["height"] * (0.2 + 0.6 * (number % 2))
        )
        page.mouse.down()
        rest(page)
        page.mouse.move(box["x"] + box["width"] * (0.14 + 0.8 * place), box["y"] + box["height"] * 0.5)
        rest(page)
        page.mouse.up()
    return [float(each) for each in page.evaluate("() => strokesMs")]


def rest(page: Any) -> None:
    """Waits until what has been drawn is seen, and the next look may begin at once."""
    page.evaluate(PREPARED)
    page.wait_for_function("() => atelier.state.looked === atelier.state.image")
    page.wait_for_timeout(PAUSE_MS)


def main(arguments: list[str]) -> int:
    """Serves the newest version, draws on its page, deep and flat, and prints medians."""
    parser = argparse.ArgumentParser(prog="python -m tests.serving.playground.page.strokes", description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("artifacts/models"), help="(%(default)s)")
    parser.add_argument("--strokes", type=int, default=40, help="how many lines are drawn in each view (%(default)s)")
    options = parser.parse_args(arguments)
    settings = ("--repository", str(options.repository), "--port", "0", "--metrics-port", "0")
    with server_process("serving", *settings) as server, chromium() as browser:
        for view in ("3d", "flat"):
            page = browser.new_page(viewport={"width": 1440, "height": 860})
            page.goto(f"{server.ready['playground'][0]}#view={view}")
            page.wait_for_function(READY)
            taken_ms = stroke_ms(page, options.strokes)
            middle, late = np.percentile(taken_ms, [50, 90])
            print(
                f"{view}: {middle:.1f} ms from a stroke to its maps (median of {len(taken_ms)}; 90 % within {late:.1f})"
            )
            page.close()
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
