"""A server that answers by a script, and both clients to ask it."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from atelier.client import AsyncClient, Client
from tests.atelier.scripted_server import ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


def ask_with_client(target: str, method: str, *arguments: Any, **options: Any) -> Any:
    with Client(target) as client:
        return getattr(client, method)(*arguments, **options)


def ask_with_async_client(target: str, method: str, *arguments: Any, **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(target) as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(ask())


Ask = Callable[..., Any]


@pytest.fixture(params=[ask_with_client, ask_with_async_client], ids=["Client", "AsyncClient"])
def ask(request: pytest.FixtureRequest) -> Ask:
    chosen: Ask = request.param
    return chosen
