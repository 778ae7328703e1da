"""`python -m loadtest` as a user runs it: the real model, real servers, the verdict and the reports."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from loadtest.server_process import server_process
from tests.conftest import Job, command
from tests.sealed_files import edit_sealed

BRIEF = ("--repeats", 1, "--duration-s", 0.2, "--latency-p99-ms", 1000)
# On a busy machine the generator may be late, and a short run may have too few requests: that is INVALID, not FAIL.
PASS_OR_INVALID = (0, 75)

pytestmark = pytest.mark.slow


def test_one_command_ends_with_the_verdict_and_both_reports(job: Job, tmp_path: Path) -> None:
    done = command("loadtest", "--repository", job.repository, "--report-dir", tmp_path, *BRIEF, "--processes", 2)
    assert done.returncode in PASS_OR_INVALID, done.stdout + done.stderr
    printed = done.stdout
    for row in ("PyTorch, 1 at a time", "ONNX Runtime, 64 at a time", "echo single_stream", "served offline"):
        assert re.search(rf"^\| {row} +\| [\d,]+ +\| [\d,]+ +(\| [\d.]+ +){{3}}", printed, re.MULTILINE), printed
    assert re.search(r"^\| single_stream .*\| 1\.0 +\|$", printed, re.MULTILINE), printed
    for part in (
        "right, 0 wrong, 0 lost, 0 refused; each compared with PyTorch's logits",
        "Images/s of the served model",
        "queue",
    ):
        assert part in printed
    assert re.search(r"^(PASS|INVALID): ", printed, re.MULTILINE)

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] in ("PASS", "INVALID")
    assert len(report["scenarios"]) == 8
    for row in report["scenarios"]:
        assert row["all"]["requests"]["wrong"] == row["all"]["requests"]["lost"] == 0
        assert row["all"]["requests"]["correct"] > 0
        assert all("result_validity" in result for result in row["all"]["loadgen"])
        told = row["all"]["images"] if row["contender"] == "served" else 0
        assert sum(row["all"]["batch_sizes"].values()) == told
    offered = [run["target_qps"] for run in report["sweep"]]
    assert offered == sorted(offered)
    assert offered[-1] == pytest.approx(8 * offered[0])
    assert set(report["batch_rates"]) == {"PyTorch", "ONNX Runtime", "served"}

    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg ") == 3
    assert "@media print" in page
    assert 'name="viewport"' in page
    # Self-contained: the only addresses are the names of SVG's own vocabularies.
    assert set(re.findall(r"https?://[^\"'\s)<]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"<(script|link|img|iframe)", page)


def test_any_server_of_the_open_inference_protocol_can_be_held_beside_it(job: Job, tmp_path: Path) -> None:
    options = ("--protocol", "oip", "--measure", "single_stream,offline")
    with server_process("tests.loadtest.oip_server", str(job.version_dir)) as server:
        done = command(
            "loadtest",
            "--target",
            server.target,
            "--repository",
            job.repository,
            "--report-dir",
            tmp_path,
            *options,
            *BRIEF,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lenet5 on onnxruntime_onnx by the Open Inference Protocol" in done.stdout
    assert ", 0 wrong, 0 lost, 0 refused" in done.stdout


def num_answered(loadtest: psutil.Process) -> int:
    """Requests that the server under it has answered, by its metrics page, on whichever port that is."""
    for process in loadtest.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            for port in {
                each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN
            }:
                with contextlib.suppress(OSError, HTTPException):  # that one speaks gRPC
                    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
                    found = re.search(r'^atelier_requests_total\{code="OK",method="Classify"\} (\S+)', page, re.M)
                    return int(float(found[1])) if found else 0
    return 0


def test_ctrl_c_keeps_what_was_measured_and_leaves_nothing_behind(job: Job, tmp_path: Path) -> None:
    options = ["--measure", "server", "--repeats", "1", "--duration-s", "60", "--target-qps", "200"]
    options += ["--latency-p99-ms", "1000"]
    arguments = ["--repository", str(job.repository), "--report-dir", str(tmp_path), *options]
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtest", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, previous)
    assert process.stdout is not None
    while "against PyTorch's logits" not in process.stdout.readline():
        assert process.poll() is None
    while num_answered(psutil.Process(process.pid)) < 500:  # half a second of warm-up, and some of the minute
        assert process.poll() is None
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2  # a server and a generator
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, printed + errors
    assert "INTERRUPTED" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    (row,) = report["scenarios"]
    assert row["all"]["interrupted"]
    assert 100 < row["all"]["requests"]["correct"] < 200 * 60
    assert row["all"]["requests"]["lost"] == 0
    assert row["all"]["milliseconds"]["latency"]["p50"] * 10 > 1.0
    assert (tmp_path / "report.html").exists()
    _, left = psutil.wait_procs(children, timeout=60)
    assert [child.cmdline() for child in left] == []


def test_server_of_another_model_is_refused(job: Job, tmp_path: Path) -> None:
    manifest = json.loads((job.version_dir / "manifest.json").read_text())
    other = tmp_path / "models" / "lenet5" / "1"
    other.mkdir(parents=True)
    for path in job.version_dir.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    edit_sealed(other / "manifest.json", lambda document: document.update(checkpoint_sha256="0" * 64))
    with server_process("serving", "--repository", str(job.repository), "--port", "0", "--device", "cpu") as server:
        done = command("loadtest", "--target", server.target, "--repository", tmp_path / "models")
    assert done.returncode == 78
    assert "OTHER_MODEL" in done.stderr
    assert manifest["checkpoint_sha256"][:12] in done.stderr
