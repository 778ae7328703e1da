"""`make bench`: Classify beside a bare gRPC echo server and raw ONNX Runtime, on this machine, in one run.

Absolute figures move with whatever else the machine does, so each repeat measures every contender in turn and what
counts is the ratio within a repeat. Load comes from outside Python: h2load (Debian's nghttp2-client) speaks
HTTP/2, but takes an HTTP 200 with a failing grpc-status for a success; so the server's own count of answers must equal
what was sent.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from loadtest.server_process import ServerProcess, server_process
from protos import classifier_pb2 as pb
from serving.backends.base import IMAGE_SHAPE
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.client import Client
from serving.errors import MissingInputError, ProgramError, ResourceUnavailableError
from serving.manifest import ONNX_NAME, list_versions, load_manifest, read_verified

CLASSIFY = "/atelier.v1.Classifier/Classify"
PACKAGES = ("grpcio", "onnxruntime", "numpy", "protobuf")


@dataclass(frozen=True, kw_only=True)
class Load:
    """One kind of request, offered in a closed loop."""

    images_per_request: int
    num_clients: int
    in_flight_per_client: int
    num_requests: int

    @property
    def message(self) -> bytes:
        """A ClassifyRequest of random images (seeded), serialised."""
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (self.images_per_request, *IMAGE_SHAPE), np.uint8)
        return pb.ClassifyRequest(images=images.tobytes()).SerializeToString()


SINGLE = Load(images_per_request=1, num_clients=16, in_flight_per_client=8, num_requests=20_000)
BATCHED = Load(images_per_request=64, num_clients=8, in_flight_per_client=4, num_requests=2_000)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: the served model over a yardstick, per repeat."""

    name: str
    target: float | None
    served: list[float]
    yardstick: list[float]

    @property
    def ratios(self) -> list[float]:
        """Served over yardstick within each repeat."""
        return [served / yardstick for served, yardstick in zip(self.served, self.yardstick, strict=True)]

    def __str__(self) -> str:
        low, middle, high = min(self.ratios), statistics.median(self.ratios), max(self.ratios)
        verdict = "" if self.target is None else f"{self.target:.2f}   {'met' if middle >= self.target else 'MISSED'}"
        served, yardstick = statistics.median(self.served), statistics.median(self.yardstick)
        figures = f"{served:>10,.0f} {yardstick:>10,.0f}   {middle:.2f} ({low:.2f} to {high:.2f})"
        return f"{self.name:<58} {figures}   {verdict}".rstrip()


def requests_per_s(server: ServerProcess, load: Load, scale: float) -> float:
    """Offers a load with h2load until it is answered. Raises ProgramError where a request failed."""
    num_requests = max(load.num_clients, int(load.num_requests * scale))
    message = load.message
    with tempfile.NamedTemporaryFile() as body:
        body.write(b"\0" + struct.pack(">I", len(message)) + message)  # gRPC's frame: uncompressed, length, message
        body.flush()
        command = ["h2load", f"--clients={load.num_clients}", f"--max-concurrent-streams={load.in_flight_per_client}"]
        command += [f"--requests={num_requests}", f"--data={body.name}"]
        command += ["--header=content-type: application/grpc", "--header=te: trailers"]
        done = subprocess.run([*command, f"http://{server.target}{CLASSIFY}"], capture_output=True, text=True)  # noqa: S603
    rate = re.search(r"finished in .*, ([\d.]+) req/s", done.stdout)
    if (
        done.returncode
        or rate is None
        or f" {num_requests} succeeded, 0 failed, 0 errored, 0 timeout" not in done.stdout
    ):
        raise ProgramError("LOAD_FAILED", f"h2load: {done.stdout[-500:]} {done.stderr[-500:]}")
    return float(rate[1])


def raw_images_per_s(backend: OnnxRuntimeBackend, batch_size: int, scale: float) -> float:
    """ONNX Runtime in this process, with nothing around it."""
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *IMAGE_SHAPE), np.uint8)
    num_batches = max(1, int(2_000 * scale))
    for _ in range(num_batches // 10):
        backend.infer(images)
    started_s = time.perf_counter()
    for _ in range(num_batches):
        backend.infer(images)
    return num_batches * batch_size / (time.perf_counter() - started_s)


def measure(repository: Path, repeats: int, scale: float) -> tuple[list[Row], str]:
    """Runs every contender `repeats` times, in turn; the rows, and what the server said at its end."""
    model_dir = repository / "lenet5"
    versions = list_versions(model_dir)
    if not versions:
        raise MissingInputError("NO_MODEL", f"there is no version in {model_dir}", "make export writes one")
    version_dir = model_dir / str(versions[-1])
    raw = OnnxRuntimeBackend(read_verified(version_dir, load_manifest(version_dir), ONNX_NAME), max_batch_size=64)
    settings = ("--repository", str(repository), "--port", "0", "--backend", "onnxruntime", "--device", "cpu")
    with ExitStack() as stack:
        served = stack.enter_context(server_process("serving", *settings, "--num-threads", "1"))
        reply_bytes = _reply_bytes(served)
        echo_module, size = "loadtest.echo_server", ("--reply-bytes", str(reply_bytes))
        echo = stack.enter_context(server_process(echo_module, *size))
        fast_echo = stack.enter_context(server_process(echo_module, *size, "--uvloop"))
        contenders: dict[str, Callable[[], float]] = {
            "echo, 1": lambda: requests_per_s(echo, SINGLE, scale),
            "echo on uvloop, 1": lambda: requests_per_s(fast_echo, SINGLE, scale),
            "served, 1": lambda: requests_per_s(served, SINGLE, scale),
            "raw, 64": lambda: raw_images_per_s(raw, 64, scale),
            "served, 64": lambda: requests_per_s(served, BATCHED, scale) * 64,
        }
        for contender in contenders.values():  # warm-up, not counted
            contender()
        figures: dict[str, list[float]] = {name: [] for name in contenders}
        with tqdm(total=repeats * len(contenders), unit="run", disable=None) as progress:
            for _ in range(repeats):
                for name, contender in contenders.items():
                    progress.set_description(name)
                    figures[name].append(contender())
                    progress.update()
        served.stop()
    return [
        Row(
            name="1 image a request, 128 in flight: requests/s over echo",
            target=0.70,
            served=figures["served, 1"],
            yardstick=figures["echo, 1"],
        ),
        Row(
            name="the same, over echo on uvloop, which serving runs on",
            target=None,
            served=figures["served, 1"],
            yardstick=figures["echo on uvloop, 1"],
        ),
        Row(
            name="64 images a request, 32 in flight: images/s over raw",
            target=0.75,
            served=figures["served, 64"],
            yardstick=figures["raw, 64"],
        ),
    ], served.output


def _reply_bytes(served: ServerProcess) -> int:
    """Size of the answer to one image, so that the echo server sends as much."""
    with Client(served.target) as client:
        answer = client.classify(np.zeros(IMAGE_SHAPE, np.uint8))
    label = answer.classifications[0][0]
    prediction = pb.Prediction(label=label.label, name=label.name, probability=label.probability)
    reply = pb.ClassifyResponse(model_name=answer.model_name, model_version=answer.model_version)
    reply.classifications.add().predictions.append(prediction)
    reply.time.queue_us, reply.time.inference_us = answer.queue_us, answer.inference_us
    return reply.ByteSize()


def check_count(output: str, repeats: int, scale: float) -> int:
    """The server's count of answers, which must be what was sent. Raises ProgramError where it is not."""
    sent = 1 + sum((repeats + 1) * max(load.num_clients, int(load.num_requests * scale)) for load in (SINGLE, BATCHED))
    found = re.search(r"answered (\d+) requests", output)
    if found is None or int(found[1]) != sent:
        raise ProgramError("LOST_ANSWERS", f"{sent} requests were sent, the server says: {output[-300:]}")
    return sent


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    cpu = model[1] if model else platform.processor()
    return {"cpu": f"{cpu}, {os.cpu_count()} cores", "python": platform.python_version(), "packages": packages}


def main(arguments: list[str]) -> int:
    """`python -m loadtest.bench`."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path("artifacts/models"), help="what export wrote")
    parser.add_argument("--repeats", type=int, default=7, help="how often each contender runs, in turn (default 7)")
    parser.add_argument("--scale", type=float, default=1.0, help="fewer requests for a rehearsal: 0.05 (default 1)")
    parser.add_argument("--report", type=Path, help="also write the figures as JSON: reports/bench-<date>.json")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    settings = parser.parse_args(arguments)
    if shutil.which("h2load") is None:
        raise ResourceUnavailableError("NO_H2LOAD", "h2load is not installed", "apt-get install nghttp2-client")
    rows, output = measure(settings.repository, settings.repeats, settings.scale)
    sent = check_count(output, settings.repeats, settings.scale)
    facts = machine()
    print(f"{facts['cpu']}; Python {facts['python']}; {facts['packages']}")
    print(f"{settings.repeats} repeats after one warm-up; {sent} requests sent, all of them answered; medians\n")
    print(f"{'':<58} {'served':>10} {'yardstick':>10}   ratio (lowest to highest)   target")
    print(*rows, sep="\n")
    if settings.report:
        document = {"machine": facts, "repeats": settings.repeats, "warm_ups": 1, "requests": sent}
        document |= {
            "loads": {"single": asdict(SINGLE), "batched": asdict(BATCHED)},
            "rows": [asdict(row) for row in rows],
        }
        settings.report.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    import sys

    from serving.errors import run_program

    sys.exit(run_program(main))
