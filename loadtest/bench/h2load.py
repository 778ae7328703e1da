"""Load from outside Python: h2load, of Debian's nghttp2-client.

It stays beside LoadGen's clients: it costs the shared cores least, asks every contender alike, and speaks HTTP/1.1.
It speaks HTTP and knows nothing of gRPC: it takes an HTTP 200 with a failing grpc-status for a success. So whoever
uses it compares the server's own count of answers with what was sent, or has it count the answers' bytes.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
from numpy.typing import NDArray

from atelier.channel import proxy_options
from atelier.contract import Images
from atelier.errors import ProgramError, ResourceUnavailableError
from atelier.wire import SERVICE
from atelier.wire import classifier_pb2 as pb
from atelier.wire import open_inference_pb2 as oip
from loadtest.attack.http2 import message
from loadtest.backend_speed import random_images
from loadtest.processes import cpu_s
from serving.manifest import MODEL_NAME

CLASSIFY = f"/{SERVICE}/Classify"
GRPC = ("content-type: application/grpc", "te: trailers")
PREFIX_BYTES = 5  # of a gRPC message
TIMEOUT_S = 900


@dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """One kind of request, offered in a closed loop for so long, or so many times."""

    images_per_request: int
    num_clients: int
    in_flight_per_client: int
    seconds: float = 2.0
    num_requests: int | None = None


ALONE = ClosedLoop(images_per_request=1, num_clients=1, in_flight_per_client=1, seconds=1.0)
SINGLE = ClosedLoop(images_per_request=1, num_clients=16, in_flight_per_client=8)
BATCHED = ClosedLoop(images_per_request=64, num_clients=8, in_flight_per_client=4)
MILLION = ClosedLoop(images_per_request=64, num_clients=8, in_flight_per_client=4, num_requests=15_625)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server and how it is asked: by POST over HTTP/1.1, one request at a time on a connection, or over HTTP/2."""

    name: str
    pid: int
    url: str
    body_for: Callable[[Images], bytes]  # the whole body of a request
    headers: tuple[str, ...] = GRPC
    is_http1: bool = False
    reply_bytes: int | None = None  # the body of every right answer to one image; None if their sizes differ


@dataclass(frozen=True)
class LoadOutcome:
    """Outcome of a load."""

    requests_per_s: float
    cpu_us: float  # of each request: user and system time of all the server's processes
    p50_ms: float
    p99_ms: float


def classify_body(images: Images) -> bytes:
    """Returns the body of a ClassifyRequest."""
    return message(pb.ClassifyRequest(images=images.tobytes()).SerializeToString())


def infer_body(images: Images) -> bytes:
    """Returns the body of a ModelInferRequest that names no outputs."""
    request = oip.ModelInferRequest(model_name=MODEL_NAME)
    request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    request.raw_input_contents.append(images.tobytes())
    return message(request.SerializeToString())


def ask(target: Target, image: Images) -> bytes:
    """Returns the body of the answer. Raises OSError or HTTPException if there is none."""
    url, body = urlsplit(target.url), target.body_for(image)
    if target.is_http1:
        headers = dict(header.split(": ", 1) for header in target.headers)
        with closing(HTTPConnection(url.netloc, timeout=10)) as connection:
            connection.request("POST", url.path, body, headers)
            reply = connection.getresponse()
            answer = reply.read()
        if reply.status != 200:
            raise ConnectionError(f"HTTP status {reply.status}: {answer[:200]!r}")
        return answer
    with grpc.insecure_channel(url.netloc, options=proxy_options(url.netloc)) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(url.path)
        try:
            return message(call(body[PREFIX_BYTES:], timeout=10))
        except grpc.RpcError as error:
            raise ConnectionError(f"{error.code().name}: {error.details()}") from None


class H2Load:
    """Offers loads and counts what it has sent, server by server. Raises ResourceUnavailableError without h2load."""

    def __init__(self, scale: float) -> None:
        if shutil.which("h2load") is None:
            raise ResourceUnavailableError("NO_H2LOAD", "h2load is not installed", "apt-get install nghttp2-client")
        self._scale = scale
        self._rates: dict[tuple[str, ClosedLoop], float] = {}  # requests/s of the last run
        self.num_sent: dict[str, int] = {}  # by the target's name

    def offer(self, target: Target, load: ClosedLoop) -> LoadOutcome:
        """Offers the load until all is answered. Raises ProgramError LOAD_FAILED if a request failed on the way.

        How many requests fill the time, the last run tells; before the first one a short one does.
        """
        if load.num_requests is None and (target.name, load) not in self._rates:
            self._run(target, load, 4 * load.num_clients * load.in_flight_per_client)
        wanted = load.num_requests or self._rates[target.name, load] * load.seconds
        return self._run(target, load, max(load.num_clients * load.in_flight_per_client, int(wanted * self._scale)))

    def _run(self, target: Target, load: ClosedLoop, num_requests: int) -> LoadOutcome:
        self.num_sent[target.name] = self.num_sent.get(target.name, 0) + num_requests
        with tempfile.TemporaryDirectory(prefix="atelier-bench-") as directory:
            body, log = Path(directory, "body"), Path(directory, "log")
            body.write_bytes(target.body_for(random_images(load.images_per_request)))
            before_s = cpu_s(target.pid)
            command = _command(target, load, num_requests, body, log)
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)  # noqa: S603
            taken_s = cpu_s(target.pid) - before_s
            rate = _rate_from(done, target, load, num_requests)
            p50_us, p99_us = np.percentile(_times_us(log), (50, 99))
        self._rates[target.name, load] = rate
        return LoadOutcome(rate, taken_s / num_requests * 1e6, float(p50_us) / 1e3, float(p99_us) / 1e3)


def _command(target: Target, load: ClosedLoop, num_requests: int, body: Path, log: Path) -> list[str]:
    num_clients, in_flight = load.num_clients, load.in_flight_per_client
    if target.is_http1:
        num_clients, in_flight = num_clients * in_flight, 1
    command = ["h2load", f"--clients={num_clients}", f"--max-concurrent-streams={in_flight}"]
    command += [f"--requests={num_requests}", f"--data={body}", f"--log-file={log}"]
    command += ["--h1"] if target.is_http1 else []
    return [*command, *(f"--header={header}" for header in target.headers), target.url]


def _rate_from(done: "subprocess.CompletedProcess[str]", target: Target, load: ClosedLoop, num_requests: int) -> float:
    """Reads requests/s, once every request has an answer.

    What h2load calls success is an HTTP status of 2xx: it misses those without a reason phrase (TorchServe's), and
    takes a gRPC error for one. So it is the bytes of the answers that count, if they are known.
    """
    rate = re.search(r"finished in .*, ([\d.]+) req/s", done.stdout)
    found = re.search(r"\((\d+)\) data", done.stdout)
    is_answered = f" {num_requests} done, " in done.stdout and " 0 errored, 0 timeout" in done.stdout
    if target.reply_bytes is None or load.images_per_request > 1:
        is_answered &= f" {num_requests} succeeded, 0 failed" in done.stdout
    else:
        is_answered &= found is not None and int(found[1]) == num_requests * target.reply_bytes
    if done.returncode or rate is None or not is_answered:
        what = f"not all of {num_requests} requests to {target.name} were answered"
        raise ProgramError(
            "LOAD_FAILED", what, "see the server's log", why=f"{done.stdout[-500:]} {done.stderr[-500:]}"
        )
    return float(rate[1])


def _times_us(log: Path) -> NDArray[np.int64]:
    """Reads what each request took: the third column of h2load's log."""
    times: NDArray[np.int64] = np.loadtxt(log, np.int64, usecols=2, ndmin=1)
    return times
