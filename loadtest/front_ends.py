"""The server's front ends: which can be started here, what each does not promise to withstand, how it is tried."""

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atelier.errors import UsageError
from atelier.files import save_json
from atelier.machine import machine_facts
from serving.server import NATIVE as NATIVE_MODULE

NATIVE, GRPCIO = "native", "grpcio"
FRONT_ENDS = (NATIVE, GRPCIO)
PACKAGES = ("grpcio", "onnxruntime", "numpy")  # on record with a trial

# Why grpcio does not withstand an attack, at its whole size.
_FLOODED = "grpcio reads and answers all that a connection sends, before and between the calls of others"
_STREAMED = "grpcio makes a call of every stream, keeps its memory, and cancels calls of others in the meantime"
_HELD = "grpcio has no limit to the streams and answers that all connections together may leave unfinished"
_WHOLE = "grpcio takes a message in whole, and gives its memory back late"
_CROWDED = "grpcio's one thread reads and refuses what a hundred callers send, 1,500 requests a second, before others'"

# Attacks that a front end does not withstand, each with the reason; what is not named, it promises.
NOT_PROMISED: dict[str, dict[str, str]] = {
    NATIVE: {},
    GRPCIO: {
        "window-zero-80": _HELD,
        "window-zero-500": _HELD,
        "ping-flood": _FLOODED,
        "settings-flood": _FLOODED,
        "frame-flood": _FLOODED,
        "continuation-flood": _FLOODED,
        "rapid-resets": _STREAMED,
        "resets-after-data": _STREAMED,
        "unknown-paths": _STREAMED,
        "headers-only": _HELD,
        "slow-bodies": _HELD,
        "not-utf8": "a path that is not UTF-8 ends the loop in which grpcio accepts calls",
        "hpack-bombs": "grpcio decodes a block of headers in whole before it counts them",
        "malformed-megabytes": _WHOLE,
        "gzip-bombs": _WHOLE,
        "picture-bombs": _CROWDED,
        "picture-heaps": _CROWDED,
        "reset-pictures": _STREAMED,
    },
}


@dataclass(frozen=True)
class End:
    """Promise of a front end while its processes are ended: no answer is wrong, no request is lost, and ..."""

    excused: tuple[str, ...] = ()  # ... calls fail with no status but these
    longest_s: float | None = None  # ... and service is back within this; None promises nothing


SIGTERM, KILL = "SIGTERM", "kill -9"
ENDS: dict[str, dict[str, End]] = {
    NATIVE: {SIGTERM: End(), KILL: End(longest_s=0.5)},
    GRPCIO: {
        # So grpcio answers a call that it has read when its port closes. It has not run, and atelier.client repeats it.
        SIGTERM: End(excused=("CANCELLED",)),
        # Its port is closed until the next process serves.
        KILL: End(excused=("UNAVAILABLE",), longest_s=1.5),
    },
}

# Why a front end does not promise what `loadtest.soak` holds a server to; what is not named, does.
NOT_SOAKED = {
    GRPCIO: "its port is closed until the process that replaces another serves, so calls need more than three attempts"
}


def available_front_ends() -> tuple[str, ...]:
    """Returns the front ends that this installation can start."""
    return FRONT_ENDS if importlib.util.find_spec(NATIVE_MODULE) is not None else (GRPCIO,)


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """Settings that `make attack`, `make restarts` and `make soak` have in common."""

    repository: Path = Path("artifacts/models")
    """The model repository to serve."""

    front_end: Literal["auto", "native", "grpcio"] = "auto"
    """Front end of the server that is started."""

    scale: float = 1.0
    """Share of the full size, in number and time: 0.1 for a short trial, 10 for a long one."""

    report_dir: Path | None = None
    """Also write all figures there, as attack.json, restarts.json or soak.json, and journals of the requests."""

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise UsageError("BAD_OPTIONS", f"--scale is {self.scale}", "give a share above 0; 1 is the full size")

    def number(self, whole: int) -> int:
        """Returns this trial's share, at least one."""
        return max(1, round(whole * self.scale))

    def save(self, name: str, **figures: object) -> None:
        """Writes the figures of a trial, with the machine's, if a place was named."""
        if self.report_dir:
            save_json(self.report_dir / name, {"machine": machine_facts(PACKAGES), **figures})
