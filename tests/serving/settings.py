"""A server's settings for tests: a port of its own, and a short end."""

import dataclasses
from typing import Any

from serving.config import ServerConfig
from serving.limits import Limits

LAME_DUCK_S = 0.05


def config_with(**values: Any) -> ServerConfig:
    """Makes the config of a server on any port; fields of `Limits` are given by their names, as settings are."""
    names = {field.name for field in dataclasses.fields(Limits)}
    limits = {name: values.pop(name) for name in names & values.keys()}
    return ServerConfig(port=0, limits=Limits(**{"lame_duck_s": LAME_DUCK_S, **limits}), **values)
