"""One runtime against the truth and beside ONNX Runtime: what it answers, and how fast, on one thread of one core."""

import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atelier.environments import node_modules_with, python_with, size_mb
from atelier.errors import ProgramError
from export.parity import RuntimeParity, compare
from export.parity_inputs import ParityInputs
from export.runtimes.known import Runtime
from export.runtimes.script_process import Session, logits_in, session

SCRIPTS = Path(__file__).absolute().parent / "scripts"
ENVIRONMENTS = Path(".cache") / "runtimes"
BATCH_SIZES = (1, 64)
REPEAT_S = 0.3
Rates = Mapping[int, list[float]]  # by batch size: images/s of each repeat


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What all runtimes of one run are given."""

    models: Mapping[str, bytes]  # by file name
    precision: str
    truth: NDArray[np.float64]  # (N, 10)
    inputs: ParityInputs
    repeats: int
    limit_s: float
    environments: Path = ENVIRONMENTS


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row; `why` is set if there is nothing else to say."""

    runtime: Runtime
    version: str = ""
    parity: RuntimeParity | None = None
    rates: Rates = field(default_factory=dict)
    beside: Rates = field(default_factory=dict)  # ONNX Runtime's, measured in turn with it
    megabytes: float | None = None
    why: str = ""

    def ratios(self, batch_size: int) -> list[float]:
        """Returns how fast it is in ONNX Runtime's measure, of each repeat."""
        pairs = zip(self.rates[batch_size], self.beside[batch_size], strict=True)
        return [ours / theirs for ours, theirs in pairs]


def measured(runtime: Runtime, task: Task, baseline: Session) -> Result:
    """Installs, asks and times one runtime. Whatever goes wrong is the row's reason."""
    try:
        environment = task.environments / (runtime.environment or runtime.opener or runtime.script.partition(".")[0])
        command = command_for(runtime, environment)
        megabytes = size_mb(environment) if runtime.packages else None
        with tempfile.TemporaryDirectory(prefix="atelier-runtime-") as scratch:
            return _result(runtime, command, Path(scratch), task, baseline, megabytes)
    except ProgramError as error:
        return Result(runtime=runtime, why=f"{error.what}: {error.why}" if error.why else error.what)


def _result(
    runtime: Runtime, command: list[str], scratch: Path, task: Task, baseline: Session, megabytes: float | None
) -> Result:
    with opened(runtime, command, scratch, task) as running:
        parity = judged(runtime, logits_in(scratch / "logits.npy", len(task.truth)), task)
        rates, beside = in_turn(running, baseline, task.repeats)
        return Result(
            runtime=runtime,
            version=running.version,
            parity=parity,
            rates=rates,
            beside=beside,
            megabytes=megabytes,
        )


def command_for(runtime: Runtime, environment: Path) -> list[str]:
    """Returns interpreter and script, once its packages are installed. Raises ProgramError if they cannot be."""
    script = [str(SCRIPTS / runtime.script), *filter(None, [runtime.opener])]
    if runtime.script.endswith(".mjs"):
        return ["node", *script, str(node_modules_with(runtime.packages, environment))]
    if not runtime.packages:
        return [sys.executable, *script]
    return [str(python_with(runtime.packages, environment, sees_ours=runtime.sees_ours)), *script]


def opened(runtime: Runtime, command: list[str], scratch: Path, task: Task) -> AbstractContextManager[Session]:
    """Starts the script on copies of model and images, which some converters write over."""
    if runtime.model not in task.models:
        raise ProgramError("RUNTIME", f"the version has no {runtime.model}")
    (scratch / runtime.model).write_bytes(task.models[runtime.model])
    np.save(scratch / "images.npy", task.inputs.images)
    files = [str(scratch / name) for name in (runtime.model, "images.npy", "logits.npy")]
    return session(runtime.title, [*command, *files, str(scratch)], scratch, task.limit_s)


def judged(runtime: Runtime, logits: NDArray[np.float32], task: Task) -> RuntimeParity:
    """Holds (2, N, 10) logits to the gate's rule."""
    precision = "fp32" if runtime.model.endswith(".pt2") else task.precision
    return compare(task.truth, logits, task.inputs, precision, runtime=runtime.title, device="cpu")


def in_turn(running: Session, baseline: Session, repeats: int) -> tuple[Rates, Rates]:
    """Times both on one core, one after the other, so that what else the machine does meets both."""
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    rates: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    beside: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    for each in (running, baseline):
        each.pin(core)
    for size in BATCH_SIZES * repeats:
        rates[size].append(running.images_per_s(size, REPEAT_S))
        beside[size].append(baseline.images_per_s(size, REPEAT_S))
    return rates, beside
