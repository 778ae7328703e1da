"""The GPU report, rehearsed on a CPU: every step is a real program, and none that fails takes another with it."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from loadtest import gpu_report
from loadtest.gpu_report import Plan, StepFailedError, main, program, run_of, run_step
from loadtest.gpu_report_pages import markdown_from
from tests.idx_files import write_idx_files


def plan_in(directory: Path, seconds: float = 60.0) -> Plan:
    return Plan(device="cpu", is_rehearsal=True, work_dir=directory, data=(), deadline_s=time.monotonic() + seconds)


@pytest.mark.slow
def test_rehearsal_measures_all_that_a_cpu_can_and_says_what_it_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 600 images one epoch teaches nothing: to int8 every image is a tie, and its gate refuses to prove that."""
    write_idx_files(tmp_path / "data")
    options = ["--rehearse", "--reports-dir", str(tmp_path / "reports"), "--data-dir", str(tmp_path / "data")]
    assert main([*options, "--unverified-data"]) == 70
    assert capsys.readouterr().out.startswith("REHEARSAL")
    (report,) = (tmp_path / "reports").glob("gpu-rehearsal-*.json")
    document = json.loads(report.read_bytes())
    outcomes = {step["name"]: step["status"] for step in document["steps"]}
    for name in ("host", "floor of training", "train fp32", "export fp32", "serve"):
        assert outcomes[name] == "ok", document
    for backend in ("floor", "torch", "onnxruntime"):
        assert outcomes[f"latency {backend} fp32"] == "ok"
    assert outcomes["export int8"] == "failed"
    for absent in ("latency tensorrt fp32", "latency tensorrt int8", "latency torch-compiled fp32"):
        assert outcomes[absent] == "absent"
    reasons = {step["name"]: step["reason"] for step in document["steps"]}
    assert reasons["export int8"].startswith("PARITY: ")
    results = {step["name"]: step["result"] for step in document["steps"]}
    assert results["serve"]["num_wrong"] == 0 < results["serve"]["num_answers"]
    assert [row["batch_size"] for row in results["latency torch fp32"]["rows"]] == [1, 8, 64]
    assert results["serve"]["memory"]["resident_bytes"] > 60 << 20  # of all its processes, not the supervisor's alone
    assert {row["clock"] for row in results["latency torch fp32"]["rows"]} == {"wall clock"}
    assert results["latency onnxruntime fp32"]["memory"]["resident_bytes"] > 10 << 20
    (run,) = results["train fp32"]["runs"]
    assert run["examples_per_s_wall"] > 0 < run["peak_memory"]["resident"]

    page = report.with_suffix(".md").read_text()
    assert "**This is a rehearsal on a CPU, shortened. No figure of it says anything about a GPU.**" in page
    for part in (
        "## Steps",
        "## Training",
        "## Export and parity",
        "## Latency",
        "## Served",
        "## Memory",
        "multiply-adds",
    ):
        assert part in page
    (training,) = [line for line in page.splitlines() if line.startswith("| training, fp32, at most |")]
    assert training.endswith("| not measured | not measured |")
    assert report.with_suffix(".png").stat().st_size > 10_000


def raising(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StepFailedError("no driver", is_absent=True), "absent"),
        (StepFailedError("it crashed"), "failed"),
        (FileNotFoundError("checkpoint.json"), "failed"),
        (KeyError("rows"), "failed"),
    ],
)
def test_a_step_that_raises_is_an_outcome(error: Exception, status: str) -> None:
    step = run_step("a step", lambda: raising(error))
    assert (step.status, step.result) == (status, {})
    assert str(error) in step.reason


def test_a_program_that_fails_is_told_by_its_own_error_line(tmp_path: Path) -> None:
    with pytest.raises(StepFailedError, match=r"^NO_MODEL: .* has no version of lenet5") as failure:
        program(plan_in(tmp_path), "loadtest.latency", "--repository", tmp_path)
    assert failure.value.is_absent


def test_a_program_that_is_killed_or_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crashing.py").write_text("import os; os.abort()")
    (tmp_path / "hanging.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(StepFailedError, match="ended with -6"):
        program(plan_in(tmp_path), "crashing")
    with pytest.raises(StepFailedError, match="stopped after 2 s"):
        program(plan_in(tmp_path), "hanging", limit_s=2)


def test_no_step_begins_after_the_time_is_up(tmp_path: Path) -> None:
    with pytest.raises(StepFailedError, match="no time left of 600 s") as failure:
        program(plan_in(tmp_path, seconds=0.5), "no_such_module")
    assert failure.value.is_absent


def test_steady_figures_leave_out_the_first_epoch() -> None:
    slow = {"step_seconds": 9.0, "seconds": 10.0, "test_acc": 0.1, "train_loss": 2.0}
    fast = {"step_seconds": 1.0, "seconds": 2.0, "test_acc": 0.8, "train_loss": 0.5}
    record = {"seed": 0, "metrics": [slow, fast, fast], "num_train_images": 100, "wall_seconds": 20.0}
    run = run_of(record | {"peak_memory": {}})
    assert run["examples_per_s_steps"] == pytest.approx(300 / 11)
    assert run["examples_per_s_wall"] == 15
    assert run["examples_per_s_steady_steps"] == 100
    assert run["examples_per_s_steady_with_evaluation"] == 50


def test_page_of_a_gpu_shows_event_times_memory_and_the_launch_floor() -> None:
    row = {"batch_size": 64, "clock": "CUDA events", "latency_us": [21.0, 20.0, 23.0], "images_per_s": [3e6]}
    latency = {"backend": "tensorrt", "precision": "fp16", "device": "cuda", "rows": [row | {"wall_us": [25.0]}]}
    memory = {"resident_bytes": 300 << 20, "device_bytes": 5 << 20}
    floor: dict[str, float] = {
        "batch_size": 256,
        "multiply_adds_per_step": 1,
        "image_bytes_per_step": 2,
        "launches_per_step": 60,
    }
    floor |= {"launch_floor_us": 90.0, "launch_floor_examples_per_s": 2.8e6}
    run = run_of(
        {
            "seed": 0,
            "metrics": [{"step_seconds": 1.0, "seconds": 2.0, "test_acc": 0.8, "train_loss": 0.5}],
            "num_train_images": 100,
            "wall_seconds": 20.0,
            "peak_memory": {"resident": 4 << 30, "device_allocated": 70 << 20, "device_reserved": 82 << 20},
        }
    )
    results = {
        "floor of training": floor,
        "train fp32": {"precision": "fp32", "runs": [run]},
        "latency tensorrt fp16": latency | {"memory": memory},
    }
    steps = [
        {"name": name, "status": "ok", "reason": "", "seconds": 1.0, "result": result}
        for name, result in results.items()
    ]
    page = markdown_from({"rehearsal": False, "date": "2026-01-01", "steps": steps}, "")
    assert page.startswith("# GPU report, 2026-01-01")
    assert "rehearsal" not in page
    assert "| tensorrt | fp16 | 64 | CUDA events | 21.0 (20.0 to 23.0) | 3,000,000 | 25.0 |" in page
    assert "| training, fp32, at most | 4,096.0 | 70.0 | 82.0 |" in page
    assert "| tensorrt, fp16 | 300.0 | 5.0 | not measured |" in page
    assert "no more than 2,800,000 examples/s" in page


def test_figures_on_unchecked_data_are_never_a_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.errors import run_program

    monkeypatch.setattr(gpu_report, "gpu_facts", lambda: {"name": "NVIDIA H200"})
    assert run_program(main, ["--unverified-data"]) == os.EX_CONFIG
