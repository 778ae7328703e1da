"""Decides, in the supervisor, when the serving process loads a newer version, and which version processes get.

SIGHUP and `--watch-repository` make it look for a version newer than the one served. That is read and verified here,
and tried in a process of its own; then the serving process is told to load it beside what it serves. Only once the
process says that it has swapped does a process that replaces it get the new one too: a runtime that crashes while it
loads a version leads back to the old one. A version that was refused is tried again when one of its files has changed,
at the next SIGHUP, and after a while if the machine may have been the reason.
"""

import math
import os
import time
from multiprocessing.connection import Connection
from typing import Any

from atelier.errors import ProgramError
from atelier.program import say
from serving.config import ServerConfig
from serving.manifest import MANIFEST_NAME, MODEL_NAME, list_versions
from serving.models import ModelVersion, read_version
from serving.trial import Trial

MAX_LOAD_S = 300.0  # then a line says that it hangs
OF_THE_MACHINE = ("LOAD_TIMEOUT", "LOAD_CRASHED")  # perhaps: it was busy, or its memory short

# A version, and the names, times and sizes of its files.
Stamp = tuple[int, list[tuple[str, int, int]]]


class Upgrades:
    """Knows the version that is served, the one before it, and the one that is being loaded."""

    def __init__(self, config: ServerConfig, version: ModelVersion) -> None:
        self.version = version
        self.previous: ModelVersion | None = None
        self._config = config
        self._is_asked = False
        self._tried: Stamp | None = None
        self._again_s = math.inf  # when that is to be tried once more
        self._trial: Trial | None = None
        self._loading: ModelVersion | None = None
        self._load_ends_s = math.inf
        self._uncounted: list[str] = []  # words of refusals that are not on the metrics page yet
        self._next_look_s = time.monotonic() + (config.watch_repository or math.inf)

    def ask(self) -> None:
        """Notes a SIGHUP: the next orders tell what is found. In a start it waits, and several are as one."""
        if self._config.model_version is None:
            self._is_asked = True
        else:
            say(f"SIGHUP: --model-version asked for version {self._config.model_version}: no newer one is looked for")

    def awaited(self) -> list[Connection]:
        """Returns what `orders` is to be called for."""
        return [self._trial.link] if self._trial else []

    def close(self) -> None:
        """Ends what tries a version."""
        if self._trial is not None:
            self._trial.end()
            self._trial = None

    def due_in_s(self) -> float:
        """Returns when `orders` wants to be called next."""
        if self._trial is not None:
            return self._trial.left_s
        next_s = self._next_look_s if self._loading is None else self._load_ends_s
        return max(0.0, next_s - time.monotonic())

    def orders(self) -> list[dict[str, Any]]:
        """Returns what the serving process, which is ready, is to be told."""
        now_s, orders = time.monotonic(), []
        if self._loading is not None and now_s >= self._load_ends_s:
            self._load_ends_s = math.inf
            say(f"warning: {self._loading.name} has been loading for {MAX_LOAD_S:g} s; {self._goes_on}")
        if self._trial is not None:
            orders += self._after_trial(self._trial) if self._trial.is_over() else []
        elif self._loading is None and (self._is_asked or now_s >= self._next_look_s):
            orders += self._look()
        orders += [{"refused": word} for word in self._uncounted]
        self._uncounted.clear()
        return orders

    def conclude(self, why_not: str = "") -> None:
        """Makes the version that was loaded the one that processes get; or says why the process has refused it."""
        loaded, self._loading = self._loading, None
        if loaded is not None and why_not:
            self._say_refused(loaded.manifest.version, why_not)
        elif loaded is not None:
            self.previous, self.version = self.version, loaded
            say(f"serving {self.version.name}; {self.previous.name} stays for calls that ask for it")

    def on_end(self) -> None:
        """Notes that the process has ended: what it was loading is not given to the next."""
        if self._loading is not None:
            self.conclude("LOAD_CRASHED: the serving process ended while it loaded it")
            self._uncounted.append("LOAD_CRASHED")

    def _look(self) -> list[dict[str, Any]]:
        """Has the newest version tried, if it is newer than the one served, and not tried yet; or says why not."""
        is_asked, self._is_asked = self._is_asked, False
        self._next_look_s = time.monotonic() + (self._config.watch_repository or math.inf)
        newest = self._newest()
        if newest is None:
            if is_asked:
                say(f"SIGHUP: there is no newer version; {self._goes_on}")
            return []
        if newest == self._tried and not is_asked and time.monotonic() < self._again_s:
            return []
        self._tried, self._again_s, number = newest, math.inf, newest[0]
        try:
            version = read_version(self._config, number)
        except ProgramError as error:
            return self._refuse(number, error.word, str(error))
        except Exception as error:  # whatever lies in the repository, the server goes on
            return self._refuse(number, "UNREADABLE", f"UNREADABLE: {type(error).__name__}: {error}")
        try:
            self._trial = Trial(version, self._config, is_beside=True)
        except OSError as error:  # the machine or container has no process, memory or file left for it
            self._tried = None
            return self._refuse(number, "NO_PROCESS", f"NO_PROCESS: it cannot be tried now: {error.strerror}")
        return []

    def _after_trial(self, trial: Trial) -> list[dict[str, Any]]:
        """Returns the order to load the version that was tried, or counts it as refused."""
        self._trial = None
        try:
            trial.conclude()
        except ProgramError as error:
            if error.word in OF_THE_MACHINE:
                self._again_s = time.monotonic() + self._config.limits.trial_again_s
            return self._refuse(trial.version.manifest.version, error.word, str(error))
        self._loading, self._load_ends_s = trial.version, time.monotonic() + MAX_LOAD_S
        return [{"load": trial.version.manifest.version, "sha256": trial.version.sha256}]

    def _newest(self) -> Stamp | None:
        """Returns the newest version that has a manifest, which is written last; None unless it is newer than ours."""
        model_dir = self._config.repository / MODEL_NAME
        try:
            newer = [number for number in list_versions(model_dir) if number > self.version.manifest.version]
            for number in reversed(newer):
                files = [(entry.name, entry.stat()) for entry in os.scandir(model_dir / str(number))]
                if any(name == MANIFEST_NAME for name, _ in files):
                    return number, sorted((name, found.st_mtime_ns, found.st_size) for name, found in files)
        except OSError:  # it is being moved
            pass
        return None

    def _refuse(self, number: int, word: str, why: str) -> list[dict[str, Any]]:
        self._say_refused(number, why)
        return [{"refused": word}]

    def _say_refused(self, number: int, why: str) -> None:
        say(f"warning: version {number} is refused: {' '.join(why.split())}; {self._goes_on}")

    @property
    def _goes_on(self) -> str:
        return f"{self.version.name} serves on"
