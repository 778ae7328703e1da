"""The command line that a dataclass becomes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from atelier.settings import parse_settings


@dataclass(frozen=True)
class Fence:
    height: int = 2


@dataclass(frozen=True, kw_only=True)
class Garden:
    tree: Literal["apple", "pear"] = "apple"
    """What grows, 100 % of it."""

    length_m: int | None = None
    """None measures it."""

    gate: Path = Path("gate")
    """Where one comes in."""

    is_open: bool = False
    """Whether one may."""

    fence: Fence = field(default_factory=Fence)
    """What has no flag."""


def garden(*arguments: str) -> Garden:
    return parse_settings(Garden, list(arguments), prog="garden", description="Plants a garden.")


def test_every_field_is_a_flag_of_its_type() -> None:
    assert garden() == Garden()
    assert garden("--tree", "pear", "--length-m", "3", "--gate", "a/b", "--is-open", "--debug") == Garden(
        tree="pear", length_m=3, gate=Path("a/b"), is_open=True
    )


def test_help_has_docstrings_choices_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        garden("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--tree {apple,pear} What grows, 100 % of it. (default: apple)" in shown
    assert "--length-m LENGTH_M None measures it. --gate GATE Where one comes in. (default: gate)" in shown


@pytest.mark.parametrize("arguments", [("--tree", "oak"), ("--fence", "3"), ("--length-m", "long")])
def test_other_values_and_what_has_no_flag_are_usage_errors(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        garden(*arguments)
    assert ended.value.code == 2
    assert f"{arguments[0]}" in capsys.readouterr().err
