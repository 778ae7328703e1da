"""Sends test images to the running server and prints the garments, what the server sees in them, and the truth.

python -m loadtest.samples        (make classify)
"""

import argparse
import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atelier.classify import add_connection_flags, connect
from atelier.client import Prediction, program_errors
from atelier.errors import UsageError
from atelier.program import can_print, run_program
from training.dataset import CLASSES, load_dataset

# Four garments side by side are 4 * 24 + 3 = 99 columns wide.
GARMENTS_PER_ROW = 4
GARMENT_WIDTH = 24


def main(arguments: list[str]) -> int:
    """Runs `python -m loadtest.samples`."""
    options = _parser().parse_args(arguments)
    dataset = load_dataset()
    num_images = len(dataset.test_images)
    if not 1 <= options.count <= num_images:
        raise UsageError("BAD_COUNT", f"--count is {options.count}", f"there are {num_images:,} test images")
    chosen = np.random.default_rng(0).choice(num_images, options.count, replace=False)
    images, truths = dataset.test_images[chosen], dataset.test_labels[chosen]
    with program_errors(), connect(options) as client:
        answer = client.classify(images)
    in_colour = sys.stdout.isatty() and can_print("▀")
    cells = [
        [*drawn(image, in_colour), *_caption(predictions[0], truth)]
        for image, predictions, truth in zip(images[:, 0], answer.classifications, truths, strict=True)
    ]
    for start in range(0, len(cells), GARMENTS_PER_ROW):
        print(*(" ".join(line) for line in zip(*cells[start : start + GARMENTS_PER_ROW], strict=True)), "", sep="\n")
    num_right = (answer.labels == truths).sum()
    print(f"{num_right} of {len(truths)} right; {answer.model_name} version {answer.model_version}, ", end="")
    print(f"{answer.queue_us / 1e3:.1f} ms in the queue, {answer.inference_us / 1e3:.1f} ms on the device")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.samples", description=(__doc__ or "").split("\n\n")[0])
    add_connection_flags(parser)
    parser.add_argument("--count", type=int, default=16, help="test images to send (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def drawn(image: NDArray[np.uint8], in_colour: bool) -> list[str]:
    """Draws an image (28, 28) as 12 lines of 24 columns, two pixels above each other per character."""
    size = (GARMENT_WIDTH, GARMENT_WIDTH)
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)).astype(int)  # (24, 24)
    return [(_colour_line if in_colour else _plain_line)(*rows) for rows in zip(pixels[::2], pixels[1::2], strict=True)]


def _colour_line(upper: NDArray[np.int_], lower: NDArray[np.int_]) -> str:
    """Draws half blocks in the 24 grays, 232 (black) to 255, of any 256-colour terminal."""
    grays = zip(232 + upper * 23 // 255, 232 + lower * 23 // 255, strict=True)
    return "".join(f"\x1b[38;5;{above};48;5;{below}m▀" for above, below in grays) + "\x1b[0m"


def _plain_line(upper: NDArray[np.int_], lower: NDArray[np.int_]) -> str:
    ramp = " .:-=+*#%@"
    return "".join(ramp[gray] for gray in (upper + lower) // 2 * (len(ramp) - 1) // 255)


def _caption(prediction: Prediction, truth: int) -> list[str]:
    """Writes two lines: what the server says, and the truth."""
    verdict = "right" if prediction.label == truth else f"WRONG, it is {CLASSES[truth]}"
    return [line.ljust(GARMENT_WIDTH) for line in (f"{prediction.name} {prediction.probability:.1%}", verdict)]


if __name__ == "__main__":
    sys.exit(run_program(main))
