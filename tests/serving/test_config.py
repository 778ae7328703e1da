"""The server's settings: what has a flag, and what follows from what was set."""

import dataclasses

import pytest

from serving.config import ServerConfig, parse_arguments
from serving.limits import Limits
from tests.serving.settings import config_with


def test_limits_that_nobody_can_choose_have_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    shown = capsys.readouterr().out
    assert "--drain-timeout-s" in shown
    assert not [field.name for field in dataclasses.fields(Limits) if "--" + field.name.replace("_", "-") in shown]
    assert parse_arguments(["--port", "0"]).limits == Limits()


def test_server_has_few_flags() -> None:
    assert len(dataclasses.fields(ServerConfig)) <= 30


def test_room_for_pictures_holds_the_largest_message() -> None:
    assert ServerConfig().max_encoded_bytes == 64 << 20
    assert ServerConfig(max_message_bytes=200 << 20).max_encoded_bytes == 200 << 20
    assert config_with(max_message_bytes=1 << 20, max_encoded_bytes=2 << 20).max_encoded_bytes == 2 << 20
