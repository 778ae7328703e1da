"""Single images of many threads and tasks go together, and each caller gets what a call of its own would give."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from atelier.client import Answer, AsyncClient, ClassifyError, Client
from tests.atelier.scripted_server import ScriptedServer

LONG_MS = 10_000.0


def image(label: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((28, 28), label, np.uint8)


def sizes(server: ScriptedServer) -> list[int]:
    return [len(request.images) // 784 for request in server.requests]


def until(condition: Any) -> None:
    until_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.005)


def ask_by_threads(server: ScriptedServer, calls: Sequence[dict[str, Any]]) -> list[Any]:
    """Answers or errors: the first call is held by the server until the others wait."""
    server.gate.clear()
    with Client(server.target, coalesce_ms=LONG_MS) as client, ThreadPoolExecutor(len(calls)) as threads:
        futures: list[Future[Answer]] = [threads.submit(client.classify, **calls[0])]
        until(lambda: server.requests)
        futures += [threads.submit(client.classify, **call) for call in calls[1:]]
        time.sleep(0.3)
        server.gate.set()
        return [future.exception(20) or future.result() for future in futures]


def ask_by_tasks(server: ScriptedServer, calls: Sequence[dict[str, Any]]) -> list[Any]:
    async def ask() -> list[Any]:
        server.gate.clear()
        async with AsyncClient(server.target, coalesce_ms=LONG_MS) as client:
            first = asyncio.create_task(client.classify(**calls[0]))
            await asyncio.to_thread(until, lambda: server.requests)
            others = [asyncio.create_task(client.classify(**call)) for call in calls[1:]]
            await asyncio.sleep(0.3)
            server.gate.set()
            return await asyncio.gather(first, *others, return_exceptions=True)

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [ask_by_threads, ask_by_tasks], ids=["threads", "tasks"])


@both
def test_what_comes_while_a_call_is_under_way_goes_together(server: ScriptedServer, ask: Any) -> None:
    answers = ask(server, [{"images": image(label)} for label in range(9)])
    assert sizes(server) == [1, 8]
    assert [answer.labels.tolist() for answer in answers] == [[label] for label in range(9)]
    assert answers[5].model_version == "3" and answers[5].batch_size == 5


@both
def test_requests_that_differ_in_top_k_or_deadline_do_not_mix(server: ScriptedServer, ask: Any) -> None:
    others = [{"images": image(5), "top_k": 2}, {"images": image(6), "top_k": 2}, {"images": image(7), "timeout_s": 9}]
    answers = ask(server, [{"images": image(1)}, *others])
    assert sorted(sizes(server)) == [1, 1, 2]
    assert [len(answer.classifications[0]) for answer in answers] == [1, 2, 2, 1]


@both
def test_several_images_go_by_themselves(server: ScriptedServer, ask: Any) -> None:
    answers = ask(server, [{"images": image(1)}, {"images": np.stack([image(2), image(3)])}, {"images": image(4)}])
    assert sorted(sizes(server)) == [1, 1, 2]
    assert [answer.labels.tolist() for answer in answers] == [[1], [2, 3], [4]]


@both
def test_refusal_reaches_each_caller_as_its_own(server: ScriptedServer, ask: Any) -> None:
    server.after[1] = (grpc.StatusCode.INTERNAL, "MODEL_FAILED: the batch failed")
    first, *others = ask(server, [{"images": image(label)} for label in range(4)])
    assert first.labels.tolist() == [0]
    assert {(error.status, error.word) for error in others} == {("INTERNAL", "MODEL_FAILED")}
    assert len({id(error) for error in others}) == 3


@both
def test_image_that_is_refused_costs_no_other_caller_its_answer(server: ScriptedServer, ask: Any) -> None:
    server.refused = 7
    answers = ask(server, [{"images": image(label)} for label in (1, 7, 2, 3)])
    assert [answer.labels.tolist() for answer in (answers[0], *answers[2:])] == [[1], [2], [3]]
    assert (answers[1].status, answers[1].word) == ("INVALID_ARGUMENT", "PICTURE_IN_IMAGES")


@both
def test_no_more_than_64_go_together(server: ScriptedServer, ask: Any) -> None:
    answers = ask(server, [{"images": image(index % 9)} for index in range(100)])
    assert sorted(sizes(server)) == [1, 35, 64]
    assert [answer.labels[0] for answer in answers] == [index % 9 for index in range(100)]


def test_lone_caller_never_waits(server: ScriptedServer) -> None:
    with Client(server.target, coalesce_ms=LONG_MS) as client:
        began_s = time.monotonic()
        assert [client.classify(image(label)).labels.tolist() for label in (1, 2, 3)] == [[1], [2], [3]]
        assert time.monotonic() - began_s < 5


def test_window_ends_the_wait(server: ScriptedServer) -> None:
    server.gate.clear()
    with Client(server.target, coalesce_ms=50) as client, ThreadPoolExecutor(2) as threads:
        threads.submit(client.classify, image(1))
        until(lambda: server.requests)
        second = threads.submit(client.classify, image(2))
        until(lambda: len(server.requests) == 2)
        server.gate.set()
        assert second.result(20).labels.tolist() == [2]


def test_closed_client_and_time_outs_that_are_none_are_refused(server: ScriptedServer) -> None:
    with Client(server.target, coalesce_ms=1) as client:
        pass
    with pytest.raises(ValueError, match="this client is closed"):
        client.classify(image(1))
    with pytest.raises(ValueError, match="above 0, or None for no limit"):
        Client(server.target, coalesce_ms=1).classify(image(1), timeout_s=float("nan"))


@pytest.mark.parametrize("window_ms", [-1, float("nan")])
def test_window_that_is_no_time_is_refused(window_ms: float) -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(ValueError, match=r"coalesce_ms is .*: pass milliseconds"):
            client("localhost:1", coalesce_ms=window_ms)


def test_followers_of_a_task_that_is_cancelled_are_answered(server: ScriptedServer) -> None:
    async def cancel_the_leader() -> list[Answer]:
        server.gate.clear()
        async with AsyncClient(server.target, coalesce_ms=LONG_MS) as client:
            first = asyncio.create_task(client.classify(image(1)))
            await asyncio.to_thread(until, lambda: server.requests)
            leader, *followers = [asyncio.create_task(client.classify(image(label))) for label in (2, 3, 4)]
            await asyncio.sleep(0.1)
            leader.cancel()
            await asyncio.sleep(0.1)
            server.gate.set()
            with pytest.raises(asyncio.CancelledError):
                await leader
            return [await task for task in (first, *followers)]

    assert [answer.labels.tolist() for answer in asyncio.run(cancel_the_leader())] == [[1], [3], [4]]


@pytest.mark.slow
def test_follower_of_a_task_that_is_cancelled_has_the_deadline_of_its_call(server: ScriptedServer) -> None:
    async def cancel_the_leader() -> None:
        server.gate.clear()
        async with AsyncClient(server.target, coalesce_ms=LONG_MS) as client:
            asyncio.create_task(client.classify(image(1), timeout_s=20))  # noqa: RUF006
            await asyncio.to_thread(until, lambda: server.requests)
            leader, follower = [asyncio.create_task(client.classify(image(label), timeout_s=2)) for label in (2, 3)]
            await asyncio.sleep(1)
            leader.cancel()
            with pytest.raises(ClassifyError, match="DEADLINE_EXCEEDED"):
                await follower

    asyncio.run(cancel_the_leader())
    assert server.seconds_left[-1] < 1.2


@pytest.mark.slow
def test_deadline_counts_from_the_call_not_from_the_sending(server: ScriptedServer) -> None:
    server.gate.clear()
    with Client(server.target, coalesce_ms=300) as client, ThreadPoolExecutor(1) as threads:
        threads.submit(client.classify, image(1), timeout_s=20)
        until(lambda: server.requests)
        with pytest.raises(ClassifyError, match="DEADLINE_EXCEEDED"):
            client.classify(image(2), timeout_s=1)
        assert server.seconds_left[-1] < 0.75
        server.gate.set()
