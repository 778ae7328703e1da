"""An open-loop load from a process of its own, which keeps the journal. A request is sent when it is due.

It is not LoadGen's: what is on trial is how clients come through an end, ours and one that retries UNAVAILABLE, and
both are Python's.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

from atelier.calls import asked_pause_s
from atelier.channel import channel_options
from atelier.client import AsyncClient, ClassifyError
from atelier.errors import ProgramError
from atelier.steps import InLoop
from loadtest.load.protocols import Classify
from loadtest.processes import Child

RIGHT = "right"
DEADLINE_S = 30.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0
START_S = 30.0


@dataclass(kw_only=True, slots=True)
class Entry:
    """One request: entered before it is sent, completed when it ends."""

    number: int
    image: int
    due_s: float  # on the monotonic clock
    retried: int = 0
    ended_s: float | None = None
    outcome: str = ""  # `right`, `WRONG: ...` or the gRPC status that it ended with, `: ...`; empty if it never ended


@dataclass(frozen=True, kw_only=True)
class Account:
    """Account of what became of the requests."""

    sent: int
    right: int
    wrong: int
    failed: dict[str, int]  # by status
    lost: int  # neither answered nor failed
    retried: int  # attempts beyond the first, of all
    longest_s: float

    @property
    def answered(self) -> int:
        """Rightly or not."""
        return self.right + self.wrong


def account(journal: Sequence[Entry]) -> Account:
    """Counts every entry once. Raises ProgramError BAD_JOURNAL if one is missing or there twice."""
    if [entry.number for entry in journal] != list(range(len(journal))):
        raise ProgramError("BAD_JOURNAL", "the numbers of its requests are not 0, 1, 2 ...")
    outcomes = Counter(entry.outcome.partition(":")[0] for entry in journal)
    right, wrong, lost = outcomes.pop(RIGHT, 0), outcomes.pop("WRONG", 0), outcomes.pop("", 0)
    return Account(
        sent=len(journal),
        right=right,
        wrong=wrong,
        failed=dict(outcomes),
        lost=lost,
        retried=sum(entry.retried for entry in journal),
        longest_s=max((entry.ended_s - entry.due_s for entry in journal if entry.ended_s is not None), default=0.0),
    )


def write_journal(path: Path, journal: Sequence[Any]) -> None:
    """Writes one JSON document a line, of each dataclass."""
    path.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in journal))


# Asks about one image, completing the entry.
Ask = Callable[[Entry], Coroutine[Any, Any, None]]
# Connects to the server that a protocol names. It is sent to the process that asks.
Connect = Callable[[Classify], AbstractAsyncContextManager[Ask]]

REQUEST: ContextVar[Entry] = ContextVar("the request that a task is about")


class SteadyLoad:
    """Offers requests at a rate from when it is entered until `ended`."""

    def __init__(self, protocol: Classify, *, client: Connect, rate: float) -> None:
        self._child = Child("the load", _offer, protocol, client, rate)

    def ended(self) -> list[Entry]:
        """Stops sending, waits for what was sent, and returns the journal."""
        self._child.pipe.send("stop")
        journal: list[Entry] = self._child.receive(DEADLINE_S + START_S)
        return journal

    def __enter__(self) -> Self:
        self._child.receive(START_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.end()


def _offer(protocol: Classify, client: Connect, rate: float, pipe: Connection) -> None:
    asyncio.run(_offer_until_told(protocol, client, rate, pipe))


async def _offer_until_told(protocol: Classify, client: Connect, rate: float, pipe: Connection) -> None:
    journal: list[Entry] = []
    num_images = len(protocol.reference.images)
    told = asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    running: set[asyncio.Task[None]] = set()
    async with client(protocol) as ask, asyncio.TaskGroup() as requests:
        pipe.send("started")
        due_s = time.monotonic()
        while not told.done():
            await asyncio.sleep(due_s - time.monotonic())
            entry = Entry(number=len(journal), image=len(journal) % num_images, due_s=due_s)
            journal.append(entry)
            running.add(task := requests.create_task(ask(entry)))
            task.add_done_callback(running.discard)
            due_s += 1 / rate
        if running:
            await asyncio.wait(running, timeout=DEADLINE_S)
        for task in running:
            task.cancel()  # it is lost
    pipe.send(journal)


@asynccontextmanager
async def plain_client(protocol: Classify, *, may_retry: bool) -> AsyncIterator[Ask]:
    """Asks as any gRPC client with a retry policy does: it repeats what is UNAVAILABLE, after a pause, if it may."""
    options = [*channel_options(protocol.target), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(protocol.target, options=options) as channel:
        classify: Any = channel.unary_unary(protocol.method)

        async def ask(entry: Entry) -> None:
            message, pause_s = protocol.request([entry.image]), FIRST_PAUSE_S
            ends_s = time.monotonic() + DEADLINE_S
            while True:
                try:
                    reply = await classify(message, timeout=ends_s - time.monotonic())
                except grpc.aio.AioRpcError as error:
                    asked_s = asked_pause_s(error)
                    wait_s = pause_s if asked_s is None else asked_s
                    is_retryable = may_retry and error.code() is grpc.StatusCode.UNAVAILABLE
                    if not is_retryable or time.monotonic() + wait_s >= ends_s:
                        return _complete(entry, error.code().name)
                    entry.retried += 1
                    pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                    await asyncio.sleep(wait_s)
                else:
                    fault = protocol.check(reply, [entry.image]).fault
                    return _complete(entry, f"WRONG: {fault}" if fault else RIGHT)

        yield ask


class _CountingSteps(InLoop):
    """Steps of a client that count what is repeated."""

    async def sleep(self, pause_s: float) -> None:
        """Waits for the next attempt."""
        REQUEST.get().retried += 1
        await super().sleep(pause_s)


class _CountedClient(AsyncClient):
    """The client that comes with the server; each task asks once, about its REQUEST."""

    _steps = _CountingSteps()


@asynccontextmanager
async def our_client(
    protocol: Classify, *, deadline_s: float = DEADLINE_S, tls: Path | bool = False, token: str = ""
) -> AsyncIterator[Ask]:
    """Asks by the client that comes with the server, which trusts the certificates in `tls`."""
    async with _CountedClient(protocol.target, tls=tls, token=token) as client:

        async def ask(entry: Entry) -> None:
            REQUEST.set(entry)
            try:
                answer = await client.classify(protocol.reference.images[entry.image], timeout_s=deadline_s)
            except ClassifyError as error:
                return _complete(entry, str(error))
            reference = protocol.reference_of(answer.model_version)
            best, row = answer.classifications[0][0], reference.rows[entry.image]
            is_right = len(answer.classifications) == 1 and max(row) - row[best.label] <= 2 * reference.atol
            is_right = is_right and abs(row[best.label] - best.probability) <= reference.atol
            fault = f"WRONG: {best.label} at {best.probability:.6f} by version {answer.model_version}"
            return _complete(entry, RIGHT if is_right else fault)

        yield ask


PLAIN = partial(plain_client, may_retry=True)  # repeats only what is UNAVAILABLE
ONCE = partial(plain_client, may_retry=False)
OURS = our_client


def _complete(entry: Entry, outcome: str) -> None:
    entry.ended_s, entry.outcome = time.monotonic(), outcome
