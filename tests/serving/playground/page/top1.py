"""Prepares drawings with the page's own code, in Chromium, and finds for how many of twenty a trained model is right.

python -m tests.serving.playground.page.top1 artifacts/checkpoint
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atelier.program import run_program
from examples.browser import chromium
from tests.serving.playground.page.conftest import modules_in
from tests.serving.playground.page.drawings import DRAWINGS, PLACES, Line, lines_of
from training.checkpoint import load_model

PREPARE = """async ([drawings, width, isPainted, isFilled]) => {
  const { prepare } = await import('/prepare.js'), { gapOf } = await import('/outline.js');
  const canvas = new OffscreenCanvas(112, 112), pen = canvas.getContext('2d', { willReadFrequently: true });
  Object.assign(pen, { lineCap: 'round', lineJoin: 'round', lineWidth: width });
  return drawings.map((lines) => {
    pen.clearRect(0, 0, 112, 112);
    for (const line of lines) {
      pen.beginPath();
      line.forEach(([x, y]) => pen.lineTo(x, y));
      if (isPainted) pen.fill();
      pen.stroke();
    }
    const pixels = pen.getImageData(0, 0, 112, 112).data;
    const ink = Uint8Array.from({ length: 12544 }, (_, i) => pixels[4 * i + 3]);
    return { image: [...prepare(ink, isFilled)], gap: isFilled ? gapOf(ink) : null };
  });
}"""
BRUSH = 5


def prepared(
    modules: Any, drawings: list[list[Line]], *, width: float = BRUSH, is_painted: bool = False, is_filled: bool = True
) -> tuple[NDArray[np.uint8], list[Any]]:
    """The images, (N, 28, 28), and the gaps."""
    results = modules.evaluate(PREPARE, [drawings, width, is_painted, is_filled])
    images = np.array([result["image"] for result in results], np.uint8).reshape(-1, 28, 28)
    return images, [result["gap"] for result in results]


def accuracy(modules: Any, checkpoint_dir: Path, *, is_filled: bool) -> float:
    """The share of the twenty drawings, each at all places, that the checkpoint's model takes for what they are."""
    drawings = [lines_of(lines, *place) for _, lines in DRAWINGS for place in PLACES]
    labels = np.repeat([label for label, _ in DRAWINGS], len(PLACES))
    images, _ = prepared(modules, drawings, is_filled=is_filled)
    model, _ = load_model(checkpoint_dir)
    with torch.inference_mode():
        logits = model(torch.tensor(images[:, None]))
    return float(np.mean(logits.argmax(1).numpy() == labels))


def main(arguments: list[str]) -> int:
    with chromium() as browser, modules_in(browser) as modules:
        for is_filled, name in ((True, "filled and centred"), (False, "as drawn")):
            print(f"{name}: {accuracy(modules, Path(arguments[0]), is_filled=is_filled):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
