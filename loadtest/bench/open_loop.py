"""Load that does not wait for answers: requests are due at their times, each with a deadline, whatever the server does.

`offer` is the interface that the bench relies on; `Outcomes` tells if less was sent in time than was asked for.
"""

import math
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from multiprocessing.synchronize import Barrier

import grpc
import numpy as np
from numpy.typing import NDArray

from loadtest.load.load_clients import BEST, EXPIRED, OK, Answers, Integers, LoadClient, open_client
from loadtest.load.protocols import ServerProtocol

CONNECT_TIMEOUT_S = 60.0  # until every process has made its connections
WARM_UP_TIMEOUT_S = 10.0
STREAMS_PER_CONNECTION = 100  # a server may bound them: ours takes 128
START_S = 0.02  # from the last process's connecting to the first request
HANDED_OVER = 1000  # requests a call of the client
TAKE_S = 0.1
REFUSALS = (EXPIRED, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], grpc.StatusCode.UNAVAILABLE.value[0])
LATE_SHARE = 0.1  # of the deadline: a request sent later than that was the generator's failure
ENOUGH_SHARE = 0.95  # of the requests, sent in time, make a run count


@dataclass(frozen=True, kw_only=True)
class OpenLoad:
    """Requests as a Poisson process; each is to be answered within the deadline, from when it was due."""

    rate: float
    deadline_s: float
    duration_s: float
    images_per_request: int = 1
    seed: int = 0
    client: str = BEST


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
    """Offers the load and returns what became of it; requests are of the reference's `num_images` images, in turn."""
    num_processes = num_processes or max(1, (os.cpu_count() or 1) // 2)  # more would take the server's cores
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
    """Connects, sends what is due once all processes are connected, and counts when the last answer is there."""
    images = _images_of_messages(num_images, load.images_per_request)
    messages = [server.request(row) for row in images.tolist()]
    num_connections = max(2, math.ceil(load.rate * load.deadline_s / STREAMS_PER_CONNECTION))
    client = open_client(load.client, server.target, server.method, num_connections)
    try:
        client.submit(np.arange(num_connections), messages[:1] * num_connections, WARM_UP_TIMEOUT_S)
        _taken(client, num_connections)
        _barriers[0].wait(CONNECT_TIMEOUT_S)
        due_ns = _schedule_ns(load)
        sender = threading.Thread(target=_send_all, args=(client, messages, due_ns, load.deadline_s))
        sender.start()
        answers = _taken(client, len(due_ns))
        sender.join()
    finally:
        client.close()
    outcomes = Outcomes(num_due=len(due_ns))
    for part in answers:
        _count(outcomes, part, server, due_ns[part.numbers], images[part.numbers % len(images)], load)
    return outcomes


def _images_of_messages(num_images: int, images_per_request: int) -> NDArray[np.intp]:
    """Which images each message has, (messages, images of each): every image in one of them, in the last some again."""
    num_messages = math.ceil(num_images / images_per_request)
    return np.resize(np.arange(num_images), (num_messages, images_per_request))


def _schedule_ns(load: OpenLoad) -> Integers:
    """When each is due, on the monotonic clock."""
    num_requests = max(1, round(load.rate * load.duration_s))
    gaps_s = np.random.default_rng(load.seed).exponential(1 / load.rate, num_requests)
    return time.monotonic_ns() + (1e9 * (START_S + np.cumsum(gaps_s))).astype(np.int64)


def _send_all(client: LoadClient, messages: Sequence[bytes], due_ns: Integers, deadline_s: float) -> None:
    for first in range(0, len(due_ns), HANDED_OVER):
        due = due_ns[first : first + HANDED_OVER]
        numbers = np.arange(first, first + len(due))
        chosen = [messages[number % len(messages)] for number in numbers.tolist()]
        client.submit(numbers, chosen, deadline_s, due, LATE_SHARE * deadline_s)


def _taken(client: LoadClient, num_answers: int) -> list[Answers]:
    """Waits until so many calls have an end."""
    taken: list[Answers] = []
    while num_answers > 0:
        taken.append(client.take(TAKE_S))
        num_answers -= len(taken[-1].numbers)
    return taken


def _count(
    outcomes: Outcomes,
    answers: Answers,
    server: ServerProtocol,
    due_ns: Integers,
    images: NDArray[np.intp],
    load: OpenLoad,
) -> None:
    """Counts those that were sent in time; `images` has a row for each answer."""
    is_in_time = answers.sent_ns - due_ns < round(LATE_SHARE * load.deadline_s * 1e9)
    is_ok = is_in_time & (answers.codes == OK)
    is_right = is_ok & server.found_right(answers.replies, answers.ends, images).is_right
    for position in np.flatnonzero(is_ok & ~is_right).tolist():
        is_right[position] = not server.check(answers.reply(position), images[position].tolist()).fault
    is_before = answers.done_ns - due_ns <= load.deadline_s * 1e9
    # A server that says DEADLINE_EXCEEDED before the deadline refuses; the client itself says it afterwards.
    is_expired = is_in_time & (answers.codes == EXPIRED) & ~is_before
    is_refused = is_in_time & ~is_expired & np.isin(answers.codes, REFUSALS)
    outcomes.num_in_time += int(is_in_time.sum())
    outcomes.num_right += int((is_right & is_before).sum())
    outcomes.num_late += int((is_right & ~is_before).sum())
    outcomes.num_wrong += int((is_ok & ~is_right).sum())
    outcomes.num_refused += int(is_refused.sum())
    outcomes.num_expired += int(is_expired.sum())
    outcomes.num_lost += int((is_in_time & ~is_ok & ~is_refused & ~is_expired).sum())
    outcomes.latency_us += ((answers.done_ns - due_ns)[is_right & is_before] / 1e3).tolist()
    outcomes.refusal_us += ((answers.done_ns - answers.sent_ns)[is_refused] / 1e3).tolist()
