"""What draws the pictures of README and docs."""

import sys

from examples.terminal_picture import CELL, INK, MARGIN, PAPER, picture_of, shown_in_a_terminal


def test_program_is_shown_as_a_terminal_shows_it() -> None:
    shown = shown_in_a_terminal([sys.executable, "-c", "import sys; print(sys.stdout.isatty()); print('end')"])
    assert shown == "True\nend\n"


def test_half_blocks_have_their_two_grays_and_text_its_ink() -> None:
    picture = picture_of("\x1b[38;5;255;48;5;232m▀\x1b[0m\nM")
    assert picture.size == (2 * MARGIN + CELL[0], 2 * MARGIN + 2 * CELL[1])
    upper, lower = (picture.getpixel((MARGIN + 5, MARGIN + down)) for down in (2, CELL[1] - 2))
    assert (upper, lower) == ((238, 238, 238), (8, 8, 8))
    second_line = picture.crop((MARGIN, MARGIN + CELL[1], MARGIN + CELL[0], MARGIN + 2 * CELL[1]))
    colours = {colour for _, colour in second_line.getcolors() or []}
    assert {INK, PAPER} <= colours
