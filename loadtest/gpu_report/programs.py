"""What the GPU report's steps share: where they work, and how they run a program until the time is up."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil

from loadtest.memory import processes_of

LACKING = ("error: NO_ENGINE: ", "error: NO_ARTIFACT: ", "error: NO_MODEL: ", "error: NO_CHECKPOINT: ")
REFUSED = "error: PARITY"  # of the gate, of a server or backend that proves a version here, of a manifest


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run, and where."""

    device: str
    is_rehearsal: bool
    work_dir: Path
    data: tuple[str, ...]
    time_limit_s: float
    deadline_s: float  # on the monotonic clock: when the last program is stopped

    @property
    def checkpoint_dir(self) -> Path:
        """Of the first training, which is exported."""
        return self.work_dir / "checkpoint"

    def models_dir(self, precision: str) -> Path:
        """The repository of a precision's one version."""
        return self.work_dir / precision / "models"

    def version_dir(self, precision: str) -> Path:
        """Where an export publishes that version."""
        return self.models_dir(precision) / "lenet5" / "1"

    def failed_dir(self, precision: str) -> Path:
        """Where an export leaves the reports of a failed gate."""
        return self.work_dir / precision / "parity-failed"

    def is_refused(self, precision: str) -> bool:
        """Says whether the gate refused that precision, in the last try."""
        return self.failed_dir(precision).exists() and not self.version_dir(precision).exists()

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """That latencies are measured at."""
        return (1, 8, 64) if self.is_rehearsal else (1, 8, 64, 256, 1024)


class StepFailedError(Exception):
    """Why, and what was found out even so; `status` is that of the step, and never `ok`."""

    def __init__(self, reason: str, *, status: str = "failed", result: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.result = result or {}


def output_of(plan: Plan, module: str, *arguments: object, limit_s: float = 240.0) -> str:
    """A program's stdout. Raises StepFailedError with its error line, or where there is no time left for it."""
    left_s = min(limit_s, plan.deadline_s - time.monotonic())
    if left_s < 1:
        raise StepFailedError(f"no time left of {plan.time_limit_s:.0f} s", status="not run")
    try:
        code, stdout, stderr = _run([sys.executable, "-m", module, *map(str, arguments)], left_s)
    except subprocess.TimeoutExpired:
        end = "" if left_s == limit_s else f": the {plan.time_limit_s:.0f} s are over"
        raise StepFailedError(f"stopped after {left_s:.0f} s{end}") from None
    if code:
        raise _failure(code, stderr.strip().splitlines() or ["it said nothing"])
    return stdout


def json_of(plan: Plan, module: str, *arguments: object) -> dict[str, Any]:
    """What a program prints in its last line; libraries may say something before. Raises StepFailedError."""
    lines = output_of(plan, module, *arguments).strip().splitlines() or [""]
    try:
        return cast(dict[str, Any], json.loads(lines[-1]))
    except ValueError:
        raise StepFailedError(f"the last line that it printed is no JSON: {lines[-1][:200]!r}") from None


def _run(command: Sequence[str], limit_s: float) -> tuple[int, str, str]:
    """Exit code, stdout and stderr. Where the time is up, or we are stopped, the servers that it started end too."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            stdout, stderr = process.communicate(timeout=limit_s)
        except BaseException:
            _kill(process.pid)
            raise
    return process.returncode, stdout, stderr


def _kill(pid: int) -> None:
    """The program and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
        for process in processes_of(pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _failure(code: int, lines: list[str]) -> StepFailedError:
    """By the error line on stderr, which libraries may add to while the process ends; else by its last line."""
    line = next((line for line in reversed(lines) if line.startswith("error: ")), "")
    # A library, a device, or a file that no earlier step could make here.
    is_absent = code == os.EX_UNAVAILABLE or line.startswith(LACKING)
    status = "refused" if line.startswith(REFUSED) else "absent" if is_absent else "failed"
    return StepFailedError(line.removeprefix("error: ") or f"ended with {code}: {lines[-1]}", status=status)
