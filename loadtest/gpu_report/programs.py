"""Steps of the GPU report: each runs a program as a user would, and returns what it printed or wrote."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from atelier.machine import cpu_name, gpu_facts, package_versions
from loadtest.processes import processes_of
from serving.manifest import MODEL_NAME

PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-libs", "cuda-bindings")
MODEL_OF = "fp32"  # the version that holds the program
SERVED = ("fp16", MODEL_OF, "tf32", "bf16", "int8")  # the first of them that was published
EXPORT_LIMIT_S = 150.0  # of each try
GPU_ONLY = ("torch-compiled", "tensorrt-rtx", "tensorrt-rtx-here", "floor")  # or too slow to wait for in a rehearsal
LACKING = ("error: NO_ENGINE: ", "error: NO_ARTIFACT: ", "error: NO_MODEL: ", "error: NO_CHECKPOINT: ")
REFUSED = "error: PARITY"  # of the gate, of a server or backend that proves a version here, of a manifest


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a run: on which device, where, until when."""

    device: str
    is_rehearsal: bool
    work_dir: Path
    deadline_s: float  # on the monotonic clock: when the last program is stopped

    @property
    def data(self) -> tuple[str, ...]:
        """Flags of training and export: a rehearsal takes any IDX files that FASHION_MNIST_DIR names."""
        return ("--unverified-data",) if self.is_rehearsal else ()

    @property
    def checkpoint_dir(self) -> Path:
        """Directory of the first training, which is exported."""
        return self.work_dir / "checkpoint"

    def models_dir(self, precision: str) -> Path:
        """Returns the repository of a precision's one version."""
        return self.work_dir / precision / "models"

    def version_dir(self, precision: str) -> Path:
        """Returns where an export publishes that version."""
        return self.models_dir(precision) / MODEL_NAME / "1"

    def failed_dir(self, precision: str) -> Path:
        """Returns where an export leaves the reports of a failed gate."""
        return self.work_dir / precision / "parity-failed"

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Images a batch that latencies are measured at."""
        return (1, 8, 64) if self.is_rehearsal else (1, 8, 64, 256, 1024)


def look_at_host(plan: Plan) -> dict[str, Any]:
    """Returns hardware and versions."""
    about = {"gpu": gpu_facts(), "cpu": cpu_name(), "device": plan.device}
    return about | {"versions": dict.fromkeys(PACKAGES, "absent") | package_versions(PACKAGES)}


def train(plan: Plan, precision: str, recipe: str = "tutorial") -> dict[str, Any]:
    """Trains three seeds of the tutorial in fp32, else one; returns speed, accuracy and memory of each."""
    is_exported = (precision, recipe) == (MODEL_OF, "tutorial")
    directory = plan.checkpoint_dir if is_exported else plan.work_dir / f"checkpoint-{recipe}-{precision}"
    seeds = 3 if is_exported and not plan.is_rehearsal else 1
    short = ("--epochs", 1) if plan.is_rehearsal else ()
    options = ("--checkpoint-dir", directory, "--device", plan.device, "--precision", precision, "--seeds", seeds)
    output_of(plan, "training", "--recipe", recipe, *options, *short, *plan.data, "--again")
    directories = [directory, *(directory / f"seed-{seed}" for seed in range(1, seeds))]
    runs = [run_of(json.loads((path / "checkpoint.json").read_bytes())) for path in directories]
    return {"recipe": recipe, "precision": precision, "runs": runs}


def run_of(record: dict[str, Any]) -> dict[str, Any]:
    """Returns one seed's figures; those of the steady state leave out the first epoch, which captures the graphs."""
    metrics, num_images = record["metrics"], record["num_train_images"]
    steady = metrics[1:] or metrics
    return {
        "test_acc": metrics[-1]["test_acc"],
        "peak_memory": record["peak_memory"],
        "examples_per_s_wall": num_images * len(metrics) / record["wall_seconds"],
        "examples_per_s_steady_steps": num_images * len(steady) / sum(epoch["step_seconds"] for epoch in steady),
    }


def export(plan: Plan, precision: str) -> dict[str, Any]:
    """Exports one version through the gate; a second time without an engine, if that may be why nothing was published.

    Raises StepFailedError, with all that was found, if the first try failed, whatever became of the second.
    """
    tries = [_try_export(plan, precision, "auto")]
    first = tries[0]
    if first["status"] in ("failed", "refused") and may_be_the_engine(first["parity"]):
        tries.append(_try_export(plan, precision, "no"))
    result = {"precision": precision, "tries": tries}
    if first["status"] == "ok":
        return result
    reason = "; again with --engine no: ".join(str(each["outcome"]) for each in tries)
    raise StepFailedError(reason, status=first["status"], result=result)


def may_be_the_engine(parity: list[dict[str, Any]]) -> bool:
    """Says whether an export could have failed by its engine: it failed in the gate, or the gate had no result."""
    return not parity or any(row["runtime"].startswith("tensorrt") and not row["passed"] for row in parity)


def _try_export(plan: Plan, precision: str, engine: str) -> dict[str, Any]:
    """Returns `status` as a step's, `outcome` in words, the gate's figures, and what is said of engines."""
    failed_dir = plan.failed_dir(precision)
    shutil.rmtree(failed_dir, ignore_errors=True)  # an earlier try's
    options: tuple[object, ...] = ("--checkpoint-dir", plan.checkpoint_dir, "--repository", plan.models_dir(precision))
    options += ("--untrained", "--max-batch-size", max(plan.batch_sizes), *plan.data)
    options += ("--precision", precision, "--engine", engine)
    status, outcome, directory = "ok", "published", plan.version_dir(precision)
    try:
        output_of(plan, "export", *options, limit_s=EXPORT_LIMIT_S)
    except StepFailedError as error:
        outcome = str(error).replace(f"; read {failed_dir / 'parity.md'}", "")  # which does not outlive the report
        status, directory = error.status, failed_dir
    report = _read(directory / "parity.json")
    about, parity = report.get("made_with", {}).get("engines", ""), report.get("runtimes", [])
    return {"engine_option": engine, "status": status, "outcome": outcome, "about_engine": about, "parity": parity}


def latency(plan: Plan, precision: str, backend: str) -> dict[str, Any]:
    """Measures latency and images/s at every batch size, and what the backend holds in memory."""
    if backend in GPU_ONLY and plan.is_rehearsal:
        raise StepFailedError("a rehearsal leaves it out", status="absent")
    if backend != "floor" and plan.failed_dir(precision).exists() and not plan.version_dir(precision).exists():
        raise StepFailedError(f"the parity gate refused {precision}, so it is not timed", status="refused")
    options = ("--backend", backend, "--device", plan.device, "--repository", plan.models_dir(precision))
    measured = json_of(plan, "loadtest.backend_speed", *options, "--batch-sizes", *plan.batch_sizes)
    return {"precision": precision, **measured}


def serve(plan: Plan, front_end: str) -> dict[str, Any]:
    """Serves a version under load by a front end, beside the reference in process; returns the load test's report."""
    precision = next((name for name in SERVED if plan.version_dir(name).exists()), None)
    if precision is None:
        raise StepFailedError("no version was published, and a server takes no other", status="absent")
    directory = plan.work_dir / f"loadtest-{front_end}"
    options: tuple[object, ...] = ("--measure", "references,offline", "--report-dir", directory)
    options += ("--repository", plan.models_dir(precision), "--reference-repository", plan.models_dir(MODEL_OF))
    options += ("--device", plan.device, "--front-end", front_end)
    options += ("--repeats", 2, "--duration-s", 0.5) if plan.is_rehearsal else ("--duration-s", 3)
    try:
        output_of(plan, "loadtest", *options)
    except StepFailedError:
        if _read(directory / "report.json").get("verdict", "INTERRUPTED") == "INTERRUPTED":
            raise
    report = _read(directory / "report.json")
    result = {"precision": precision, "front_end": front_end, "report": report}
    if report["verdict"] == "FAIL":
        raise StepFailedError("; ".join(report["reasons"]), result=result)
    return result


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return found


class StepFailedError(Exception):
    """Why, and what was found out even so; `status` is that of the step, and never `ok`."""

    def __init__(self, reason: str, *, status: str = "failed", result: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.status, self.result = status, result or {}


def output_of(plan: Plan, module: str, *arguments: object, limit_s: float = 240.0) -> str:
    """Returns a program's stdout. Raises StepFailedError with its error line, or if there is no time left for it."""
    left_s = min(limit_s, plan.deadline_s - time.monotonic())
    if left_s < 1:
        raise StepFailedError("no time left: see --time-limit-s", status="not run")
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            stdout, stderr = process.communicate(timeout=left_s)
        except BaseException as error:  # the time is up, or we are stopped: the servers that it started end too
            for each in processes_of(process.pid):
                with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                    each.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                end = "" if left_s == limit_s else ": the time of --time-limit-s is over"
                raise StepFailedError(f"stopped after {left_s:.0f} s{end}") from None
            raise
    if process.returncode:
        raise _failure(process.returncode, stderr.strip().splitlines() or ["it said nothing"])
    return stdout


def json_of(plan: Plan, module: str, *arguments: object) -> dict[str, Any]:
    """Reads what a program prints in its last line; libraries may print before it. Raises StepFailedError."""
    found: dict[str, Any] = json.loads(output_of(plan, module, *arguments).strip().splitlines()[-1])
    return found


def _failure(code: int, lines: list[str]) -> StepFailedError:
    """Names the error line on stderr, which libraries may add to while the process ends; else its last line."""
    line = next((line for line in reversed(lines) if line.startswith("error: ")), "")
    # A library, a device, or a file that no earlier step could make here.
    is_absent = code == os.EX_UNAVAILABLE or line.startswith(LACKING)
    status = "refused" if line.startswith(REFUSED) else "absent" if is_absent else "failed"
    return StepFailedError(line.removeprefix("error: ") or f"ended with {code}: {lines[-1]}", status=status)
