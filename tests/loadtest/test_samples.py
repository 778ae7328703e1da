"""`make classify`: the garments as they are drawn, and the verdicts beside them."""

import numpy as np
import pytest

from atelier.program import run_program
from loadtest import samples
from tests.atelier.scripted_server import ScriptedServer
from training.dataset import CLASSES, FashionMNIST


def test_garment_is_drawn_24_columns_wide_from_dark_to_light() -> None:
    image = np.zeros((28, 28), np.uint8)
    image[:, 14:] = 255
    lines = samples.drawn(image, in_colour=False)
    assert [len(line) for line in lines] == [24] * 12
    assert {line[:11] for line in lines} == {" " * 11}
    assert {line[-11:] for line in lines} == {"@" * 11}


def test_garment_in_colour_has_two_pixels_per_character() -> None:
    image = np.zeros((28, 28), np.uint8)
    image[14:] = 255
    lines = samples.drawn(image, in_colour=True)
    assert [line.count("▀") for line in lines] == [24] * 12
    assert lines[0] == "\x1b[38;5;232;48;5;232m▀" * 24 + "\x1b[0m"
    assert lines[-1] == "\x1b[38;5;255;48;5;255m▀" * 24 + "\x1b[0m"


def test_every_garment_bears_the_verdict(data: FashionMNIST, capsys: pytest.CaptureFixture[str]) -> None:
    server = ScriptedServer()  # reads the label from the first pixel, which is 0 in most images: a T-shirt
    assert run_program(samples.main, ["--target", server.target, "--count", "60"]) == 0
    asked = np.frombuffer(server.requests[0].images, np.uint8).reshape(-1, 1, 28, 28)
    server.stop()
    of_image = dict(zip(map(bytes, data.test_images), data.test_labels.tolist(), strict=True))
    truths = [of_image[bytes(image)] for image in asked]
    num_right = truths.count(0)
    assert asked[:, 0, 0, 0].max() == 0 < num_right < len(truths) == 60
    printed = capsys.readouterr().out
    assert printed.count("right ") == num_right
    for label, name in enumerate(CLASSES[1:], start=1):
        assert printed.count(f"WRONG, it is {name}") == truths.count(label), name
    assert f"{num_right} of 60 right; lenet5 version 3" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_more_images_than_there_are_is_a_usage_error(data: FashionMNIST, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(samples.main, ["--count", "10001"]) == 2
    assert "BAD_COUNT: --count is 10001" in capsys.readouterr().err
