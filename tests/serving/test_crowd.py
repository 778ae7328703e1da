"""A server that is asked more than it can do: who asks little is answered, health is, and who has gone is counted."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import grpc
import pytest

from atelier.client import Client
from loadtest.load.generator import Generators
from loadtest.load.protocols import Classify
from loadtest.load.scenarios import load_with_deadline
from loadtest.server_process import ServerProcess, server_process
from tests.serving.running import scrape, wait_for
from tests.serving.test_overload import LABELS, REFERENCE
from tests.serving.test_server import Calls, request, run

IMAGE_S = 0.02  # on the device: 50 images a second, which a busy machine can do too
SECONDS = 4.0
DEADLINE_S = 1.0


@contextmanager
def serving(front_end: str, *settings: str) -> Iterator[ServerProcess]:
    with server_process("tests.serving.breaking_server", "--port", "0", "--front-end", front_end, *settings) as server:
        yield server


@asynccontextmanager
async def connected(server: ServerProcess) -> AsyncIterator[Calls]:
    """Calls over a connection of their own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(server.target, options=options) as channel:
        yield Calls(channel)


async def offer(calls: Calls, rate: float) -> Counter[str]:
    """Asks so often a second, whatever becomes of it; returns how the calls ended."""

    async def end_of_call() -> str:
        try:
            await calls.classify(request(1), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    began_s, sent = time.monotonic(), []
    while time.monotonic() < began_s + SECONDS:
        sent.append(asyncio.ensure_future(end_of_call()))
        await asyncio.sleep(max(0.0, began_s + len(sent) / rate - time.monotonic()))
    return Counter(await asyncio.gather(*sent))


@pytest.mark.fault("S24")
@pytest.mark.timing
def test_ten_clients_beside_one_that_asks_twenty_times_as_much_keep_their_rates(front_end: str) -> None:
    rate = 2.5  # ten of them want half of what the device can do, and the greedy one all of it
    ends: list[Counter[str]] = []

    async def test(server: ServerProcess) -> None:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(server)) for _ in range(11)]
            rates = [20 * rate] + 10 * [rate]
            ends[:] = await asyncio.gather(*map(offer, clients, rates))

    for _ in range(3):  # on a machine that may be busy
        with serving(front_end, "--image-s", str(IMAGE_S), "--max-batch-size", "1") as server:
            run(test(server))
        greedy, *others = ends
        keep_theirs = all(each["OK"] >= 0.9 * each.total() for each in others)
        if keep_theirs and greedy["RESOURCE_EXHAUSTED"] > greedy.total() / 4:
            return
    pytest.fail(f"{greedy}, {others}")


@pytest.mark.fault("S51")
@pytest.mark.timing
def test_health_is_answered_at_once_at_ten_times_what_the_server_can_do(front_end: str) -> None:
    settings = ("--image-s", "0.05", "--max-batch-size", "1")  # 20 a second
    with serving(front_end, *settings) as server, Client(server.target) as client:
        protocol = Classify(target=server.target, reference=REFERENCE)

        def slowest_s(num_probes: int = 20) -> float:
            took_s = []
            for _ in range(num_probes):
                began_s = time.monotonic()
                assert client.is_serving(timeout_s=10)
                took_s.append(time.monotonic() - began_s)
                time.sleep(0.1)
            return max(took_s)

        with Generators(1, {"served": protocol}, len(LABELS)) as generators, ThreadPoolExecutor(1) as pool:
            for _ in range(3):  # on a machine that may be busy
                quiet_s = slowest_s(10)
                load = load_with_deadline("served", 200.0, 0.5, duration_s=3.0)
                measured = pool.submit(generators.measure, load)
                time.sleep(0.5)
                busy_s = slowest_s()
                num_refused = measured.result().count("refused")
                if num_refused > 300 and busy_s < max(0.1, 5 * quiet_s):
                    return
    if num_refused <= 300:
        pytest.skip(f"the machine is too busy: {num_refused} calls were refused")
    pytest.fail(f"{busy_s:.3f} s, and {quiet_s:.3f} s before the load")


@pytest.mark.slow
@pytest.mark.fault("S53")
def test_answer_for_a_client_that_has_gone_is_counted_and_nothing_of_it_is_kept(front_end: str) -> None:
    async def test(server: ServerProcess) -> None:
        async with connected(server) as calls:
            for _ in range(3):
                call = calls.classify(request(1))
                await asyncio.sleep(0.2)  # it is on the device
                call.cancel()

    with serving(front_end, "--slow-s", "0.4") as server:
        run(test(server))
        wait_for(lambda: scrape(server).value("atelier_undelivered_total") >= 1, 10)
        page = scrape(server)
        assert page.value("atelier_requests_total", method="Classify", code="CANCELLED") == 3
        assert page.value("atelier_requests_total", method="Classify", code="OK") == 0
        assert page.value("atelier_queue_images") == 0
        with Client(server.target) as client:
            assert client.is_serving()
        assert server.stop() == 0
