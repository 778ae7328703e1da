"""Load that does not wait for answers: requests are due at their times, each with a deadline, whatever the server does.

`offer` is the interface that the bench relies on. Here Python processes send; together they reach a few thousand
requests a second, and `Outcomes` tells if that was less than was asked for.
"""

import asyncio
import math
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from itertools import cycle
from multiprocessing.synchronize import Barrier
from typing import Any

import grpc
import grpc.aio
import numpy as np
import uvloop
from numpy.typing import NDArray

from atelier.channel import proxy_options
from loadtest.protocols import ServerProtocol

CONNECT_TIMEOUT_S = 60.0  # until every process has made its connections
STREAMS_PER_CONNECTION = 100  # a server may bound them: ours takes 128
REFUSALS = ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
LATE_SHARE = 0.1  # of the deadline: a request sent later than that was the generator's failure
ENOUGH_SHARE = 0.95  # of the requests, sent in time, make a run count


@dataclass(frozen=True, kw_only=True)
class OpenLoad:
    """Single images as a Poisson process; each is to be answered within the deadline, from when it was due."""

    rate: float
    deadline_s: float
    duration_s: float
    seed: int = 0


@dataclass(kw_only=True)
class Outcomes:
    """What became of the requests."""

    num_due: int = 0  # requests that the schedule had
    num_in_time: int = 0  # of them, that the generator could send when they were due, or nearly; others were not sent
    num_right: int = 0  # right answers within the deadline
    num_late: int = 0  # right answers after it
    num_wrong: int = 0
    num_refused: int = 0  # by the server, before the deadline
    num_expired: int = 0  # no answer until the deadline
    num_lost: int = 0  # any other failure
    latency_us: list[float] = field(default_factory=list)  # of the right answers within the deadline, from when due
    refusal_us: list[float] = field(default_factory=list)  # of the refusals, from when the request was sent

    def goodput(self, load: OpenLoad) -> float:
        """Right answers within the deadline, per second."""
        return self.num_right / load.duration_s

    @property
    def is_offered(self) -> bool:
        """Whether the generator kept its schedule; if not, the run says nothing of the server at that rate."""
        return self.num_in_time >= ENOUGH_SHARE * self.num_due


def offer(server: ServerProtocol, num_images: int, load: OpenLoad, num_processes: int | None = None) -> Outcomes:
    """Offers the load and returns what became of it; request i is of the reference's image i modulo `num_images`."""
    num_processes = num_processes or os.cpu_count() or 1
    shares = [
        replace(load, rate=load.rate / num_processes, seed=load.seed * num_processes + rank)
        for rank in range(num_processes)
    ]
    spawn = multiprocessing.get_context("spawn")  # grpc's threads do not survive a fork
    barrier = spawn.Barrier(num_processes)
    with ProcessPoolExecutor(num_processes, spawn, _meet_at, (barrier,)) as processes:
        futures = [processes.submit(_offer_share, server, num_images, share) for share in shares]
        return _together([future.result() for future in futures])


def _together(shares: list[Outcomes]) -> Outcomes:
    whole = Outcomes()
    for share in shares:
        for each in fields(Outcomes):
            setattr(whole, each.name, getattr(whole, each.name) + getattr(share, each.name))
    return whole


# --- In each of the processes ----------------------------------------------------------------------------------------

_barriers: list[Barrier] = []  # one, at which all processes meet when they are connected


def _meet_at(barrier: Barrier) -> None:
    _barriers.append(barrier)


def _offer_share(server: ServerProtocol, num_images: int, load: OpenLoad) -> Outcomes:
    return uvloop.run(_Share(server, num_images, load).run())


class _Share:
    """What one process sends, and what it sees."""

    def __init__(self, server: ServerProtocol, num_images: int, load: OpenLoad) -> None:
        self._server, self._load = server, load
        self._messages = [server.request((index,)) for index in range(num_images)]
        self._outcomes = Outcomes()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> Outcomes:
        """Connects, sends what is due once all processes are connected, and waits for the last answer."""
        load = self._load
        random = np.random.default_rng(load.seed)
        gaps_s = random.exponential(1 / load.rate, max(1, round(load.rate * load.duration_s)))
        num_channels = max(2, math.ceil(load.rate * load.deadline_s / STREAMS_PER_CONNECTION))
        options = [("grpc.use_local_subchannel_pool", 1), *proxy_options(self._server.target)]
        channels = [grpc.aio.insecure_channel(self._server.target, options=options) for _ in range(num_channels)]
        methods: list[Any] = [channel.unary_unary(self._server.method) for channel in channels]
        for method in methods:
            await method(self._messages[0], timeout=10)  # connects; not counted
        _barriers[0].wait(CONNECT_TIMEOUT_S)
        await self._send_all(time.monotonic() + np.cumsum(gaps_s), methods)
        for channel in channels:
            await channel.close()
        return self._outcomes

    async def _send_all(self, due_s: NDArray[np.float64], methods: list[Any]) -> None:
        load, turn = self._load, cycle(methods)
        for number, due in enumerate(due_s.tolist()):
            self._outcomes.num_due += 1
            if (ahead_s := due - time.monotonic()) > 0:
                await asyncio.sleep(ahead_s)
            elif number % 16 == 0:
                await asyncio.sleep(0)  # behind the schedule, answers are still taken
            left_s = due + load.deadline_s - time.monotonic()
            if left_s < (1 - LATE_SHARE) * load.deadline_s:
                continue  # too late: to send it would say nothing, and make the next ones late
            self._outcomes.num_in_time += 1
            task = asyncio.create_task(self._ask(number % len(self._messages), due, left_s, next(turn)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.gather(*self._tasks)

    async def _ask(self, image: int, due_s: float, left_s: float, method: Any) -> None:
        sent_s = time.monotonic()
        try:
            reply: bytes = await method(self._messages[image], timeout=left_s)
        except grpc.RpcError as error:
            self._count_failure(error, time.monotonic() - sent_s, left_s)
            return
        taken_s = time.monotonic() - min(due_s, sent_s)  # timers may be a millisecond early
        if self._server.check(reply, (image,)).fault:
            self._outcomes.num_wrong += 1
        elif taken_s > self._load.deadline_s:
            self._outcomes.num_late += 1
        else:
            self._outcomes.num_right += 1
            self._outcomes.latency_us.append(taken_s * 1e6)

    def _count_failure(self, error: Any, taken_s: float, left_s: float) -> None:
        """A server that says DEADLINE_EXCEEDED before the deadline refuses; gRPC itself says it afterwards."""
        status = error.code().name
        if status in REFUSALS or (status == "DEADLINE_EXCEEDED" and taken_s < left_s):
            self._outcomes.num_refused += 1
            self._outcomes.refusal_us.append(taken_s * 1e6)
        elif status == "DEADLINE_EXCEEDED":
            self._outcomes.num_expired += 1
        else:
            self._outcomes.num_lost += 1
