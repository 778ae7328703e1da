"""Ends of a server under load: SIGTERM and a new start, or SIGKILL to the process that serves."""

import bisect
import contextlib
import math
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import psutil

from loadtest.attack.http2 import Connection, message
from loadtest.front_ends import KILL, SIGTERM, End
from loadtest.load.protocols import Classify, Reference, ServerProtocol
from loadtest.processes import serving_process
from loadtest.restarts.steady_load import OURS, PLAIN, Account, Connect, Entry, SteadyLoad, account
from loadtest.server_process import ServerProcess, comes_true, free_port

BETWEEN_S = (0.4, 0.8)
STOP_S = 60.0
LONGEST_BACK_S = 60.0  # then a kill is given up
ATTEMPT_S = 1.0  # for one connection
PAUSE_S = 0.002
MESSAGE_PREFIX = 5

# Starts a server with the flags that it is given, beside those that it knows: partial(server_process, module, ...).
Starter = Callable[..., AbstractContextManager[ServerProcess]]


@dataclass(frozen=True, kw_only=True)
class Cycles:
    """Outcome of one kind of end, done many times."""

    name: str
    journal: list[Entry]
    took_s: list[float]  # from each signal: until the next server was ready, or until service was back
    ended_s: list[float] = field(default_factory=list)  # from each SIGTERM until the process had ended
    exit_codes: list[int]
    answered: int | None  # by the servers' own count; None if one did not say
    spans: list[tuple[float, float]] = field(default_factory=list)  # when something was done to it, on the clock
    others: list[str] = field(default_factory=list)  # faults that the journal does not show

    @property
    def account(self) -> Account:
        """Account of the requests."""
        return account(self.journal)

    def p99_ms(self, *, inside: bool) -> float:
        """Returns the 99th percentile of latency of the requests that were due inside of `spans`, or outside."""
        latencies = [
            entry.ended_s - entry.due_s
            for entry in self.journal
            if entry.ended_s is not None and self._is_in_span(entry.due_s) == inside
        ]
        return statistics.quantiles(latencies, n=100)[98] * 1e3 if len(latencies) > 1 else 0.0

    def _is_in_span(self, due_s: float) -> bool:
        index = bisect.bisect(self.spans, (due_s, math.inf)) - 1
        return index >= 0 and due_s <= self.spans[index][1]

    def faults(self, promise: End) -> list[str]:
        """Lists what is not as it was promised."""
        longest_s = promise.longest_s
        found, faults = self.account, [*self.others]
        faults += [f"{found.wrong} wrong answers"] if found.wrong else []
        faults += [f"{found.lost} requests lost"] if found.lost else []
        failed = {status: count for status, count in found.failed.items() if status not in promise.excused}
        faults += [f"{count} calls ended as {status}" for status, count in failed.items()]
        if bad := [code for code in self.exit_codes if code]:
            faults.append(f"{len(bad)} servers ended with exit codes {sorted(set(bad))}")
        if longest_s is not None and (slow := [seconds for seconds in self.took_s if seconds > longest_s]):
            faults.append(f"{len(slow)} of {len(self.took_s)} took more than {longest_s:g} s, up to {max(slow):.2f}")
        if self.answered is not None and self.answered != found.answered:
            faults.append(f"the servers answered {self.answered} requests, and {found.answered} answers came")
        return faults


def restart(
    start: Starter,
    reference: Reference,
    *,
    number: int,
    rate: float,
    client: Connect = PLAIN,
    between_s: tuple[float, float] = BETWEEN_S,
) -> Cycles:
    """Ends a server with SIGTERM and starts the next on its port, under a client that retries only UNAVAILABLE.

    `client` may be OURS or ONCE; `between_s` has the least and the most of what is between two restarts.
    """
    port, pause = free_port(), random.Random(number)  # noqa: S311 - the same pauses each time
    outputs, exit_codes = [], []
    took_s: list[float] = []
    ended_s: list[float] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(start("--port", str(port)))
        protocol = Classify(target=server.target, reference=reference)
        load = stack.enter_context(SteadyLoad(protocol, client=client, rate=rate))
        for _ in range(number):
            # For as long as the last start took, at least: else what came meanwhile is never caught up with.
            time.sleep(max([pause.uniform(*between_s), *took_s[-1:]]))
            began_s = time.monotonic()
            exit_codes.append(server.stop(timeout_s=STOP_S))
            ended_s.append(time.monotonic() - began_s)
            outputs.append(server)
            server = stack.enter_context(start("--port", str(port)))
            took_s.append(time.monotonic() - began_s)
        time.sleep(BETWEEN_S[0])
        journal = load.ended()
        exit_codes.append(server.stop(timeout_s=STOP_S))
    counts = [each.num_answered for each in [*outputs, server]]
    answered = None if None in counts else sum(count or 0 for count in counts)
    return Cycles(
        name=SIGTERM, journal=journal, took_s=took_s, ended_s=ended_s, exit_codes=exit_codes, answered=answered
    )


def kill(start: Starter, reference: Reference, *, number: int, rate: float) -> Cycles:
    """Kills the process that serves, over and over, under the client that comes with the server."""
    port, pause = free_port(), random.Random(number)  # noqa: S311 - the same pauses each time
    took_s = []
    protocol = Classify(target=f"127.0.0.1:{port}", reference=reference)
    with start("--port", str(port)) as server, SteadyLoad(protocol, client=OURS, rate=rate) as load:
        for _ in range(number):
            time.sleep(pause.uniform(*BETWEEN_S))
            victim = serving_process(server.process.pid)
            victim.kill()
            with contextlib.suppress(psutil.Error):
                victim.wait(5)  # until then it might answer
            took_s.append(seconds_until_answered(("127.0.0.1", port), protocol, LONGEST_BACK_S))
        time.sleep(BETWEEN_S[0])
        journal = load.ended()
        exit_code = server.stop(timeout_s=STOP_S)
    return Cycles(name=KILL, journal=journal, took_s=took_s, exit_codes=[exit_code], answered=None)


def seconds_until_answered(address: tuple[str, int], protocol: ServerProtocol, limit_s: float) -> float:
    """Returns how long it took until an answer came, right or not; `limit_s` or more if none did."""
    began_s = time.monotonic()
    comes_true(lambda: _is_answered(address, protocol), limit_s, PAUSE_S)
    return time.monotonic() - began_s


def _is_answered(address: tuple[str, int], protocol: ServerProtocol) -> bool:
    try:
        with Connection(address) as connection:
            until_s = time.monotonic() + ATTEMPT_S
            connection.wait_for(connection.ask(message(protocol.request([0])), until_s), until_s)
            reply = connection.answered[MESSAGE_PREFIX:]
            return bool(reply) and not protocol.check(reply, [0]).fault
    except OSError:
        return False
