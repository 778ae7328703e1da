"""`make gpu-report`: every claim about GPUs, measured on the machine at hand, in at most ten minutes.

Each step is a program of its own, run as a user would run it, so that a step that fails or crashes is reported and
takes no other one with it. What a step lacks (a library, a GPU, time) it says; nothing is estimated. Without an NVIDIA
GPU it is a rehearsal: the same steps on the CPU, shortened, and marked as such.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from loadtest.gpu_report_pages import markdown_from
from loadtest.gpu_report_plot import save_plot
from serving.errors import ConfigurationError, run_program

TIME_LIMIT_S = 600.0
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "polygraphy", "cuda-bindings", "numpy")
LACKING = ("error: NO_ENGINE: ", "error: NO_ARTIFACT: ", "error: NO_MODEL: ")
MODEL_OF = "fp32"  # the version that is served and holds the program


@dataclass(kw_only=True)
class Step:
    """One step's outcome; `result` is what its program printed or wrote."""

    name: str
    status: str = "not run"  # ok, failed, absent (a library or device is not there), not run
    reason: str = ""
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run, and where."""

    device: str
    is_rehearsal: bool
    work_dir: Path
    data: tuple[str, ...]
    deadline_s: float  # on the monotonic clock

    @property
    def checkpoint_dir(self) -> Path:
        """Of the first training, which is exported."""
        return self.work_dir / "checkpoint"

    def models_dir(self, precision: str) -> Path:
        """The repository of a precision's one version."""
        return self.work_dir / f"models-{precision}"

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """That latencies are measured at."""
        return (1, 8, 64) if self.is_rehearsal else (1, 8, 64, 256, 1024)


class StepFailedError(Exception):
    """The program's last words; `is_absent` where it lacks something."""

    def __init__(self, reason: str, *, is_absent: bool = False) -> None:
        super().__init__(reason)
        self.is_absent = is_absent


def program(plan: Plan, module: str, *arguments: object, limit_s: float = 240.0) -> str:
    """Its stdout. Raises StepFailedError with its error line, or where there is no time left for it."""
    left_s = min(limit_s, plan.deadline_s - time.monotonic())
    if left_s < 1:
        raise StepFailedError(f"no time left of {TIME_LIMIT_S:.0f} s", is_absent=True)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left_s)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise StepFailedError(f"stopped after {left_s:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        # A library, a device, or a file that no earlier step could make here.
        is_absent = done.returncode == os.EX_UNAVAILABLE or lines[-1].startswith(LACKING)
        ended = f"ended with {done.returncode}: " if not lines[-1].startswith("error: ") else ""
        raise StepFailedError(ended + lines[-1].removeprefix("error: "), is_absent=is_absent)
    return done.stdout


# --- The steps --------------------------------------------------------------------------------------------------------


def look_at_host(plan: Plan) -> dict[str, Any]:
    """Hardware and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "gpu": gpu_facts(),
        "cpu": f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions,
        "device": plan.device,
    }


def gpu_facts() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; empty where there is none."""
    names = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "compute_cap")
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, (value.strip() for value in line.split(",")), strict=False))


def train(plan: Plan, precision: str) -> dict[str, Any]:
    """Three seeds in fp32, one in the others: examples/s of the steps alone and by the wall clock, and accuracy."""
    directory = plan.checkpoint_dir if precision == MODEL_OF else plan.work_dir / f"checkpoint-{precision}"
    seeds = 3 if precision == MODEL_OF and not plan.is_rehearsal else 1
    short = ("--epochs", 1) if plan.is_rehearsal else ()
    options = ("--checkpoint-dir", directory, "--device", plan.device, "--precision", precision, "--seeds", seeds)
    program(plan, "training", *options, *short, *plan.data, "--again")
    directories = [directory, *(directory / f"seed-{seed}" for seed in range(1, seeds))]
    records = [json.loads((path / "checkpoint.json").read_bytes()) for path in directories]
    return {"precision": precision, "runs": [run_of(record) for record in records]}


def training_floor(plan: Plan) -> dict[str, Any]:
    """What a step is counted to need."""
    result: dict[str, Any] = json.loads(program(plan, "training.floor", "--device", plan.device))
    return result


def run_of(record: dict[str, Any]) -> dict[str, Any]:
    """One seed's figures; those of the steady state leave out the first epoch, which also captures the graphs."""
    metrics, num_images = record["metrics"], record["num_train_images"]
    steady = metrics[1:] or metrics
    return {
        "seed": record["seed"],
        "test_acc": metrics[-1]["test_acc"],
        "train_loss": metrics[-1]["train_loss"],
        "peak_memory": record["peak_memory"],
        "examples_per_s_steps": num_images * len(metrics) / sum(epoch["step_seconds"] for epoch in metrics),
        "examples_per_s_wall": num_images * len(metrics) / record["wall_seconds"],
        "examples_per_s_steady_steps": num_images * len(steady) / sum(epoch["step_seconds"] for epoch in steady),
        "examples_per_s_steady_with_evaluation": num_images * len(steady) / sum(epoch["seconds"] for epoch in steady),
    }


def export(plan: Plan, precision: str) -> dict[str, Any]:
    """One version in that precision, through the gate; its parity table, and whether it has an engine."""
    largest = max(plan.batch_sizes)
    options = ("--checkpoint-dir", plan.checkpoint_dir, "--repository", plan.models_dir(precision))
    printed = program(
        plan, "export", *options, "--precision", precision, "--max-batch-size", largest, *plan.data, "--incomplete"
    )
    version_dir = plan.models_dir(precision) / "lenet5" / "1"
    parity = json.loads((version_dir / "parity.json").read_bytes())
    engine = json.loads((version_dir / "manifest.json").read_bytes())["engine"]
    kept = ("runtime", "device", "precision", "max_abs_diff", "top1_agreement", "accuracy", "num_batch_flips", "passed")
    rows = [{name: runtime[name] for name in kept} for runtime in parity["runtimes"]]
    return {"precision": precision, "parity": rows, "engine": engine, "about_engine": printed.splitlines()[-1]}


def latency(plan: Plan, precision: str, backend: str) -> dict[str, Any]:
    """Latency and images/s at every batch size, and what the backend holds in memory."""
    if backend == "torch-compiled" and plan.is_rehearsal:
        raise StepFailedError("a rehearsal does not wait for the compiler", is_absent=True)
    short = ("--repeats", 2, "--seconds", 0.1) if plan.is_rehearsal else ("--repeats", 5, "--seconds", 0.2)
    options = ("--repository", plan.models_dir(precision), "--backend", backend, "--device", plan.device)
    return {
        "precision": precision,
        **json.loads(program(plan, "loadtest.latency", *options, *short, "--batch-sizes", *plan.batch_sizes)),
    }


def serve(plan: Plan) -> dict[str, Any]:
    """The served model under load beside the reference in process, and the server's memory."""
    best = next((name for name in ("fp16", MODEL_OF) if (plan.models_dir(name) / "lenet5").exists()), MODEL_OF)
    short = ("--seconds", 0.5, "--repeats", 2) if plan.is_rehearsal else ("--seconds", 5, "--repeats", 3)
    options = ("--repository", plan.models_dir(best), "--reference", plan.models_dir(MODEL_OF))
    devices = ("--device", plan.device, "--reference-device", plan.device)
    printed = program(plan, "loadtest.served_load", *options, *devices, *short, *plan.data)
    return {"precision": best, **json.loads(printed)}


def steps_of(plan: Plan) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name and work, the most needed first: where time runs out, the last ones are missing."""
    trained = ("fp32",) if plan.is_rehearsal else ("fp32", "tf32", "bf16")
    exported = ("fp32", "int8") if plan.is_rehearsal else PRECISIONS
    steps: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("host", partial(look_at_host, plan)),
        ("floor of training", partial(training_floor, plan)),
    ]
    steps += [(f"train {precision}", partial(train, plan, precision)) for precision in trained]
    steps += [(f"export {precision}", partial(export, plan, precision)) for precision in exported]
    steps += [
        (f"latency {backend} {MODEL_OF}", partial(latency, plan, MODEL_OF, backend))
        for backend in ("floor", "torch", "onnxruntime", "tensorrt")
    ]
    steps += [("serve", partial(serve, plan))]
    steps += [
        (f"latency {backend} {precision}", partial(latency, plan, precision, backend))
        for precision in exported[1:]
        for backend in ("tensorrt", "onnxruntime")
    ]
    return [*steps, (f"latency torch-compiled {MODEL_OF}", partial(latency, plan, MODEL_OF, "torch-compiled"))]


def run_step(name: str, work: Callable[[], dict[str, Any]]) -> Step:
    """Whatever happens in it, it is an outcome."""
    started_s = time.monotonic()
    step = Step(name=name)
    try:
        step.result, step.status = work(), "ok"
    except StepFailedError as error:
        step.status, step.reason = "absent" if error.is_absent else "failed", str(error)
    except Exception as error:  # a file that is not there, output that is not what was expected
        step.status, step.reason = "failed", f"{type(error).__name__}: {error}"
    step.seconds = time.monotonic() - started_s
    print(f"{name:<34} {step.status:<7} {step.seconds:6.1f} s  {step.reason}".rstrip(), flush=True)
    return step


def main(arguments: list[str]) -> int:
    """Runs all steps and writes the report; 70 where a step failed."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.gpu_report", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--reports-dir", type=Path, default=Path("reports"), help="(%(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU and shortened, even where there is a GPU")
    parser.add_argument("--data-dir", type=Path, help="where Fashion-MNIST lies")
    parser.add_argument("--unverified-data", action="store_true", help="for tests: any IDX files")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    gpu = gpu_facts()
    is_rehearsal = options.rehearse or not gpu
    if options.unverified_data and not is_rehearsal:
        raise ConfigurationError("BAD_OPTIONS", "--unverified-data is for rehearsals", "leave it out")
    data: tuple[str, ...] = ("--data-dir", str(options.data_dir)) if options.data_dir else ()
    data += ("--unverified-data",) if options.unverified_data else ()
    with tempfile.TemporaryDirectory(prefix="atelier-gpu-report-") as directory:
        plan = Plan(
            device="cpu" if is_rehearsal else "cuda",
            is_rehearsal=is_rehearsal,
            work_dir=Path(directory),
            data=data,
            deadline_s=time.monotonic() + TIME_LIMIT_S - 20,  # for the pages
        )
        if is_rehearsal:
            print("REHEARSAL: on the CPU and shortened; no figure of it says anything about a GPU")
        steps = [run_step(name, work) for name, work in steps_of(plan)]
    write_report(steps, options.reports_dir, "rehearsal" if is_rehearsal else gpu["name"], is_rehearsal)
    return 70 if any(step.status == "failed" for step in steps) else 0


def write_report(steps: list[Step], reports_dir: Path, name: str, is_rehearsal: bool) -> None:
    """`gpu-<name>-<date>.json`, `.md` and `.png`."""
    reports_dir.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    stem = f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{date}"
    document = {"rehearsal": is_rehearsal, "date": date, "steps": [asdict(step) for step in steps]}
    (reports_dir / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    plot = save_plot(document, reports_dir / f"{stem}.png")
    (reports_dir / f"{stem}.md").write_text(markdown_from(document, stem if plot else ""))
    print(f"\nwritten: {reports_dir / stem}.json, .md{', .png' if plot else ''}")


if __name__ == "__main__":
    sys.exit(run_program(main))
