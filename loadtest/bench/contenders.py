"""Contenders of the bench: the front ends of the server, bare echo servers, the raw runtime."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from atelier.errors import ProgramError, ResourceUnavailableError
from atelier.wire import OPEN_INFERENCE
from loadtest.backend_speed import random_images
from loadtest.bench import paced_server
from loadtest.bench.h2load import CLASSIFY, PREFIX_BYTES, Target, ask, classify_body, infer_body
from loadtest.bench.paced_server import PACE
from loadtest.front_ends import GRPCIO, available_front_ends
from loadtest.load.protocols import Classify, Reference
from loadtest.reference import FP32_ATOL, logits_of
from loadtest.server_process import ServerProcess, comes_true, program_process, server_process
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.manifest import ONNX_NAME, find_version, read_verified

CPP_ECHO, PYTHON_ECHO = "C++ echo", "Python echo"
INFER = "ModelInfer"
NUM_IMAGES = 256  # that are sent past saturation, each with an answer of its own
COUNT_TIMEOUT_S = 5.0  # until the metrics page has the last answers
SOURCE = Path(__file__).with_name("echo.cc")
CACHE_DIR = Path(".cache") / "bench"
# What else is to be linked differs from release to release: the linker follows what the libraries need.
COMPILE = ("-O2", "-std=c++17", "-Wl,--copy-dt-needed-entries")
LIBRARIES = ("-lgrpc++", "-lgrpc", "-lgpr")


@dataclass(frozen=True)
class Contenders:
    """Our servers, by front end; all that h2load can ask, by name; and the runtime alone, in this process."""

    served: dict[str, ServerProcess]
    targets: dict[str, Target]
    raw: OnnxRuntimeBackend


@contextmanager
def contenders_from(repository: Path) -> Iterator[Contenders]:
    """Starts our servers, on the newest version of the repository, and the echo servers, and asks the first once."""
    version_dir, manifest = find_version(repository)
    raw = OnnxRuntimeBackend(read_verified(version_dir, manifest, ONNX_NAME), max_batch_size=64)
    with ExitStack() as stack:
        served = {
            name: stack.enter_context(serving(repository, "--front-end", name))
            for name in reversed(available_front_ends())
        }
        targets = {name: target_of(name, server) for name, server in served.items()}
        reply_bytes = len(ask(targets[GRPCIO], random_images(1)))
        python_echo = server_process("loadtest.echo_server", str(reply_bytes - PREFIX_BYTES))
        targets |= {f"{name}, {INFER}": infer_target_of(name, server) for name, server in served.items()}
        for name, echo in ((CPP_ECHO, cpp_echo(reply_bytes - PREFIX_BYTES)), (PYTHON_ECHO, python_echo)):
            targets[name] = target_of(name, stack.enter_context(echo), reply_bytes)
        yield Contenders(served, targets, raw)


@contextmanager
def paced_servers(repository: Path) -> Iterator[dict[str, ServerProcess]]:
    """Starts our servers on devices of a known pace, by front end and pace."""
    with ExitStack() as stack:
        yield {
            f"{name}, {PACE}": stack.enter_context(
                serving(repository, "--front-end", name, module=paced_server.__name__)
            )
            for name in reversed(available_front_ends())
        }


def serving(repository: Path, *arguments: str, module: str = "serving") -> AbstractContextManager[ServerProcess]:
    """Runs a server of the newest version, in ONNX Runtime on the CPU, one thread an inference.

    The system chooses its ports, that of its metrics too.
    """
    settings = ("--repository", str(repository), "--port", "0", "--backend", "onnxruntime", "--device", "cpu")
    return server_process(module, *settings, "--num-threads", "1", *arguments)


def target_of(name: str, server: ServerProcess, reply_bytes: int | None = None) -> Target:
    """Says how h2load asks a server for Classify."""
    url = f"http://{server.target}{CLASSIFY}"
    return Target(name=name, pid=server.process.pid, url=url, body_for=classify_body, reply_bytes=reply_bytes)


def infer_target_of(name: str, server: ServerProcess) -> Target:
    """Says how h2load asks the same server by the Open Inference Protocol."""
    url = f"http://{server.target}/{OPEN_INFERENCE}/{INFER}"
    return Target(name=f"{name}, {INFER}", pid=server.process.pid, url=url, body_for=infer_body)


def protocol_of(server: ServerProcess, raw: OnnxRuntimeBackend) -> Classify:
    """Says how single images are sent and judged: by the raw runtime's logits of random images, no two alike."""
    images = random_images(NUM_IMAGES)
    reference = Reference(images=images, logits=logits_of(raw, images), atol=FP32_ATOL)
    return Classify(target=server.target, reference=reference)


def check_count(server: ServerProcess, num_sent: int) -> int:
    """Compares the answers on the server's metrics page with what was sent. Raises ProgramError if they differ."""

    def num_answered() -> int:
        return int(server.metric("atelier_requests_total", method="Classify", code="OK"))

    if not comes_true(lambda: num_answered() == num_sent, COUNT_TIMEOUT_S):
        raise ProgramError("LOST_ANSWERS", f"{num_sent} requests were sent, the server answered {num_answered()}")
    return num_sent


def cpp_echo(reply_bytes: int) -> AbstractContextManager[ServerProcess]:
    """Runs the server, which answers Classify with so many bytes. Raises as `compiled`."""
    return program_process([str(compiled()), str(reply_bytes), CLASSIFY])


def compiled(cache_dir: Path = CACHE_DIR) -> Path:
    """Returns the program. Raises ResourceUnavailableError NO_CPP_GRPC if the compiler or gRPC's library is missing."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    program = cache_dir / f"echo-{digest}"
    if program.exists():
        return program
    cache_dir.mkdir(parents=True, exist_ok=True)
    unfinished = cache_dir / f".{program.name}.{os.getpid()}"  # two benches may compile at once
    command = ["g++", *COMPILE, str(SOURCE), "-o", str(unfinished), *LIBRARIES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # noqa: S603
        why = next((line for line in done.stderr.splitlines() if "error:" in line), done.stderr[-300:])
        is_compiled = done.returncode == 0
    except OSError as error:
        is_compiled, why = False, f"g++: {error.strerror}"
    if not is_compiled:
        cure = "Debian: apt-get install g++ libgrpc++-dev"
        raise ResourceUnavailableError("NO_CPP_GRPC", "the C++ echo server cannot be compiled", cure, why=why)
    unfinished.replace(program)
    return program
