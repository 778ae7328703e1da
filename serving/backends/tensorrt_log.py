"""Keeps what TensorRT says while it works, to be part of an error: its calls return only None or False."""

import functools
from typing import Any


@functools.cache
def log_of(trt: Any) -> Any:
    """Returns the logger of that module, TensorRT or TensorRT for RTX; it has one per process and ignores any other.

    `take()` returns the warnings and errors since the last call, as one line.
    """

    class Log(trt.ILogger):  # type: ignore[misc] # the module is only known here
        def __init__(self) -> None:
            super().__init__()
            self._lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self._lines.append(" ".join(message.split()))

        def take(self) -> str:
            lines, self._lines = self._lines, []
            return "; ".join(lines[-8:])

    return Log()
