"""Loads newer versions beside the one that is served, in the serving process.

A thread of its own reads the version, holds its files to the digests, opens it on the backend and device of the present
one and proves it on its probes. The front end, which goes on serving, warms it up and then swaps.
"""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from atelier.errors import BadDataError, ProgramError
from serving.models import ModelVersion, ServedModel, read_version
from serving.process import Order, Process

logger = logging.getLogger(__name__)


class Front(Protocol):
    """Takes versions and serves them: a front end, as the loader's thread calls it."""

    @property
    def model(self) -> ServedModel:
        """The model that is served."""
        ...

    def swap(self, model: ServedModel) -> None:
        """Warms it up, serves it from now on, and keeps the present one for calls that ask for it."""
        ...

    def keep(self, model: ServedModel) -> None:
        """Warms it up, and serves it to calls that ask for it: the version before the present one."""
        ...

    def count_refused(self, word: str) -> None:
        """Counts a version that was refused."""
        ...


class Loader:
    """Carries out the supervisor's orders about versions, one after the other."""

    def __init__(self, process: Process, front: Front) -> None:
        """Also loads the version before the present one, if this process replaces one that had it."""
        self._process, self._front = process, front
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        # Left behind at the end: a runtime may hang in it.
        threading.Thread(target=self._run, name="versions", daemon=True).start()
        if process.previous is not None:
            previous = process.previous
            self._work.put(lambda: self._keep(previous))

    def carry_out(self, order: Order) -> None:
        """Begins to load the version that the order names, or counts the one that was refused; returns at once."""
        if order.load:
            self._work.put(lambda: self._swap(order))
        elif order.refused:
            self._front.count_refused(order.refused)

    def _run(self) -> None:
        while True:
            self._work.get()()

    def _swap(self, order: Order) -> None:
        try:
            version = read_version(self._process.config, order.load)
            if version.sha256 != order.sha256:
                raise BadDataError("HASH_MISMATCH", f"{version.directory} has just been changed", "publish it whole")
            self._hand_over(version, self._front.swap)
        except Exception as error:
            failure = self._failure_from(error, order.load)
            self._front.count_refused(failure.word)
            self._process.tell_refused(str(failure))
        else:
            self._process.tell_swapped()

    def _keep(self, version: ModelVersion) -> None:
        try:
            self._hand_over(version, self._front.keep)
        except Exception:
            logger.exception("%s, the version before the present one, could not be loaded again", version.name)

    def _hand_over(self, version: ModelVersion, take: Callable[[ServedModel], None]) -> None:
        model = version.open_beside(self._front.model, self._process.config)
        try:
            take(model)
        except BaseException:
            model.backend.close()
            raise

    def _failure_from(self, error: Exception, number: int) -> ProgramError:
        if isinstance(error, ProgramError):
            return error
        logger.error("version %d could not be loaded", number, exc_info=error)
        return ProgramError("LOAD_FAILED", f"{type(error).__name__} while it was loaded", "see the server's log")
