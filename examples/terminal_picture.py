"""Draws what `make classify` shows in a terminal, as a PNG: `python -m examples.terminal_picture docs/classify.png`."""

import argparse
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from atelier.program import run_program
from loadtest.server_process import server_process

CELL = (10, 20)  # pixels of a character
MARGIN = 20  # pixels around the text
FONT_SIZE = 16
PAPER, INK = (24, 24, 24), (224, 224, 224)
CONTROL = re.compile(r"\x1b\[([0-9;]*)m")

Colour = tuple[int, int, int]


def main(arguments: list[str]) -> int:
    """Serves the newest version, sends four test images, and draws what is printed."""
    parser = argparse.ArgumentParser(prog="python -m examples.terminal_picture", description=__doc__)
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--repository", type=Path, default=Path("artifacts/models"), help="(%(default)s)")
    options = parser.parse_args(arguments)
    settings = ("--repository", str(options.repository), "--port", "0", "--metrics-port", "0")
    with server_process("serving", *settings) as server:
        ask = ("--target", f"localhost:{server.port}", "--count", "4")
        shown = shown_in_a_terminal([sys.executable, "-m", "loadtest.samples", *ask])
    picture_of("$ make classify\n\n" + shown).save(options.picture, optimize=True)
    return 0


def shown_in_a_terminal(command: list[str]) -> str:
    """What a command prints if a terminal reads it: programs draw in colour only there."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=theirs) as process:  # noqa: S603
        os.close(theirs)
        output = b"".join(_chunks(ours))
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {output.decode()}")
    return output.decode().replace("\r\n", "\n")


def _chunks(descriptor: int) -> Iterator[bytes]:
    """Reads a terminal until the program has closed its end, which Linux reports as an error."""
    try:
        while chunk := os.read(descriptor, 65536):
            yield chunk
    except OSError:
        os.close(descriptor)


def picture_of(text: str) -> Image.Image:
    """Draws text with SGR colours (ECMA-48) of the 256-colour table, one cell a character."""
    lines = text.rstrip("\n").split("\n")
    columns = max(len(CONTROL.sub("", line)) for line in lines)
    size = (2 * MARGIN + columns * CELL[0], 2 * MARGIN + len(lines) * CELL[1])
    picture = Image.new("RGB", size, PAPER)
    file = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSansMono.ttf")
    font = ImageFont.truetype(str(file), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    draw = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        for column, (character, ink, paper) in enumerate(_cells(line)):
            left, top = MARGIN + column * CELL[0], MARGIN + row * CELL[1]
            if character == "▀":  # drawn, not written: a font's half block may leave gaps
                draw.rectangle((left, top, left + CELL[0] - 1, top + CELL[1] - 1), paper)
                draw.rectangle((left, top, left + CELL[0] - 1, top + CELL[1] // 2 - 1), ink)
            else:
                draw.text((left, top), character, ink, font)
    return picture


def _cells(line: str) -> Iterator[tuple[str, Colour, Colour]]:
    """(character, ink, paper) from a line with controls such as `38;5;240;48;5;232` and `0`."""
    ink, paper = INK, PAPER
    pieces = CONTROL.split(line)  # text, controls, text, ...
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            yield from ((character, ink, paper) for character in piece)
            continue
        numbers = [int(number or 0) for number in piece.split(";")]
        if numbers == [0]:
            ink, paper = INK, PAPER
        while len(numbers) >= 3:
            kind, _, number = numbers[:3]
            ink, paper = (_gray(number), paper) if kind == 38 else (ink, _gray(number))
            numbers = numbers[3:]


def _gray(number: int) -> Colour:
    """The 24 grays of the 256-colour table, 232 to 255: 8, 18, ... 238."""
    level = 8 + 10 * (number - 232)
    return level, level, level


if __name__ == "__main__":
    sys.exit(run_program(main))
