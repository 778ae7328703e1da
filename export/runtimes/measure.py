"""One runtime against the truth and beside ONNX Runtime: what it answers, and how fast, on one thread of one core."""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
        with opened(runtime, task) as (running, result):
            rates, beside = in_turn(running, baseline, task.repeats)
            return dataclasses.replace(result, rates=rates, beside=beside)
    except ProgramError as error:
        return Result(runtime=runtime, why=f"{error.what}: {error.why}" if error.why else error.what)


@contextmanager
def opened(runtime: Runtime, task: Task) -> Iterator[tuple[Session, Result]]:
    """Starts a runtime, installed if need be, and holds its logits to the gate's rule; it runs until the block ends.

    Raises ProgramError if the version lacks its model, it cannot be installed, or it does not answer.
    """
    if runtime.model not in task.models:
        raise ProgramError("RUNTIME", f"the version has no {runtime.model}")
    environment = task.environments / (runtime.environment or runtime.opener or runtime.script.partition(".")[0])
    command = command_for(runtime, environment)
    megabytes = size_mb(environment) if runtime.packages else None  # before it runs, which adds bytecode
    with tempfile.TemporaryDirectory(prefix="atelier-runtime-") as directory:
        scratch = Path(directory)
        model, images, logits = (scratch / name for name in (runtime.model, "images.npy", "logits.npy"))
        model.write_bytes(task.models[runtime.model])  # copies, which some converters write over
        np.save(images, task.inputs.images)
        command += [str(path) for path in (model, images, logits, scratch)]
        with session(runtime.title, command, scratch, task.limit_s) as running:
            found = logits_in(logits, len(task.truth))  # (2, N, 10)
            precision = "fp32" if runtime.model.endswith(".pt2") else task.precision
            parity = compare(task.truth, found, task.inputs, precision, runtime=runtime.title, device="cpu")
            yield running, Result(runtime=runtime, version=running.version, parity=parity, megabytes=megabytes)


def command_for(runtime: Runtime, environment: Path) -> list[str]:
    """Returns interpreter and script, once its packages are installed. Raises ProgramError if they cannot be."""
    script = [str(SCRIPTS / runtime.script), *filter(None, [runtime.opener])]
    if runtime.script.endswith(".mjs"):
        return ["node", *script, str(node_modules_with(runtime.packages, environment))]
    if not runtime.packages:
        return [sys.executable, *script]
    return [str(python_with(runtime.packages, environment, sees_ours=runtime.sees_ours)), *script]


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
