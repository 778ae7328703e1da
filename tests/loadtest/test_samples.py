"""`make classify`: the garments as they are drawn, and the verdicts beside them."""

from types import SimpleNamespace

import numpy as np
import pytest

from atelier.program import run_program
from loadtest import samples
from tests.atelier.scripted_server import ScriptedServer


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


def test_every_garment_bears_the_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.array([0, 1, 2, 3, 4, 5], np.uint8)
    images = labels.repeat(784).reshape(-1, 1, 28, 28)  # the scripted server reads the label from the first pixel
    dataset = SimpleNamespace(test_images=images, test_labels=np.where(labels == 3, 9, labels))
    monkeypatch.setattr(samples, "load_dataset", lambda: dataset)
    server = ScriptedServer()
    assert run_program(samples.main, ["--target", server.target, "--count", "6"]) == 0
    server.stop()
    printed = capsys.readouterr().out
    assert printed.count("right ") == 5
    assert printed.count("WRONG, it is Ankle boot") == 1
    assert "5 of 6 right; lenet5 version 3" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_more_images_than_there_are_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(samples, "load_dataset", lambda: SimpleNamespace(test_images=np.zeros(6)))
    assert run_program(samples.main, ["--count", "7"]) == 2
    assert "BAD_COUNT: --count is 7" in capsys.readouterr().err
