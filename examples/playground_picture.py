"""Takes a picture of the page that looks inside: `python -m examples.playground_picture docs/playground.png`.

It needs Chromium: `apt-get install chromium`.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from atelier.errors import MissingInputError
from atelier.program import run_program
from loadtest.server_process import server_process

CHOICES = "lang=en&theme=dark&view=3d&image=g29&cell=conv2:5,4,5"
FLAGS = (
    *("--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1440,860"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),  # WebGL without a GPU
    "--virtual-time-budget=15000",  # ms of the page's own time, which stands while the page waits for answers
)
NUM_COLOURS = 256


def main(arguments: list[str]) -> int:
    """Serves the newest version, opens the page on an ankle boot and one cell, and saves what is seen."""
    parser = argparse.ArgumentParser(prog="python -m examples.playground_picture", description=__doc__)
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--repository", type=Path, default=Path("artifacts/models"), help="(%(default)s)")
    options = parser.parse_args(arguments)
    settings = ("--repository", str(options.repository), "--port", "0", "--metrics-port", "0")
    with server_process("serving", *settings) as server:
        [address] = server.ready["playground"]
        picture_of(address)  # the first look opens the connection that the next ones are quicker by
        picture_of(f"{address}#{CHOICES}").save(options.picture, optimize=True)
    return 0


def picture_of(address: str) -> Image.Image:
    """Opens an address in Chromium, without a window, and returns what is seen, in 256 colours."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise MissingInputError("NO_BROWSER", "chromium is not installed", "apt-get install chromium")
    with tempfile.TemporaryDirectory() as directory:
        png = Path(directory) / "page.png"
        command = [chromium, *FLAGS, f"--user-data-dir={directory}/profile", f"--screenshot={png}", address]
        subprocess.run(command, check=True, timeout=120, stderr=subprocess.DEVNULL)  # noqa: S603
        return Image.open(png).convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)


if __name__ == "__main__":
    sys.exit(run_program(main))
