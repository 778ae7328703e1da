"""The steps of the GPU report: each runs a program as a user would, and returns what it printed or wrote."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

from atelier.machine import cpu_name, gpu_facts, package_versions
from loadtest.gpu_report.programs import Plan, StepFailedError, json_of, output_of

PACKAGES = (
    *("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-libs"),
    *("polygraphy", "cuda-bindings", "numpy"),
)
MODEL_OF = "fp32"  # the version that holds the program
SERVED = ("fp16", MODEL_OF, "tf32", "bf16", "int8")  # the first of them that was published
EXPORT_LIMIT_S = 150.0  # of each try
NUM_PROCESSES = max(1, min(8, (os.cpu_count() or 1) // 2))  # of the load generator
IN_FLIGHT = 32  # requests of 64 images, of all of them together: the server's queue takes twice as many
PARITY_FIGURES = (
    *("runtime", "device", "precision", "max_abs_diff", "top1_agreement", "accuracy", "num_batch_flips", "passed"),
)


def look_at_host(plan: Plan) -> dict[str, Any]:
    """Hardware and versions."""
    versions = package_versions(PACKAGES)
    return {
        "gpu": gpu_facts(),
        "cpu": cpu_name(),
        "python": versions["python"],
        "versions": {name: versions.get(name, "absent") for name in PACKAGES},
        "device": plan.device,
    }


# --- Training ---------------------------------------------------------------------------------------------------------


def training_floor(plan: Plan) -> dict[str, Any]:
    """What a step is counted to need."""
    return json_of(plan, "training.model_cost", "--device", plan.device)


def train(plan: Plan, precision: str, recipe: str = "tutorial") -> dict[str, Any]:
    """Three seeds of the tutorial in fp32, else one: examples/s of the steps and by the wall clock, and accuracy."""
    is_exported = (precision, recipe) == (MODEL_OF, "tutorial")
    directory = plan.checkpoint_dir if is_exported else plan.work_dir / f"checkpoint-{recipe}-{precision}"
    seeds = 3 if is_exported and not plan.is_rehearsal else 1
    short = ("--epochs", 1) if plan.is_rehearsal else ()
    options = ("--checkpoint-dir", directory, "--device", plan.device, "--precision", precision, "--seeds", seeds)
    output_of(plan, "training", "--recipe", recipe, *options, *short, *plan.data, "--again")
    directories = [directory, *(directory / f"seed-{seed}" for seed in range(1, seeds))]
    records = [json.loads((path / "checkpoint.json").read_bytes()) for path in directories]
    return {"recipe": recipe, "precision": precision, "runs": [run_of(record) for record in records]}


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


# --- Export -----------------------------------------------------------------------------------------------------------


def export(plan: Plan, precision: str) -> dict[str, Any]:
    """One version in that precision, through the gate: what each try came to, with its parity table.

    Where the engine may be why nothing was published, there is a second try without one. Raises StepFailedError, with
    all that was found, where the first try failed, whatever became of the second.
    """
    tries = [_try_export(plan, precision, "auto")]
    first = tries[0]
    if first["status"] in ("failed", "refused") and may_be_the_engine(first["parity"]):
        tries.append(_try_export(plan, precision, "no"))
    result = {"precision": precision, "tries": tries}
    if first["status"] != "ok":
        reason = "; again with --engine no: ".join(str(each["outcome"]) for each in tries)
        raise StepFailedError(reason, status=first["status"], result=result)
    return result


def may_be_the_engine(parity: list[dict[str, Any]]) -> bool:
    """Whether an export could have failed by its engine: it failed in the gate, or the gate came to no result."""
    return not parity or any(row["runtime"].startswith("tensorrt") and not row["passed"] for row in parity)


def _try_export(plan: Plan, precision: str, engine: str) -> dict[str, Any]:
    """`status` as a step's, `outcome` in words, and what is on record of the engine and of the gate."""
    failed_dir = plan.failed_dir(precision)
    shutil.rmtree(failed_dir, ignore_errors=True)  # an earlier try's
    options: tuple[object, ...] = ("--checkpoint-dir", plan.checkpoint_dir, "--repository", plan.models_dir(precision))
    options += ("--incomplete", "--near-chance")
    options += ("--precision", precision, "--engine", engine, "--max-batch-size", max(plan.batch_sizes), *plan.data)
    found: dict[str, Any] = {"engine_option": engine, "status": "ok", "outcome": "published", "about_engine": ""}
    try:
        printed = output_of(plan, "export", *options, limit_s=EXPORT_LIMIT_S)
    except StepFailedError as error:
        outcome = str(error).replace(f"; read {failed_dir / 'parity.md'}", "")  # which does not outlive the report
        return found | {"status": error.status, "outcome": outcome} | _on_record(failed_dir)
    _, _, about = printed.strip().partition("\nVersion ")  # is in <directory>, and then a line for each engine
    return found | {"about_engine": "; ".join(about.splitlines()[1:])} | _on_record(plan.version_dir(precision))


def _on_record(directory: Path) -> dict[str, Any]:
    """The manifest's entries for the engines and the gate's figures; nothing where an export did not come so far."""
    manifest, parity = (
        json.loads(path.read_bytes()) if path.exists() else {}
        for path in (directory / "manifest.json", directory / "parity.json")
    )
    rows = [{name: runtime[name] for name in PARITY_FIGURES} for runtime in parity.get("runtimes", [])]
    return {"engines": manifest.get("engines"), "parity": rows}


# --- Inference --------------------------------------------------------------------------------------------------------


def latency(plan: Plan, precision: str, backend: str) -> dict[str, Any]:
    """Latency and images/s at every batch size, and what the backend holds in memory."""
    if backend == "torch-compiled" and plan.is_rehearsal:
        raise StepFailedError("a rehearsal does not wait for the compiler", status="absent")
    if backend.startswith(("tensorrt-rtx", "floor")) and plan.is_rehearsal:
        raise StepFailedError("it is measured on a GPU only", status="absent")
    short = ("--repeats", 2, "--seconds", 0.1) if plan.is_rehearsal else ("--repeats", 5, "--seconds", 0.2)
    options: tuple[object, ...] = ("--backend", backend, "--device", plan.device, *short)
    if backend != "floor" and plan.is_refused(precision):
        raise StepFailedError(f"the parity gate refused {precision}, so it is not timed", status="refused")
    options += ("--repository", plan.models_dir(precision))
    measured = json_of(plan, "loadtest.backend_speed", *options, "--batch-sizes", *plan.batch_sizes)
    return {"precision": precision, **measured}


def serve(plan: Plan, front_end: str) -> dict[str, Any]:
    """The served model under load by a front end, beside the reference in process: the load test's own report."""
    precision = next((name for name in SERVED if plan.version_dir(name).exists()), None)
    if precision is None:
        raise StepFailedError("no version was published, and a server takes no other", status="absent")
    directory = plan.work_dir / f"loadtest-{front_end}"
    options: tuple[object, ...] = ("--scenarios", "offline", "--no-sweep", "--output-dir", directory)
    options += ("--repository", plan.models_dir(precision), "--reference-repository", plan.models_dir(MODEL_OF))
    options += ("--device", plan.device, "--front-end", front_end)
    options += ("--processes", NUM_PROCESSES, "--in-flight", max(1, IN_FLIGHT // NUM_PROCESSES))
    short = ("--rounds", 2, "--duration-s", 0.5) if plan.is_rehearsal else ("--rounds", 3, "--duration-s", 3)
    result = {"precision": precision, "front_end": front_end}
    try:
        output_of(plan, "loadtest", *options, *short, *plan.data)
    except StepFailedError as error:
        report = _report_in(directory)
        if report is None or report["verdict"] == "INTERRUPTED":
            raise
        if report["verdict"] == "FAIL":
            raise StepFailedError("; ".join(report["reasons"]), result=result | {"report": report}) from error
    return result | {"report": _report_in(directory)}


def _report_in(directory: Path) -> dict[str, Any] | None:
    path = directory / "report.json"
    return cast(dict[str, Any], json.loads(path.read_bytes())) if path.exists() else None
