"""An event loop in virtual time: nobody sleeps, and where nothing is left to do now, it is at once later."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

from tests.serving.simulation.rules import Broken, ensure

BEGIN_S = 1000.0
TURN_S = 1e-9  # of the loop: or a timer that finds itself a rounding error too early would try again for ever
MAX_TURNS = 10_000  # for what is due at one time


class Elsewhere(Protocol):
    """Runs apart from the loop, and may be ahead of its time."""

    ahead_s: float

    def call_back(self, callback: Callable[..., object], arguments: tuple[Any, ...]) -> asyncio.Handle:
        """Has the loop call this."""
        ...


class VirtualLoop(asyncio.BaseEventLoop):
    """Calls `when_still` whenever all that is due has run."""

    def __init__(self, when_still: Callable[[], None]) -> None:
        super().__init__()
        self.now_s = BEGIN_S
        self.elsewhere: Elsewhere | None = None  # what runs at the moment, if it is not the loop's own
        self._when_still = when_still
        self._num_turns = 0
        self._selector = self  # asyncio's way to wait

    def time(self) -> float:
        """Returns what timers go by."""
        return self.now_s

    def clock(self) -> float:
        """Returns what whoever runs at the moment takes for now."""
        return self.now_s if self.elsewhere is None else self.now_s + self.elsewhere.ahead_s

    def select(self, timeout: float | None) -> list[object]:
        """Waits, as asyncio believes. Raises Broken if nothing will ever happen again."""
        if timeout is None:
            raise Broken("nothing is due, and somebody waits")
        self._num_turns += 1
        if timeout > 0:
            self._when_still()
            self._num_turns = 0
        ensure(self._num_turns < MAX_TURNS, "time stands still")
        self.now_s += max(timeout, TURN_S)
        return []

    def call_soon_threadsafe(  # type: ignore[override] # asyncio's binds the arguments' types
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Leaves to the thread when it is heard."""
        assert self.elsewhere is not None and context is None
        return self.elsewhere.call_back(callback, args)

    def _process_events(self, events: list[object]) -> None:
        assert not events

    def _write_to_self(self) -> None:
        pass
