"""The GPU report, rehearsed on a CPU: every step is a real program, and none that fails takes another with it."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from export.repository import publish
from loadtest.front_ends import available_front_ends
from loadtest.gpu_report.pages import DASHES, markdown_from, plot_of
from loadtest.gpu_report.programs import (
    Plan,
    StepFailedError,
    export,
    json_of,
    latency,
    may_be_the_engine,
    output_of,
    run_of,
    serve,
)
from loadtest.gpu_report.run import RTX, Step, main, new_stem, run_step, write
from serving.manifest import PROGRAM_NAME
from tests.export.small_model import seeded_model, version_for_servers
from tests.export.test_export import RECORD
from tests.idx_files import write_idx_files
from tests.serving.running import has_ended, wait_for
from training.checkpoint import save_checkpoint


def plan_in(directory: Path, seconds: float = 60.0) -> Plan:
    deadline_s = time.monotonic() + seconds
    return Plan(device="cpu", is_rehearsal=True, work_dir=directory, deadline_s=deadline_s)


def step_of(work: Callable[[], dict[str, Any]], name: str = "a step") -> Step:
    step = Step(name=name)
    run_step(step, work)
    return step


def page_of(*steps: Step) -> str:
    return squeezed(
        markdown_from({"rehearsal": False, "date": "2026-01-01", "steps": [asdict(step) for step in steps]})
    )


def squeezed(page: str) -> str:
    """Without the spaces that align its tables."""
    return re.sub(" +", " ", page)


@pytest.mark.slow
def test_rehearsal_measures_all_that_a_cpu_can_and_says_what_it_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch teaches nothing here: to int8 every image is a tie, and its gate refuses to prove that."""
    write_idx_files(tmp_path / "data", num_train=5200, num_test=100)  # modern puts 5,000 aside
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", "")  # without nvidia-smi there is no GPU
    steps = {front_end: f"serve {front_end}" for front_end in available_front_ends()}
    assert main(["--report-dir", str(tmp_path / "reports")]) == 70
    assert capsys.readouterr().out.startswith("REHEARSAL")
    (report,) = (tmp_path / "reports").glob("gpu-rehearsal-*.json")
    document = json.loads(report.read_bytes())
    outcomes = {step["name"]: step["status"] for step in document["steps"]}
    for name in (
        "host",
        "train fp32",
        "train modern",
        "export fp32",
        *steps.values(),
    ):
        assert outcomes[name] == "ok", document
    for measured in ("torch fp32", "onnxruntime fp32"):
        assert outcomes[f"latency {measured}"] == "ok"
    for refused in ("export int8", "latency onnxruntime int8", "latency tensorrt int8"):
        assert outcomes[refused] == "refused"
    rtx = [f"latency {backend} {precision}" for backend in RTX for precision in ("fp32", "int8")]
    for absent in ("latency floor fp32", "latency tensorrt fp32", "latency torch-compiled fp32", *rtx):
        assert outcomes[absent] == "absent"
    reasons = {step["name"]: step["reason"] for step in document["steps"]}
    assert reasons["export int8"].startswith("PARITY: ")
    results = {step["name"]: step["result"] for step in document["steps"]}
    for front_end, step in steps.items():
        serving = results[step]
        assert serving["front_end"] == serving["report"]["settings"]["front_end"] == front_end
        (row,) = (row for row in serving["report"]["scenarios"] if row["contender"] == "served")
        assert row["all"]["requests"]["wrong"] == 0 < row["all"]["requests"]["correct"]
        # Of all its processes, not the supervisor's alone.
        assert serving["report"]["memory"]["resident_bytes"] > 40 << 20
    assert [row["batch_size"] for row in results["latency torch fp32"]["rows"]] == [1, 8, 64]
    assert {row["clock"] for row in results["latency torch fp32"]["rows"]} == {"wall clock"}
    assert results["latency onnxruntime fp32"]["memory"]["resident_bytes"] > 10 << 20
    for name, recipe in (("train fp32", "tutorial"), ("train modern", "modern")):
        (run,) = results[name]["runs"]
        assert (results[name]["recipe"], results[name]["precision"]) == (recipe, "fp32")
        assert run["examples_per_s_wall"] > 0 < run["peak_memory"]["resident"]
    (export_try,) = results["export int8"]["tries"]  # once: there was no engine to leave out
    passed = [(row["runtime"], row["passed"]) for row in export_try["parity"]]
    assert passed == [("torch", True), ("onnxruntime", False)]
    assert results["latency onnxruntime int8"] == {}

    page = squeezed(report.with_suffix(".md").read_text())
    assert "**This is a rehearsal on a CPU, shortened. No figure of it says anything about a GPU.**" in page
    for part in (
        "## Steps",
        "## Training",
        "## Export and parity",
        "## Latency",
        "## Served",
    ):
        assert part in page
    assert "Not finished" not in page
    assert "| onnxruntime | fp32 | 64 | wall clock |" in page and "| onnxruntime | int8 | 64 |" not in page
    assert re.search(r"\| int8, --engine auto \| onnxruntime on cpu \|.*\| FAIL \| refused \|", page)
    assert [line for line in page.splitlines() if line.startswith("| modern | fp32 | 1 |")]
    (training,) = [line for line in page.splitlines() if line.startswith("| tutorial | fp32 |")]
    assert training.endswith("| not measured |")
    assert report.with_suffix(".png").stat().st_size > 10_000


# --- A step that fails ------------------------------------------------------------------------------------------------


def raising(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "result"),
    [
        (StepFailedError("no driver", status="absent"), "absent", {}),
        (StepFailedError("it crashed"), "failed", {}),
        (StepFailedError("the gate refused it", result={"found": 1}), "failed", {"found": 1}),
        (FileNotFoundError("checkpoint.json"), "failed", {}),
        (KeyError("rows"), "failed", {}),
    ],
)
def test_a_step_that_raises_is_an_outcome(error: Exception, status: str, result: dict[str, int]) -> None:
    step = step_of(lambda: raising(error))
    assert (step.status, step.result) == (status, result)
    assert str(error) in step.reason


def test_a_program_that_fails_is_told_by_its_own_error_line(tmp_path: Path) -> None:
    with pytest.raises(StepFailedError, match=r"^NO_MODEL: .* has no version of lenet5") as failure:
        output_of(plan_in(tmp_path), "loadtest.backend_speed", "--repository", tmp_path)
    assert failure.value.status == "absent"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules in it can be imported by the programs that are run."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    (tmp_path / "modules").mkdir()
    return tmp_path / "modules"


def test_an_error_line_is_found_before_what_a_library_adds(modules: Path, tmp_path: Path) -> None:
    (modules / "failing.py").write_text(
        "import sys; print('error: BAD_THING: broken\\nCUDA driver says goodbye', file=sys.stderr); sys.exit(65)"
    )
    with pytest.raises(StepFailedError, match=r"^BAD_THING: broken$"):
        output_of(plan_in(tmp_path), "failing")


def test_a_program_that_crashes_is_told(modules: Path, tmp_path: Path) -> None:
    (modules / "crashing.py").write_text("import os; os.abort()")
    with pytest.raises(StepFailedError, match="ended with -6"):
        output_of(plan_in(tmp_path), "crashing")


@pytest.mark.slow
def test_a_program_that_hangs_is_stopped_with_the_servers_that_it_started(modules: Path, tmp_path: Path) -> None:
    (modules / "hanging.py").write_text(
        "import subprocess, sys, time\n"
        "server = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(server.pid))\n"
        "time.sleep(600)"
    )
    started_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import subprocess"], check=True)
    limit_s = round(2 + 10 * (time.monotonic() - started_s))  # enough for it to start its server, here and now
    with pytest.raises(StepFailedError, match=rf"^stopped after {limit_s} s$"):
        output_of(plan_in(tmp_path), "hanging", limit_s=limit_s)
    server = int((tmp_path / "pid").read_text())
    wait_for(lambda: has_ended(server), 10)  # killed a moment ago


def test_json_is_read_from_the_last_line_whatever_a_library_prints_before(modules: Path, tmp_path: Path) -> None:
    (modules / "chatty.py").write_text("print('[TensorRT] hello'); print('{not json}'); print('{\"rows\": [1]}')")
    (modules / "silent.py").write_text("")
    (modules / "rambling.py").write_text("print('{\"rows\": [1]}'); print('goodbye')")
    assert json_of(plan_in(tmp_path), "chatty") == {"rows": [1]}
    for module in ("silent", "rambling"):
        assert step_of(partial(json_of, plan_in(tmp_path), module)).status == "failed"


# --- An export that fails ---------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A plan whose training is done: seeded weights, and data that is not Fashion-MNIST."""
    write_idx_files(tmp_path / "data", num_train=10, num_test=10)  # fewer than in a request
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "data"))
    plan = plan_in(tmp_path, 250)
    plan.checkpoint_dir.mkdir()
    save_checkpoint(plan.checkpoint_dir, seeded_model().state_dict(), RECORD)
    return plan


@pytest.mark.slow
def test_an_engine_that_cannot_be_built_takes_no_other_runtime_with_it(trained: Plan, modules: Path) -> None:
    """TensorRT's library crashes; the export without it is proven, and told apart."""
    (modules / "tensorrt.py").write_text("import os; os.abort()")
    exported = step_of(partial(export, trained, "fp32"), "export fp32")
    assert exported.status == "failed"
    assert re.match(r"ended with -6: .*; again with --engine no: published$", exported.reason)
    crashed, published = exported.result["tries"]
    assert (crashed["status"], crashed["parity"]) == ("failed", [])
    assert [row["passed"] for row in published["parity"]] == [True, True]

    timed = step_of(partial(latency, trained, "fp32", "onnxruntime"), "latency onnxruntime fp32")
    assert timed.status == "ok", timed.reason
    page = page_of(exported, timed)
    assert "- fp32, --engine auto: ended with -6: " in page
    assert "- fp32, --engine no: published. engines left out: --engine no" in page
    assert re.search(
        r"\| fp32, --engine no \| torch on cpu \| fp32 \| \S+ \| 100 % \| \S+ \| pass \| published \|", page
    )


@pytest.mark.parametrize(
    ("passed", "expected"),
    [
        ({}, True),
        ({"torch": True, "onnxruntime": True, "tensorrt": False}, True),
        ({"torch": True, "onnxruntime": False, "tensorrt": True}, False),
        ({"torch": True, "onnxruntime": False}, False),
    ],
)
def test_an_export_is_tried_again_only_where_its_engine_may_have_failed_it(
    passed: dict[str, bool], expected: bool
) -> None:
    parity = [{"runtime": runtime, "passed": has_passed} for runtime, has_passed in passed.items()]
    assert may_be_the_engine(parity) == expected


def test_what_the_gate_refused_is_neither_timed_nor_served(trained: Plan) -> None:
    trained.failed_dir("fp32").mkdir(parents=True)
    timed = step_of(partial(latency, trained, "fp32", "torch"), "latency torch fp32")
    assert (timed.status, timed.reason) == ("refused", "the parity gate refused fp32, so it is not timed")
    served = step_of(partial(serve, trained, "grpcio"), "serve")
    assert (served.status, served.reason) == ("absent", "no version was published, and a server takes no other")
    assert "| latency torch fp32 | refused |" in page_of(timed, served)


@pytest.mark.slow
def test_a_version_in_another_precision_is_served_beside_the_program_of_the_fp32_one(trained: Plan) -> None:
    files, manifest = version_for_servers()
    publish(trained.models_dir("fp32") / "lenet5", files, manifest)
    others = {name: data for name, data in files.items() if name != PROGRAM_NAME}
    digests = {name: digest for name, digest in manifest.files.items() if name != PROGRAM_NAME}
    publish(trained.models_dir("fp16") / "lenet5", others, dataclasses.replace(manifest, files=digests))
    served = step_of(partial(serve, trained, "grpcio"), "serve grpcio")
    assert served.status == "ok", served.reason
    report = served.result["report"]
    assert (served.result["precision"], report["reference"]) == ("fp16", "PyTorch's logits")
    assert (report["settings"]["front_end"], report["settings"]["device"]) == ("grpcio", "cpu")
    assert report["memory"]["resident_bytes"] > 40 << 20
    page = page_of(served)
    assert re.search(r"\| grpcio: served[ \w]* \| [\d,]+ \(.*\) \|.* 0 wrong, 0 lost, 0 refused \| \|\n", page), page
    assert re.search(r"\| grpcio: PyTorch, \d+ at a time \| [\d,]+ \(.*\) \|.*\| [\d.]+ \(.*\) \|\n", page), page


@pytest.mark.slow
def test_a_version_that_fails_its_probes_here_is_refused_and_not_timed(trained: Plan) -> None:
    files, manifest = version_for_servers()
    wrong = dataclasses.replace(manifest.probes, logits=manifest.probes.logits[::-1])
    publish(trained.models_dir("fp32") / "lenet5", files, dataclasses.replace(manifest, probes=wrong))
    timed = step_of(partial(latency, trained, "fp32", "onnxruntime"), "latency onnxruntime fp32")
    assert (timed.status, timed.result) == ("refused", {})
    assert timed.reason.startswith("PARITY_HERE: ")


# --- A run that ends early --------------------------------------------------------------------------------------------


def test_no_step_begins_after_the_time_is_up(tmp_path: Path) -> None:
    with pytest.raises(StepFailedError, match="no time left: see --time-limit-s") as failure:
        output_of(plan_in(tmp_path, seconds=0.5), "no_such_module")
    assert failure.value.status == "not run"


def cpu_s() -> float:
    """Of this process, and of all that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def test_time_limit_ends_the_run_with_a_report_that_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does in that time is counted in CPU time, of which a busy machine takes none."""
    started_s = cpu_s()
    monkeypatch.setenv("PATH", "")
    options = ["--report-dir", str(tmp_path), "--time-limit-s", "20.9"]
    assert main(options) == 0
    assert cpu_s() - started_s < 20.9
    (report,) = tmp_path.glob("*.json")
    document = json.loads(report.read_bytes())
    assert document["time_limit_s"] == 20.9
    assert document["steps"][0]["status"] == "ok"
    for step in document["steps"][1:]:
        if step["name"].startswith(
            ("latency torch-compiled", "latency tensorrt-rtx", "latency floor")
        ):  # which no rehearsal measures
            continue
        assert step["status"] == ("absent" if step["name"].startswith("serve ") else "not run"), step
    assert "no time left" in report.with_suffix(".md").read_text()


def reported(directory: Path) -> dict[str, str]:
    """Step -> status, as the report has it by now."""
    steps = [step for path in directory.glob("*.json") for step in json.loads(path.read_bytes())["steps"]]
    return {step["name"]: step["status"] for step in steps}


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_what_it_measured_and_says_what_it_did_not(tmp_path: Path) -> None:
    write_idx_files(tmp_path / "data")
    reports = tmp_path / "reports"
    options = ["--report-dir", reports]
    command = [sys.executable, "-m", "loadtest.gpu_report", *map(str, options)]
    environment = os.environ | {"PATH": "", "TMPDIR": str(tmp_path), "FASHION_MNIST_DIR": str(tmp_path / "data")}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, process_group=0) as process:
        while not any("| train fp32 | running |" in squeezed(page.read_text()) for page in reports.glob("*.md")):
            assert process.poll() is None  # the page is written after the figures
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)  # the step's program is of this group too
    assert process.returncode == -signal.SIGKILL
    statuses = reported(reports)
    assert list(statuses.values()) == ["ok", "running", *["not run"] * (len(statuses) - 2)]
    (page,) = reports.glob("*.md")
    text = squeezed(page.read_text())
    assert f"Not finished: {len(statuses) - 1} of {len(statuses)} steps are missing, from `train fp32` on." in text
    assert "| host | ok |" in text and "| CPU |" in text


def test_a_second_run_of_the_day_leaves_the_first_ones_report_alone(tmp_path: Path) -> None:
    stems = []
    for _ in range(3):
        stem = new_stem(tmp_path, "NVIDIA H100 80GB HBM3", "2026-01-01")
        write(stem, {"rehearsal": False, "date": "2026-01-01"}, [Step(name="host")])
        stems.append(stem.name)
    name = "gpu-nvidia-h100-80gb-hbm3-2026-01-01"
    assert stems == [name, f"{name}-2", f"{name}-3"]


# --- Figures and pages ------------------------------------------------------------------------------------------------


def test_steady_figures_leave_out_the_first_epoch() -> None:
    slow = {"step_seconds": 9.0, "seconds": 10.0, "test_acc": 0.1, "train_loss": 2.0}
    fast = {"step_seconds": 1.0, "seconds": 2.0, "test_acc": 0.8, "train_loss": 0.5}
    record = {"seed": 0, "metrics": [slow, fast, fast], "num_train_images": 100, "wall_seconds": 20.0}
    run = run_of(record | {"peak_memory": {}})
    assert run["examples_per_s_wall"] == 15
    assert run["examples_per_s_steady_steps"] == 100


def test_page_of_a_gpu_shows_event_times_and_memory() -> None:
    row = {"batch_size": 64, "clock": "CUDA events", "latency_us": [21.0, 20.0, 23.0], "images_per_s": [3e6]}
    measured = {"backend": "tensorrt", "precision": "fp16", "device": "cuda", "rows": [row | {"wall_us": [25.0]}]}
    memory = {"resident_bytes": 300 << 20, "device_bytes": 5 << 20}
    run = run_of(
        {
            "seed": 0,
            "metrics": [{"step_seconds": 1.0, "seconds": 2.0, "test_acc": 0.8, "train_loss": 0.5}],
            "num_train_images": 100,
            "wall_seconds": 20.0,
            "peak_memory": {"resident": 4 << 30, "device_allocated": 70 << 20, "device_reserved": 82 << 20},
        }
    )
    results: dict[str, dict[str, Any]] = {
        "train fp32": {"recipe": "tutorial", "precision": "fp32", "runs": [run]},
        "latency tensorrt fp16": measured | {"memory": memory, "probes": "64 probes agree"},
    }
    page = page_of(*(Step(name=name, status="ok", result=result) for name, result in results.items()))
    assert page.startswith("# GPU report, 2026-01-01")
    assert "rehearsal" not in page
    assert "- tensorrt, fp16: 64 probes agree" in page
    assert "| tensorrt | fp16 | 64 | CUDA events | 21.0 (20.0 to 23.0) | 3,000,000 | 25.0 | 300.0 | 5.0 |" in page
    assert "| tutorial | fp32 | 1 | 5 | 100 | 0.8000 | 4,096.0 | 70.0 |" in page


def test_long_reasons_do_not_widen_the_table_of_steps() -> None:
    page = page_of(Step(name="host", status="ok"), Step(name="export int8", status="failed", reason="BAD\n ENGINE"))
    assert "| host | ok | 0.0 |" in page
    assert "\n- export int8: BAD ENGINE\n" in page
    assert "- host" not in page


def test_plot_tells_backends_and_precisions_apart() -> None:
    rows = [{"batch_size": size, "latency_us": [float(size)]} for size in (1, 8)]
    lines = [(f"backend {number}", precision) for number in range(4) for precision in DASHES]
    results = [{"backend": backend, "precision": precision, "rows": rows} for backend, precision in lines]
    steps = [{"name": "latency", "result": result} for result in results]
    document = {"rehearsal": False, "date": "2026-01-01", "steps": steps}
    figure = plot_of(document)
    assert figure is not None
    (axes,) = figure.axes
    assert len({(backend, line.get_color()) for (backend, _), line in zip(lines, axes.lines, strict=True)}) == 4
    assert len({line.get_color() for line in axes.lines}) == 4
    assert len({str(dashes) for dashes in DASHES.values()}) == 5
    assert {line.get_linestyle() for line in axes.lines} == {"-", "--", "-.", ":"}  # matplotlib's "--" is any other too
    assert [text.get_text() for text in figure.legends[0].texts] == [" ".join(line) for line in lines]
    assert plot_of(document | {"steps": []}) is None


def test_figures_of_a_gpu_are_never_on_unchecked_data(tmp_path: Path) -> None:
    assert plan_in(tmp_path).data == ("--unverified-data",)
    assert dataclasses.replace(plan_in(tmp_path), is_rehearsal=False).data == ()
