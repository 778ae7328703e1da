"""Who runs beside whom: the served model, bare echo servers, and the raw runtime; and what is measured of each."""

import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import numpy as np

from atelier.channel import proxy_options
from atelier.client import Client
from atelier.contract import IMAGE_SHAPE
from atelier.errors import MissingInputError, ProgramError
from atelier.wire import classifier_pb2 as pb
from loadtest.bench.h2load import BATCHED, CLASSIFY, SINGLE, Generator
from loadtest.server_process import ServerProcess, server_process
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.manifest import ONNX_NAME, list_versions, load_manifest, read_verified

# One measurement: its figures by name.
Step = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Contenders:
    """The servers of a run, by name, and the runtime alone, in this process, on one thread."""

    servers: dict[str, ServerProcess]
    raw: OnnxRuntimeBackend


@contextmanager
def contenders_from(repository: Path) -> Iterator[Contenders]:
    """Starts the servers, on the newest version of the repository. Raises MissingInputError where there is none."""
    model_dir = repository / "lenet5"
    versions = list_versions(model_dir)
    if not versions:
        raise MissingInputError("NO_MODEL", f"there is no version in {model_dir}", "make export writes one")
    version_dir = model_dir / str(versions[-1])
    raw = OnnxRuntimeBackend(read_verified(version_dir, load_manifest(version_dir), ONNX_NAME), max_batch_size=64)
    with ExitStack() as stack:
        served = stack.enter_context(serving(repository))  # as `make serve` starts it, with metrics
        unmeasured = stack.enter_context(serving(repository, "--metrics-port", "0"))
        alone = stack.enter_context(serving(repository, "--workers", "1"))  # one process, as the echo servers are
        size = ("--reply-bytes", str(_reply_bytes(served)))
        echo = stack.enter_context(server_process("loadtest.echo_server", *size))
        fast_echo = stack.enter_context(server_process("loadtest.echo_server", *size, "--uvloop"))
        servers = {"served": served, "served without metrics": unmeasured, "served by one": alone}
        yield Contenders(servers | {"echo": echo, "echo on uvloop": fast_echo}, raw)


def serving(repository: Path, *arguments: str) -> AbstractContextManager[ServerProcess]:
    """A server of the newest version, in ONNX Runtime on the CPU, one thread an inference.

    The system chooses its ports, that of its metrics too.
    """
    settings = ("--repository", str(repository), "--port", "0", "--backend", "onnxruntime", "--device", "cpu")
    return server_process("serving", *settings, "--num-threads", "1", *arguments)


def steps(contenders: Contenders, generator: Generator, scale: float) -> dict[str, Step]:
    """What one repeat measures, in this order."""
    servers = contenders.servers
    num_calls = max(20, int(1000 * scale))
    return {
        **{f"{name}, 1 image": partial(_single, generator, name, servers[name]) for name in servers},
        "raw, 64 images": lambda: {"raw, 64": _raw_images_per_s(contenders.raw, 64, num_calls)},
        **{
            f"{name}, 64 images": partial(_batched, generator, name, servers[name])
            for name in ("served", "served by one")
        },
        **{
            f"{name}, one call": partial(_one_by_one, generator, name, servers[name], num_calls)
            for name in ("served", "echo on uvloop")
        },
        "raw, 1 image": lambda: {"raw, 1, us": 1e6 / _raw_images_per_s(contenders.raw, 1, num_calls)},
    }


def seconds_to_first_answer(repository: Path) -> float:
    """From the start of the process."""
    started_s = time.monotonic()
    with serving(repository) as server, Client(server.target) as client:
        client.classify(np.zeros(IMAGE_SHAPE, np.uint8))
        return time.monotonic() - started_s


def check_count(server: ServerProcess, num_sent: int) -> int:
    """Stops the server; its count of answers must be what was sent. Raises ProgramError where it is not."""
    server.stop()
    found = re.search(r"answered (\d+) requests", server.output)
    if found is None or int(found[1]) != num_sent:
        raise ProgramError("LOST_ANSWERS", f"{num_sent} requests were sent, the server says: {server.output[-300:]}")
    return num_sent


def _single(generator: Generator, name: str, server: ServerProcess) -> dict[str, float]:
    outcome = generator.offer(server, SINGLE)
    return {f"{name}, 1": outcome.requests_per_s, f"{name}, CPU": outcome.cpu_s_per_1000}


def _batched(generator: Generator, name: str, server: ServerProcess) -> dict[str, float]:
    return {f"{name}, 64": generator.offer(server, BATCHED).requests_per_s * 64}


def _one_by_one(generator: Generator, name: str, server: ServerProcess, num_calls: int) -> dict[str, float]:
    """The median time of a call when nothing else is under way, in microseconds."""
    generator.count(server, num_calls)
    message, times_s = SINGLE.message, []
    with grpc.insecure_channel(server.target, options=proxy_options(server.target)) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CLASSIFY)
        for _ in range(num_calls):
            started_s = time.perf_counter()
            call(message)
            times_s.append(time.perf_counter() - started_s)
    return {f"{name}, p50, us": statistics.median(times_s) * 1e6}


def _raw_images_per_s(backend: OnnxRuntimeBackend, batch_size: int, num_batches: int) -> float:
    """ONNX Runtime in this process, with nothing around it."""
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *IMAGE_SHAPE), np.uint8)
    for _ in range(max(1, num_batches // 10)):
        backend.infer(images)
    started_s = time.perf_counter()
    for _ in range(num_batches):
        backend.infer(images)
    return num_batches * batch_size / (time.perf_counter() - started_s)


def _reply_bytes(served: ServerProcess) -> int:
    """Size of the answer to one image, so that the echo servers send as much."""
    with grpc.insecure_channel(served.target, options=proxy_options(served.target)) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CLASSIFY)
        return len(call(pb.ClassifyRequest(images=bytes(784)).SerializeToString()))
