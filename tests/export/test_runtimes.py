"""The served model in other runtimes: each is held to the gate's rule, and what goes wrong is a row with its reason."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from atelier.environments import node_modules_with, python_with, size_mb
from atelier.errors import ProgramError, ResourceUnavailableError
from atelier.program import run_program
from export.runtimes import measure
from export.runtimes.known import ABSENT, OURS, RUNTIMES, Runtime
from export.runtimes.measure import Result, Task, measured, opened
from export.runtimes.report import json_from, markdown_from, num_flips, table_from, verdict
from export.runtimes.run import main
from export.runtimes.script_process import Session, session
from loadtest.server_process import free_port
from serving.manifest import ONNX_NAME
from tests.conftest import Job, import_s
from tests.export.small_model import noise_inputs, program_and_onnx, seeded_model, truth
from tests.idx_files import write_first_images
from tests.serving.running import has_ended, wait_for
from training.dataset import FashionMNIST

INPUTS = noise_inputs(70)  # more than one batch of 64
HARNESS = f"import sys, os, time, signal; sys.path.insert(0, {str(measure.SCRIPTS)!r}); import harness, onnxruntime\n"
OPEN = """
def open_model(path, scratch):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return "1.0", lambda size: lambda images: changed(session.run(["logits"], {"images": images})[0])

harness.serve(open_model)
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return Task(
        models=program_and_onnx(seeded_model(), 64),
        precision="fp32",
        truth=truth()(INPUTS.images),
        inputs=INPUTS,
        repeats=1,
        limit_s=60,
        environments=tmp_path_factory.mktemp("environments"),
    )


@pytest.fixture(scope="module")
def baseline(task: Task) -> Iterator[Session]:
    """Ours, beside which all of them are timed."""
    with opened(OURS, task) as (running, _):
        yield running


Outcome = Callable[..., Result]


@pytest.fixture
def outcome(task: Task, baseline: Session, tmp_path: Path) -> Outcome:
    """`outcome(script)`: what is made of a runtime whose script this is, after the imports."""

    def of(script: str, **fields: Any) -> Result:
        path = tmp_path / "runtime.py"
        path.write_text(HARNESS + script)
        runtime = Runtime(title="Other", route="by hand", script=str(path))
        return measured(runtime, dataclasses.replace(task, **fields), baseline)

    return of


@pytest.mark.slow
def test_runtime_that_gives_the_models_logits_passes_and_is_timed_beside_onnx_runtime(outcome: Outcome) -> None:
    result = outcome(f"changed = lambda logits: logits\n{OPEN}")
    assert result.why == "" and result.version == "1.0"
    assert verdict(result) == "pass" and num_flips(result) == 0
    assert result.parity is not None and 0 < result.parity.max_abs_diff < 1e-5
    assert {size: len(rates) for size, rates in result.rates.items()} == {1: 1, 64: 1}
    assert 0.1 < result.ratios(64)[0] < 10


@pytest.mark.slow
def test_answers_that_are_deliberately_wrong_fail(outcome: Outcome) -> None:
    result = outcome(f"changed = lambda logits: -logits\n{OPEN}")
    assert verdict(result).startswith("FAIL: ")
    assert num_flips(result) > 60
    assert f"{num_flips(result)} class flips, worst test image " in verdict(result)


@pytest.mark.slow
def test_a_small_error_fails_without_a_flip(outcome: Outcome) -> None:
    result = outcome(f"changed = lambda logits: logits * 1.0005\n{OPEN}")
    assert verdict(result).startswith("FAIL: ")
    assert num_flips(result) == 0


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("sys.exit('no such kernel')", "Other ended with exit code 1: no such kernel"),
        ("raise ImportError('libcuda is missing')", "Other ended with exit code 1: ImportError: libcuda is missing"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "Other was killed by SIGSEGV: it said nothing"),
        ("harness._say(version='1')", "it wrote no logits: "),
        ("harness.np.save(sys.argv[3], harness.np.zeros((3, 3)))\nharness._say(version='1')", "its logits are float64"),
        (
            f"changed = lambda logits: logits\n{OPEN.replace('harness.serve', '(lambda _: 0)')}",
            "ended with exit code 0",
        ),
        (f"harness._rate = lambda *_: sys.exit('died')\nchanged = lambda logits: logits\n{OPEN}", "exit code 1: died"),
    ],
)
def test_runtime_that_crashes_is_a_row_with_its_last_words(outcome: Outcome, script: str, why: str) -> None:
    result = outcome(script)
    assert result.parity is None
    assert why in result.why
    assert f"absent: {result.why}" in table_from([result])


@pytest.mark.slow
def test_runtime_that_hangs_is_given_up_with_all_that_it_started(outcome: Outcome, tmp_path: Path) -> None:
    pid_path = tmp_path / "pid"
    child = f"open({str(pid_path)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))"
    script = f"import subprocess\n{child}\ntime.sleep(600)"
    limit_s = round(4 + 10 * import_s())  # enough to start what it starts, here and now
    result = outcome(script, limit_s=limit_s)
    assert result.why == f"Other took longer than {limit_s} s"
    wait_for(lambda: has_ended(int(pid_path.read_text())), 10)  # killed a moment ago


@pytest.mark.slow
def test_runtime_that_writes_over_its_model_has_a_copy(task: Task, outcome: Outcome) -> None:
    before = dict(task.models)
    outcome("open(sys.argv[1], 'wb').close()")
    assert dict(task.models) == before
    assert verdict(outcome(f"changed = lambda logits: logits\n{OPEN}")) == "pass"


def test_runtime_that_cannot_be_installed_is_a_row(task: Task, baseline: Session, tmp_path: Path) -> None:
    runtime = dataclasses.replace(RUNTIMES["tract"], packages=(str(tmp_path / "tract-9-py3-none-any.whl"),))
    result = measured(runtime, task, baseline)
    assert "cannot install" in result.why and "tract-9" in result.why


def test_without_npm_the_row_says_so(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceUnavailableError, match=r"NO_ENVIRONMENT: npm cannot install: .*No such file"):
        node_modules_with(("onnxruntime-web@1.30.0",), tmp_path / "web")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_script_that_fails_in_node_is_a_row_with_the_error(tmp_path: Path) -> None:
    script = str(measure.SCRIPTS / "onnxruntime_web.mjs")
    command = ["node", script, str(tmp_path), "model", "images", "logits", str(tmp_path)]
    with (
        pytest.raises(ProgramError, match=r"ended with exit code 1: Error: Cannot find module 'onnxruntime-web'"),
        session("ONNX Runtime Web", command, tmp_path, 60),
    ):
        pass


def test_version_without_a_program_says_so(task: Task, baseline: Session) -> None:
    models = {ONNX_NAME: task.models[ONNX_NAME]}
    result = measured(RUNTIMES["pytorch"], dataclasses.replace(task, models=models), baseline)
    assert result.why == "the version has no model.pt2"


def wheel_in(directory: Path) -> str:
    """Writes a package that pip installs without a network: one module of 1,000 bytes."""
    path, about = directory / "tiny-1.0-py3-none-any.whl", "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny.py", "#" * 1000)
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return str(path)


@pytest.mark.slow
def test_environment_is_made_once_and_anew_for_other_packages(tmp_path: Path) -> None:
    wheel, environment = wheel_in(tmp_path), tmp_path / "environment"
    python = python_with((wheel,), environment)
    (environment / "kept").touch()
    assert python_with((wheel,), environment) == python
    assert (environment / "kept").exists()
    assert 0.001 <= size_mb(environment) < 0.1
    with pytest.raises(ResourceUnavailableError):
        python_with((wheel, str(tmp_path / "none-9-py3-none-any.whl")), environment)
    assert not (environment / "kept").exists()
    assert python_with((wheel,), environment) == python


def test_report_has_a_row_for_each_framework_of_the_tutorials_table(task: Task) -> None:
    results = [Result(runtime=runtime, why="not tried") for runtime in RUNTIMES.values()]
    report = markdown_from(results, task, {"cpu": "c", "python": "p", "packages": "k"}, "2026-01-01").decode()
    rows = [line.split(" | ")[0].strip("| ") for line in report.splitlines() if line.startswith("| ")]
    tutorial = {"PyTorch", "TensorFlow", "Caffe", "JAX", "MXNet", "PaddlePaddle", "MMDetection"}
    assert set(rows) >= tutorial
    assert ABSENT.keys() == {"Caffe", "MMDetection"}
    document = json.loads(json_from(results, task, {}, "2026-01-01"))
    assert [row["passed"] for row in document["runtimes"]] == [False] * len(RUNTIMES)


def test_unknown_runtime_and_no_repeats_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(main, ["--only", "openvino,none"]) == 2
    assert "BAD_OPTIONS: --only has none (of pytorch, " in capsys.readouterr().err
    assert run_program(main, ["--repeats", "0"]) == 2
    assert "BAD_OPTIONS: --repeats is 0 (it must be 1 or more)" in capsys.readouterr().err


@pytest.mark.slow
def test_netron_shows_the_exported_graph(job: Job) -> None:
    port = free_port()
    options = ["--repository", str(job.repository), "--port", str(port)]
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    command, environment = [sys.executable, "-m", "export.look", *options], os.environ | {"BROWSER": "true"}
    looking = subprocess.Popen(command, process_group=0, stderr=subprocess.PIPE, env=environment)
    signal.signal(signal.SIGINT, previous)
    try:
        shown = answer_of(f"http://localhost:{port}/data/{ONNX_NAME}", looking)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(looking.pid, signal.SIGINT)
        looking.communicate(timeout=30)
    assert shown == (job.version_dir / ONNX_NAME).read_bytes()


def answer_of(url: str, server: "subprocess.Popen[bytes]") -> bytes:
    """Waits for a page; skips if its server cannot be installed here."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
                return bytes(answer.read())
        except OSError:
            time.sleep(0.2)
    said = (server.stderr.read() if server.stderr else b"").decode()
    assert "NO_ENVIRONMENT" in said and not os.environ.get("ATELIER_REQUIRE_RUNTIMES"), said
    pytest.skip(f"needs the package index, once: {said}")


@pytest.mark.slow
def test_openvino_opencv_and_tract_give_the_served_models_answers(
    job: Job, data: FashionMNIST, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On a thousand images, for `make runtimes` takes all. Installed in .cache/runtimes, once there is a network."""
    write_first_images(tmp_path / "data", data, num_train=10, num_test=1000)
    where = ["--repository", str(job.repository), "--checkpoint-dir", str(job.checkpoint_dir)]
    where += ["--data-dir", str(tmp_path / "data"), "--unverified-data"]
    names = ("openvino", "opencv", "tract")
    only = ["--only", ",".join(names), "--repeats", "1", "--report-dir", str(tmp_path / "new")]
    assert run_program(main, [*where, *only]) == 0, capsys.readouterr().err
    [report] = (tmp_path / "new").glob("*.json")
    rows = {row["runtime"]["title"]: row for row in json.loads(report.read_bytes())["runtimes"]}
    assert rows.pop(OURS.title)["passed"]
    missing = [row["why"] for row in rows.values() if "cannot install" in row["why"]]
    if missing and not os.environ.get("ATELIER_REQUIRE_RUNTIMES"):
        pytest.skip(f"needs the package index, once: {missing[0]}")
    assert {title: row["why"] for title, row in rows.items() if not row["passed"]} == {}
    assert all(row["class_flips"] == 0 for row in rows.values())
    assert all(row["parity"]["num_compared"] == 2 * 1000 * 10 for row in rows.values())
