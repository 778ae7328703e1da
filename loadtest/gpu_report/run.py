"""`make gpu-report`: every claim about GPUs, measured on the machine at hand, in at most ten minutes.

Each step is a program of its own, run as a user would run it, so that a step that fails or crashes is reported and
takes no other one with it. What a step lacks (a library, a GPU, time) it says; nothing is estimated. The report is
written anew after every step: what was measured stays, whatever ends the run. Without an NVIDIA GPU it is a rehearsal:
the same steps on the CPU, shortened, and marked as such.
"""

import argparse
import datetime
import itertools
import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from atelier.errors import ConfigurationError, UsageError
from atelier.files import write_atomically
from atelier.machine import gpu_facts
from loadtest.front_ends import available_front_ends
from loadtest.gpu_report.pages import Document, markdown_from
from loadtest.gpu_report.plot import save_plot
from loadtest.gpu_report.programs import Plan, StepFailedError
from loadtest.gpu_report.steps import (
    MODEL_OF,
    export,
    latency,
    look_at_host,
    serve,
    train,
    training_floor,
)

TIME_LIMIT_S = 600.0
RESERVED_S = 20.0  # for the plot: matplotlib's first import, which looks for fonts, takes 2 s on a small machine

# TensorRT for RTX on this GPU: the portable engine, whatever it was built for, and one built for this GPU. Whether that
# can be, and if not what the library says, is what is asked.
RTX = ("tensorrt-rtx", "tensorrt-rtx-here")

Work = Callable[[], dict[str, Any]]


@dataclass(kw_only=True)
class Step:
    """One step's outcome; `result` is what its program printed or wrote."""

    name: str
    status: str = "not run"  # or running, ok, failed, refused (by a proof), absent (a library or device is not there)
    reason: str = ""
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)


def steps_of(plan: Plan) -> list[tuple[str, Work]]:
    """Name and work, the most needed first: where time runs out, the last ones are missing."""
    trained = ("fp32",) if plan.is_rehearsal else ("fp32", "tf32", "bf16")
    first, *others = ("int8",) if plan.is_rehearsal else ("fp16", "tf32", "bf16", "int8")
    return [
        ("host", partial(look_at_host, plan)),
        ("floor of training", partial(training_floor, plan)),
        *((f"train {precision}", partial(train, plan, precision)) for precision in trained),
        ("train modern", partial(train, plan, "fp32", "modern")),
        *exported_and_timed(plan, MODEL_OF, ("floor", "torch", "onnxruntime", "tensorrt", *RTX)),
        *exported_and_timed(plan, first, ("tensorrt", *RTX, "onnxruntime")),
        *((f"serve {front_end}", partial(serve, plan, front_end)) for front_end in available_front_ends()),
        *(step for precision in others for step in exported_and_timed(plan, precision)),
        (f"latency torch-compiled {MODEL_OF}", partial(latency, plan, MODEL_OF, "torch-compiled")),
    ]


def exported_and_timed(
    plan: Plan, precision: str, backends: tuple[str, ...] = ("tensorrt", "onnxruntime")
) -> list[tuple[str, Work]]:
    """The steps of one precision."""
    timed = [(f"latency {backend} {precision}", partial(latency, plan, precision, backend)) for backend in backends]
    return [(f"export {precision}", partial(export, plan, precision)), *timed]


def run_step(step: Step, work: Work) -> None:
    """Whatever happens in it, it is an outcome."""
    started_s = time.monotonic()
    try:
        step.result, step.status = work(), "ok"
    except StepFailedError as error:
        step.status, step.reason, step.result = error.status, str(error), error.result
    except Exception as error:  # a file that is not there, output that is not what was expected
        step.status, step.reason = "failed", f"{type(error).__name__}: {error}"
    step.seconds = time.monotonic() - started_s
    print(f"{step.name:<34} {step.status:<7} {step.seconds:6.1f} s  {step.reason}".rstrip(), flush=True)


def run_steps(works: list[tuple[str, Work]], report: Callable[[list[Step]], None]) -> list[Step]:
    """All of them, in order; `report` is called before each and after the last."""
    steps = [Step(name=name) for name, _ in works]
    for step, (_, work) in zip(steps, works, strict=True):
        step.status = "running"
        report(steps)
        run_step(step, work)
    report(steps)
    return steps


# --- The report -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Report:
    """`<stem>.json` and `.md`, and in the end `.png`."""

    stem: Path
    date: str
    is_rehearsal: bool
    time_limit_s: float

    def write(self, steps: list[Step]) -> None:
        """What is known by now, each file whole or as it was."""
        document = self._document(steps)
        write_atomically(self.stem.with_suffix(".json"), (json.dumps(document, indent=1) + "\n").encode())
        write_atomically(self.stem.with_suffix(".md"), markdown_from(document).encode())

    def plot(self, steps: list[Step]) -> bool:
        """Whether there was something to draw; the page then shows it."""
        document = self._document(steps)
        if not save_plot(document, self.stem.with_suffix(".png")):
            return False
        write_atomically(self.stem.with_suffix(".md"), markdown_from(document, self.stem.name).encode())
        return True

    def _document(self, steps: list[Step]) -> Document:
        about = {"rehearsal": self.is_rehearsal, "date": self.date, "time_limit_s": self.time_limit_s}
        return about | {"steps": [asdict(step) for step in steps]}


def new_report(reports_dir: Path, name: str, is_rehearsal: bool, time_limit_s: float) -> Report:
    """`gpu-<name>-<date>`, and where the day has one already, `-2`, `-3`: a run that is killed takes none with it."""
    reports_dir.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    stem = f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{date}"
    stems = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    free = next(each for each in stems if not (reports_dir / f"{each}.json").exists())
    return Report(stem=reports_dir / free, date=date, is_rehearsal=is_rehearsal, time_limit_s=time_limit_s)


def main(arguments: list[str]) -> int:
    """Runs all steps and writes the report; 70 if a step failed or was refused."""
    started_s = time.monotonic()
    options = options_from(arguments)
    gpu = gpu_facts()
    is_rehearsal = options.rehearse or not gpu
    if options.unverified_data and not is_rehearsal:
        raise ConfigurationError("BAD_OPTIONS", "--unverified-data is for rehearsals", "leave it out")
    data: tuple[str, ...] = ("--data-dir", str(options.data_dir)) if options.data_dir else ()
    data += ("--unverified-data",) if options.unverified_data else ()
    report = new_report(
        options.reports_dir, "rehearsal" if is_rehearsal else gpu["name"], is_rehearsal, options.time_limit_s
    )
    if is_rehearsal:
        print("REHEARSAL: on the CPU and shortened; no figure of it says anything about a GPU")
    print(f"{report.stem}.json and .md are written anew after every step", flush=True)
    with tempfile.TemporaryDirectory(prefix="atelier-gpu-report-") as directory:
        plan = Plan(
            device="cpu" if is_rehearsal else "cuda",
            is_rehearsal=is_rehearsal,
            work_dir=Path(directory),
            data=data,
            time_limit_s=options.time_limit_s,
            deadline_s=started_s + options.time_limit_s - RESERVED_S,
        )
        steps = run_steps(steps_of(plan), report.write)
    print(f"\nwritten: {report.stem}.json, .md{', .png' if report.plot(steps) else ''}")
    return 70 if any(step.status in ("failed", "refused") for step in steps) else 0


def options_from(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line. Raises UsageError where it leaves no time for any step."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.gpu_report", description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--reports-dir", type=Path, default=Path("reports"), help="(%(default)s)")
    add("--time-limit-s", type=float, default=TIME_LIMIT_S, metavar="S", help="of everything (%(default)s)")
    add("--rehearse", action="store_true", help="on the CPU and shortened, even where there is a GPU")
    add("--data-dir", type=Path, help="where Fashion-MNIST lies")
    add("--unverified-data", action="store_true", help="for tests: any IDX files")
    add("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if not options.time_limit_s > RESERVED_S:
        cure = f"it must be above {RESERVED_S:g}, which are kept for the plot"
        raise UsageError("BAD_OPTIONS", f"--time-limit-s is {options.time_limit_s:g}", cure)
    return options
