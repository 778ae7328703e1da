"""Measures what one request of pictures costs a server, all its processes together."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psutil

from atelier.channel import proxy_options
from atelier.wire import SERVICE
from atelier.wire import classifier_pb2 as pb
from loadtest.processes import processes_of

CLEAR_PEAK = "5"  # of proc(5)'s clear_refs
DEADLINE_S = 20.0


class PictureCost(NamedTuple):
    """The cost of one request."""

    status: str  # OK, or the code and the word of the refusal
    cpu_ms: float
    grown_mb: float  # at the most, beyond what the processes held before


def picture_cost(target: str, pid: int, pictures: Sequence[bytes]) -> PictureCost:
    """Sends one request to the server whose first process is `pid`, on Linux; nothing else should ask it meanwhile."""
    message = pb.ClassifyRequest(pictures=pictures).SerializeToString()
    with grpc.insecure_channel(target, options=[("grpc.enable_retries", 0), *proxy_options(target)]) as channel:
        grpc.channel_ready_future(channel).result(DEADLINE_S)
        processes = processes_of(pid)
        for process in processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text(CLEAR_PEAK)
        held_bytes = sum(process.memory_info().rss for process in processes)
        began_s = sum(map(_cpu_s, processes))
        status = _status(channel, message)
        ended_s = sum(map(_cpu_s, processes_of(pid)))
        grown_bytes = sum(map(_peak_bytes, processes_of(pid))) - held_bytes
    return PictureCost(status, 1e3 * (ended_s - began_s), grown_bytes / (1 << 20))


def _status(channel: grpc.Channel, message: bytes) -> str:
    classify: Any = channel.unary_unary(f"/{SERVICE}/Classify")
    try:
        classify(message, timeout=DEADLINE_S)
        return "OK"
    except grpc.RpcError as error:
        return f"{error.code().name} {(error.details() or '').partition(':')[0]}"


def _cpu_s(process: psutil.Process) -> float:
    """Reads the process' own clock, which counts nanoseconds: (~pid << 3) | CPUCLOCK_SCHED, of all its threads."""
    with contextlib.suppress(OSError):
        return time.clock_gettime((~process.pid << 3) | 2)
    return 0.0


def _peak_bytes(process: psutil.Process) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)
