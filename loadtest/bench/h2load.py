"""Load from outside Python: h2load, of Debian's nghttp2-client.

It speaks HTTP/2 and knows nothing of gRPC: it takes an HTTP 200 with a failing grpc-status for a success. So whoever
uses it compares the server's own count of answers with what was sent.
"""

import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass

import numpy as np

from atelier.contract import IMAGE_SHAPE
from atelier.errors import ProgramError, ResourceUnavailableError
from atelier.wire import classifier_pb2 as pb
from loadtest.memory import processes_of
from loadtest.server_process import ServerProcess

CLASSIFY = "/atelier.v1.Classifier/Classify"


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
MILLION = Load(images_per_request=64, num_clients=8, in_flight_per_client=4, num_requests=15_625)


@dataclass(frozen=True)
class Outcome:
    """What a server made of a load."""

    requests_per_s: float
    cpu_s_per_1000: float  # user and system time of all its processes


class Generator:
    """Offers loads and counts what it has sent, server by server. Raises ResourceUnavailableError without h2load."""

    def __init__(self, scale: float) -> None:
        if shutil.which("h2load") is None:
            raise ResourceUnavailableError("NO_H2LOAD", "h2load is not installed", "apt-get install nghttp2-client")
        self._scale = scale
        self.num_sent: dict[str, int] = {}  # by target

    def count(self, server: ServerProcess, num_requests: int) -> None:
        """Notes requests that a server gets, whoever sends them."""
        self.num_sent[server.target] = self.num_sent.get(server.target, 0) + num_requests

    def offer(self, server: ServerProcess, load: Load) -> Outcome:
        """Until all is answered. Raises ProgramError where a request failed on the way."""
        num_requests = max(load.num_clients, int(load.num_requests * self._scale))
        self.count(server, num_requests)
        before_s = cpu_s(server)
        rate = _run(server.target, load, num_requests)
        return Outcome(rate, (cpu_s(server) - before_s) / num_requests * 1000)


def _run(target: str, load: Load, num_requests: int) -> float:
    message = load.message
    with tempfile.NamedTemporaryFile() as body:
        body.write(b"\0" + struct.pack(">I", len(message)) + message)  # gRPC's frame: uncompressed, length, message
        body.flush()
        command = ["h2load", f"--clients={load.num_clients}", f"--max-concurrent-streams={load.in_flight_per_client}"]
        command += [f"--requests={num_requests}", f"--data={body.name}"]
        command += ["--header=content-type: application/grpc", "--header=te: trailers"]
        done = subprocess.run([*command, f"http://{target}{CLASSIFY}"], capture_output=True, text=True)  # noqa: S603
    rate = re.search(r"finished in .*, ([\d.]+) req/s", done.stdout)
    succeeded = f" {num_requests} succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout
    if done.returncode or rate is None or not succeeded:
        raise ProgramError("LOAD_FAILED", f"h2load: {done.stdout[-500:]} {done.stderr[-500:]}")
    return float(rate[1])


def cpu_s(server: ServerProcess) -> float:
    """User and system time of all the server's processes so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes_of(server.process.pid))
