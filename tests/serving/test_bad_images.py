"""An image on which the runtime fails is an error for its own request alone, with either front end."""

import asyncio
import math
import threading
from typing import Any

import grpc
import pytest

from tests.reliability.plugin import Figure
from tests.serving.fake_backend import FakeBackend
from tests.serving.test_server import device_started, queued, request, run
from tests.serving.test_swap import SERVERS

POISON = 99


@pytest.mark.slow
@pytest.mark.fault("S25")
@pytest.mark.goal("G6", of="positions of an image on which the runtime fails", ci=64, release=64)
@pytest.mark.parametrize("serving", SERVERS)
@pytest.mark.parametrize("fault", [ValueError("/secret/path"), math.nan, math.inf], ids=["raises", "nan", "infinity"])
def test_image_on_which_the_backend_fails_costs_its_mates_nothing_wherever_it_lies(
    serving: Any, fault: Exception | float, size: int, figure: Figure
) -> None:
    async def test() -> None:
        backend = FakeBackend(max_batch_size=100)
        if isinstance(fault, Exception):
            backend.poison[POISON] = fault
        else:
            backend.nonsense[POISON] = fault
        async with serving(backend) as (server, calls, _):
            for position in range(size):
                backend.gate.clear()
                backend.started = threading.Semaphore(0)
                first = asyncio.ensure_future(calls.classify(request(1)))
                await device_started(backend)
                num_before = len(backend.batches)
                sent = [request(*[2] * position), request(POISON), request(*[3] * (63 - position))]
                mates = [asyncio.ensure_future(calls.classify(each)) for each in sent if each.images]
                await queued(server, 64)
                backend.gate.set()
                await first
                ends = await asyncio.gather(*mates, return_exceptions=True)
                assert POISON in backend.batches[num_before] and len(backend.batches[num_before]) == 64
                assert len(backend.batches) - num_before - 1 <= 13
                (failure,) = (end for end in ends if isinstance(end, grpc.aio.AioRpcError))
                assert failure.code() is grpc.StatusCode.INTERNAL
                assert "secret" not in repr(failure)
                answers: list[Any] = [end for end in ends if end is not failure]
                found = [each.predictions[0].label for end in answers for each in end.classifications]
                assert found == [2] * position + [3] * (63 - position)

    run(test())
    figure(f"{size} of {size}: it alone failed, its 63 mates were answered rightly, in at most 13 more runs")
