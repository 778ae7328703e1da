"""Describes the serving process, as the supervisor knows it."""

import contextlib
import math
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from serving.process import STACKS_SIGNAL

STABLE_S = 5.0  # once it has been ready for so long, what ends it is no fault of its start


@dataclass(eq=False)
class Child:
    """The serving process, and the supervisor's end of the pipe to it."""

    process: BaseProcess
    link: Connection
    ready_s: float = math.inf  # when it said that it was, on the monotonic clock
    failure: str = ""  # why it cannot go on, a word
    has_lost_device: bool = False
    num_silent: int = 0  # seconds of the supervisor's own running in which nothing was heard of it

    @property
    def is_ready(self) -> bool:
        """It serves, or has served."""
        return self.ready_s < math.inf

    def ask_for_stacks(self) -> None:
        """Has the process write its Python stacks to the log, if it can do anything at all."""
        if self.is_ready and self.process.pid is not None:  # before that the signal would end it
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, STACKS_SIGNAL)

    @property
    def exit_code(self) -> int:
        """The exit code of a process that has ended, as a shell reports it."""
        code = self.process.exitcode or 0
        return 128 - code if code < 0 else code

    @property
    def may_fail_again(self) -> bool:
        """It broke by itself, and before it was ready or soon after."""
        is_own_fault = self.has_lost_device or not (self.failure or self.process.exitcode == -signal.SIGKILL)
        return is_own_fault and (not self.is_ready or time.monotonic() - self.ready_s < STABLE_S)
