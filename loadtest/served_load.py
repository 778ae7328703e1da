"""The served model under load beside the PyTorch reference in this process: `python -m loadtest.served_load`.

Clients in processes of their own, each with its own connection, keep the server busy for some seconds: a closed loop.
Every answer's classes are compared with the reference's, except where the reference itself is near a tie. One JSON
document on stdout.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atelier.client import AsyncClient, ClassifyError
from atelier.contract import Images
from atelier.errors import BadDataError, ResourceUnavailableError, UsageError
from atelier.program import run_program
from loadtest.latency import measured, opened
from loadtest.memory import device_bytes_of, resident_bytes_of
from loadtest.server_process import server_process
from serving.backends.base import Backend
from training.dataset import load_dataset

TIE_MARGIN = 0.4  # the largest of the parity gate's, int8's
IN_FLIGHT = 32  # of all clients together
START_S = 0.2  # for a load to reach the clients, so that all begin at once; one that starts later begins late
TIMEOUT_S = 60.0  # of each request
MAX_CLIENTS = 8


def main(arguments: list[str]) -> int:
    """Prints the figures; 65 where an answer was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.served_load", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--repository", type=Path, default=Path("artifacts/models"), help="(%(default)s)")
    parser.add_argument("--reference", type=Path, help="repository of the fp32 version with the program (the same)")
    parser.add_argument("--device", default="auto", help="of the server (%(default)s)")
    parser.add_argument("--front-end", default="auto", help="of the server (%(default)s)")
    num_clients = max(1, min(MAX_CLIENTS, (os.cpu_count() or 1) // 2))
    parser.add_argument("--clients", type=int, default=num_clients, help="processes that ask it (%(default)s)")
    parser.add_argument("--reference-device", default="cpu", help="of the reference (%(default)s)")
    parser.add_argument("--images-per-request", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each repeat (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--data-dir", type=Path, help="where Fashion-MNIST lies")
    parser.add_argument("--unverified-data", action="store_true", help="for tests: any IDX files")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        raise UsageError("BAD_OPTIONS", f"--seconds is {options.seconds:g}", "it must be above 0")
    images = load_dataset(options.data_dir, verify=not options.unverified_data).test_images
    reference = opened(options.reference or options.repository, "torch", options.reference_device, 64)
    labels, is_decided = answers_of(reference, images)
    load = Load(images=images, labels=labels, is_decided=is_decided, images_per_request=options.images_per_request)
    settings = ["--repository", str(options.repository), "--port", "0", "--device", options.device]
    settings += ["--front-end", options.front_end]
    spawn = multiprocessing.get_context("spawn")  # grpc's threads do not survive a fork
    with server_process("serving", *settings) as server, ProcessPoolExecutor(options.clients, spawn) as clients:
        offer(clients, options.clients, server.target, load, 1.0)  # warm-up, not counted
        repeats = [
            offer(clients, options.clients, server.target, load, options.seconds) for _ in range(options.repeats)
        ]
        pid = server.process.pid
        memory = {"resident_bytes": resident_bytes_of(pid), "device_bytes": device_bytes_of(pid)}
        server.stop()
    backend = re.search(r"atelier: (\w+ on \S+):", server.output)
    document: dict[str, Any] = {
        "served_by": backend[1] if backend else "unknown",
        "images_per_request": options.images_per_request,
        "in_flight": IN_FLIGHT,
        "num_clients": options.clients,
        "front_end": options.front_end,
        "images_per_s": [repeat["images_per_s"] for repeat in repeats],
        "latency_p50_ms": [repeat["latency_p50_ms"] for repeat in repeats],
        "latency_p99_ms": [repeat["latency_p99_ms"] for repeat in repeats],
        "num_answers": sum(repeat["num_answers"] for repeat in repeats),
        "num_wrong": sum(repeat["num_wrong"] for repeat in repeats),
        "memory": memory,
        "reference": measured(reference.infer, 64, options.repeats, min(1.0, options.seconds)),
        "reference_device": reference.device,
    }
    print(json.dumps(document))
    if document["num_wrong"]:
        raise BadDataError("WRONG_ANSWERS", f"{document['num_wrong']} answers under load were not the reference's")
    return 0


def answers_of(reference: Backend, images: Images) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """(N,) classes, and whether the two best logits are further apart than rounding can bridge."""
    logits = np.concatenate([reference.infer(images[start : start + 64]) for start in range(0, len(images), 64)])
    best = np.partition(logits, -2, axis=1)[:, -2:]  # (N, 2)
    return logits.argmax(1), best[:, 1] - best[:, 0] >= TIE_MARGIN


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked, and what is to be answered."""

    images: Images
    labels: NDArray[np.intp]  # (N,)
    is_decided: NDArray[np.bool_]  # (N,)
    images_per_request: int


class Share(NamedTuple):
    """What one client saw."""

    taken_s: list[float]
    num_wrong: int
    ended_s: float
    failure: str = ""  # what ended it before its time


def offer(clients: ProcessPoolExecutor, num_clients: int, target: str, load: Load, seconds: float) -> dict[str, Any]:
    """IN_FLIGHT requests at a time, for so long, by all clients together.

    Raises ResourceUnavailableError NO_ANSWER if a request fails.
    """
    start_s, in_flight = time.monotonic() + START_S, max(1, IN_FLIGHT // num_clients)
    asked = [
        clients.submit(ask, target, load, in_flight=in_flight, start_s=start_s, seconds=seconds, rank=rank)
        for rank in range(num_clients)
    ]
    shares = [future.result() for future in asked]
    failures = [share.failure for share in shares if share.failure]
    if failures:
        what = f"{target} did not answer under load: {failures[0]}"
        cure = f"see the server's errors; or is the machine too busy to answer within {TIMEOUT_S:g} s?"
        raise ResourceUnavailableError("NO_ANSWER", what, cure)
    taken_s = [value for share in shares for value in share.taken_s]
    return {
        "images_per_s": load.images_per_request * len(taken_s) / (max(share.ended_s for share in shares) - start_s),
        "latency_p50_ms": 1e3 * statistics.median(taken_s),
        "latency_p99_ms": 1e3 * float(np.quantile(taken_s, 0.99)),
        "num_answers": len(taken_s) * load.images_per_request,
        "num_wrong": sum(share.num_wrong for share in shares),
    }


def ask(target: str, load: Load, *, in_flight: int, start_s: float, seconds: float, rank: int) -> Share:
    """In a client's process: from `start_s`, on the machine's monotonic clock, for so many seconds."""
    try:
        return asyncio.run(_ask(target, load, in_flight, start_s, seconds, rank))
    except ClassifyError as error:
        return Share([], 0, time.monotonic(), str(error))


async def _ask(target: str, load: Load, in_flight: int, start_s: float, seconds: float, rank: int) -> Share:
    taken_s: list[float] = []
    num_wrong = 0
    async with AsyncClient(target) as client:
        await client.is_serving()  # connects
        await asyncio.sleep(start_s - time.monotonic())
        begun_s = time.monotonic()  # on a busy machine long after start_s, and a request is sent all the same

        async def keep_asking(seed: tuple[int, int]) -> None:
            nonlocal num_wrong
            random = np.random.default_rng(seed)
            while time.monotonic() - begun_s < seconds:
                chosen = random.integers(0, len(load.images), load.images_per_request)
                sent_s = time.monotonic()
                answer = await client.classify(load.images[chosen], timeout_s=TIMEOUT_S)
                taken_s.append(time.monotonic() - sent_s)
                num_wrong += int(((answer.labels != load.labels[chosen]) & load.is_decided[chosen]).sum())

        await asyncio.gather(*(keep_asking((rank, number)) for number in range(in_flight)))
    return Share(taken_s, num_wrong, time.monotonic())


if __name__ == "__main__":
    sys.exit(run_program(main))
