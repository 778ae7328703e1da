"""What tests know of the open page: its state, its canvas, and what the server answers to the same image."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
OpenPage = Callable[..., Any]

READY = "() => document.documentElement.dataset.ready === 'yes' && atelier.state.values !== null"
# The image that the page shows.
SEEN = """() => {
  const copy = new OffscreenCanvas(28, 28).getContext('2d', { willReadFrequently: true });
  copy.drawImage(document.getElementById('gets'), 0, 0);
  return [...copy.getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0);
}"""
# What was looked at is what is chosen: image, version, epoch, and whether maps are switched off.
SETTLED = """() => {
  const { image, looked, lookedOff, values, valuesKey, head, network, drawing, off, version, epoch } = atelier.state;
  if (!values || drawing || looked !== image || lookedOff !== off) return false;
  if (valuesKey !== `${network.model.version}/${epoch ?? ''}`) return false;
  const isServed = !off.length && epoch === null && version === null;
  return Boolean(head.answer || head.refusal) === isServed;
}"""


# The image of a drawing comes when the module that makes it is there, and what waited for it before us has run.
PREPARED = """async () => {
  if (atelier.state.source.kind === 'drawing') await import('/prepare.js');
  await new Promise((done) => setTimeout(done));
}"""


def opened(open_page: OpenPage, address: str, choices: str = "", **options: Any) -> Any:
    """The page, once the server has looked at its first image."""
    page = open_page(f"{address}#{choices}", **options)
    page.wait_for_function(READY)
    return page


def without_webgl(page: Any) -> Any:
    """The same page in a browser that has no WebGL2."""
    page.context.add_init_script(
        "const get = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...more)"
        " { return kind === 'webgl2' ? null : get.call(this, kind, ...more); };"
    )
    page.reload()
    page.wait_for_function(READY)
    page.wait_for_function("() => atelier.state.canTurn === false")
    return page


def settle(page: Any) -> None:
    """Waits until the last image has been looked at, and what it gave is on the screen."""
    page.evaluate(PREPARED)
    page.wait_for_function(SETTLED)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def choose(page: Any, **choices: Any) -> None:
    page.evaluate("(choices) => atelier.set(choices)", choices)
    settle(page)


def image_of(page: Any) -> NDArray[np.uint8]:
    return np.array(page.evaluate("() => [...atelier.state.image]"), np.uint8)


def network_of(address: str) -> Any:
    return json.loads(_asked(address, "GET", "/api/network"))


def _asked(address: str, method: str, path: str, body: bytes | None = None) -> bytes:
    connection = HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    assert reply.status == 200, content
    return content


@dataclass(frozen=True)
class Look:
    head: Any
    values: Floats  # (num_values,)


def look(address: str, image: NDArray[np.uint8]) -> Look:
    """Asks the server as the page does, beside it."""
    frame = _asked(address, "POST", "/api/look", image.tobytes())
    length = int.from_bytes(frame[:4], "little")
    return Look(json.loads(frame[4 : 4 + length]), np.frombuffer(frame, "<f4", offset=4 + length))


def picture_of(page: Any) -> NDArray[np.uint8]:
    """What is seen of the stage: (H, W, 3)."""
    png = page.locator("#maps").screenshot()
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def taken_for(page: Any) -> str:
    return str(page.locator(".bars .top .name").inner_text())


def check_answer(page: Any, address: str) -> None:
    """What is seen is what the server says of the image that is seen."""
    settle(page)
    image = image_of(page)
    assert page.evaluate(SEEN) == image.tolist()
    found = look(address, image).head
    assert found["answer"], found
    probabilities = found["answer"]["probabilities"]
    shares = [float(text.rstrip(" %")) for text in page.locator(".bars .share").all_inner_texts()]
    assert shares == pytest.approx([100 * p for p in probabilities], abs=0.06)
    assert taken_for(page) == page.locator(".bars .name").nth(int(np.argmax(probabilities))).inner_text()
