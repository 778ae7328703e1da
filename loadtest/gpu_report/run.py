"""Measures every claim about GPUs on the machine at hand, in at most ten minutes: `make gpu-report`.

Each step is a program of its own, run as a user would run it, so that a step that fails or crashes is reported and
takes no other one with it. What a step lacks (a library, a GPU, time) it says; nothing is estimated. The report is
written anew after every step: what was measured stays, whatever ends the run. Without an NVIDIA GPU it is a rehearsal:
the same steps on the CPU, shortened, and marked as such.
"""

import datetime
import itertools
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from atelier.files import save_json, write_atomically
from atelier.machine import gpu_facts
from atelier.settings import parse_settings
from loadtest.front_ends import available_front_ends
from loadtest.gpu_report.pages import Document, markdown_from, plot_of
from loadtest.gpu_report.programs import MODEL_OF, Plan, StepFailedError, export, latency, look_at_host, serve, train

RESERVED_S = 20.0  # for the plot: matplotlib's first import looks for fonts
# The portable engine, whatever it was built for, and one built for this GPU: does TensorRT for RTX take them here?
RTX = ("tensorrt-rtx", "tensorrt-rtx-here")

Work = Callable[[], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The command line."""

    report_dir: Path = Path("reports")
    """Where gpu-<name>-<date>.md, .json and .png are written."""

    time_limit_s: float = 600.0
    """Most seconds that everything may take; 20 of them are kept for the plot."""


@dataclass(kw_only=True)
class Step:
    """One step's outcome; `result` is what its program printed or wrote."""

    name: str
    status: str = "not run"  # or running, ok, failed, refused (by a proof), absent (a library or device is not there)
    reason: str = ""
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)


def steps_of(plan: Plan) -> list[tuple[str, Work]]:
    """Lists name and work, the most needed first: if time runs out, the last ones are missing."""

    def exported_and_timed(precision: str, *backends: str) -> list[tuple[str, Work]]:
        timed = [(f"latency {backend} {precision}", partial(latency, plan, precision, backend)) for backend in backends]
        return [(f"export {precision}", partial(export, plan, precision)), *timed]

    trained = ("fp32",) if plan.is_rehearsal else ("fp32", "tf32", "bf16")
    first, *others = ("int8",) if plan.is_rehearsal else ("fp16", "tf32", "bf16", "int8")
    return [
        ("host", partial(look_at_host, plan)),
        *((f"train {precision}", partial(train, plan, precision)) for precision in trained),
        ("train modern", partial(train, plan, "fp32", "modern")),
        *exported_and_timed(MODEL_OF, "floor", "torch", "onnxruntime", "tensorrt", *RTX),
        *exported_and_timed(first, "tensorrt", *RTX, "onnxruntime"),
        *((f"serve {front_end}", partial(serve, plan, front_end)) for front_end in available_front_ends()),
        *itertools.chain(*(exported_and_timed(precision, "tensorrt", "onnxruntime") for precision in others)),
        (f"latency torch-compiled {MODEL_OF}", partial(latency, plan, MODEL_OF, "torch-compiled")),
    ]


def run_step(step: Step, work: Work) -> None:
    """Runs a step; whatever happens in it is an outcome."""
    started_s = time.monotonic()
    try:
        step.result, step.status = work(), "ok"
    except StepFailedError as error:
        step.status, step.reason, step.result = error.status, str(error), error.result
    except Exception as error:  # a file that is not there, output that is not what was expected
        step.status, step.reason = "failed", f"{type(error).__name__}: {error}"
    step.seconds = time.monotonic() - started_s
    print(f"{step.name:<34} {step.status:<7} {step.seconds:6.1f} s  {step.reason}".rstrip(), flush=True)


def write(stem: Path, about: Document, steps: list[Step], *, is_plotted: bool = False) -> None:
    """Writes what is known by now as `<stem>.json` and `.md`, each whole or as it was."""
    document = about | {"steps": [asdict(step) for step in steps]}
    save_json(stem.with_suffix(".json"), document)
    figure = plot_of(document) if is_plotted else None
    if figure:
        figure.savefig(stem.with_suffix(".png"), dpi=100)
    write_atomically(stem.with_suffix(".md"), markdown_from(document, stem.name if figure else "").encode())


def new_stem(report_dir: Path, name: str, date: str) -> Path:
    """Returns `gpu-<name>-<date>`, and if the day has one already, `-2`, `-3`: each run leaves the others alone."""
    report_dir.mkdir(parents=True, exist_ok=True)
    stem = f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{date}"
    stems = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return report_dir / next(each for each in stems if not (report_dir / f"{each}.json").exists())


def main(arguments: list[str]) -> int:
    """Runs all steps and writes the report; returns 70 if a step failed or was refused."""
    started_s = time.monotonic()
    settings = parse_settings(Settings, arguments, prog="python -m loadtest.gpu_report", description=__doc__ or "")
    gpu, date = gpu_facts(), datetime.datetime.now(datetime.UTC).date().isoformat()
    is_rehearsal = not gpu
    stem = new_stem(settings.report_dir, "rehearsal" if is_rehearsal else gpu["name"], date)
    about = {"rehearsal": is_rehearsal, "date": date, "time_limit_s": settings.time_limit_s}
    if is_rehearsal:
        print("REHEARSAL: on the CPU and shortened; no figure of it says anything about a GPU")
    print(f"{stem}.json and .md are written anew after every step", flush=True)
    with tempfile.TemporaryDirectory(prefix="atelier-gpu-report-") as directory:
        deadline_s, device = started_s + settings.time_limit_s - RESERVED_S, "cpu" if is_rehearsal else "cuda"
        plan = Plan(device=device, is_rehearsal=is_rehearsal, work_dir=Path(directory), deadline_s=deadline_s)
        works = steps_of(plan)
        steps = [Step(name=name) for name, _ in works]
        for step, (_, work) in zip(steps, works, strict=True):
            step.status = "running"
            write(stem, about, steps)
            run_step(step, work)
        write(stem, about, steps)
    write(stem, about, steps, is_plotted=True)
    return 70 if any(step.status in ("failed", "refused") for step in steps) else 0
