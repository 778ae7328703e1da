"""Measurements of the bench in their order; the figures that they give, by name, one a repeat."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from atelier.client import Client
from loadtest.backend_speed import measure, random_images
from loadtest.bench.contenders import (
    CPP_ECHO,
    NUM_IMAGES,
    PYTHON_ECHO,
    Contenders,
    check_count,
    paced_servers,
    protocol_of,
    serving,
)
from loadtest.bench.h2load import ALONE, BATCHED, MILLION, SINGLE, H2Load, Target
from loadtest.bench.overload import Run, measure_overload
from loadtest.bench.paced_server import IMAGE_S
from loadtest.bench.rows import Figures
from loadtest.front_ends import GRPCIO, available_front_ends
from loadtest.load.generator import Generators
from loadtest.processes import resident_bytes_of
from serving.backends.base import Backend

Step = Callable[[], dict[str, float]]

NUM_MILLIONS = 6  # of images, after which memory is read: five between the first and the last
RAW_S = 1.0
NUM_PROCESSES = max(1, (os.cpu_count() or 1) // 2)  # that offer what is past saturation; more would take our cores


def measure_serving(contenders: Contenders, peers: dict[str, Target], repeats: int, scale: float) -> Figures:
    """Runs every contender `repeats` times, in turn, after a warm-up; then reads memory, and checks our counts."""
    generator = H2Load(scale)
    figures: Figures = defaultdict(list)
    targets = contenders.targets | peers
    round_of_steps = _steps(contenders, targets, generator, scale)
    for step in round_of_steps.values():  # warm-up, not counted
        step()
    with tqdm(total=repeats * len(round_of_steps), unit="run", disable=None) as progress:
        for _ in range(repeats):
            for name, step in round_of_steps.items():
                progress.set_description(name)
                for figure, value in step().items():
                    figures[figure].append(value)
                progress.update()
    for name, target in targets.items():
        figures[f"{name}, MB"] = [resident_bytes_of(target.pid) / 1e6]
    for name, server in contenders.served.items():
        for _ in range(NUM_MILLIONS):
            generator.offer(targets[name], MILLION)
            figures[f"{name}, resident MB"].append(resident_bytes_of(server.process.pid) / 1e6)
        was_asked = name == GRPCIO  # how long an answer is
        figures["requests"].append(check_count(server, generator.num_sent[name] + was_asked))
    return figures


def _steps(contenders: Contenders, targets: Mapping[str, Target], generator: H2Load, scale: float) -> dict[str, Step]:
    """Lists what one repeat measures, in this order."""
    seconds = RAW_S * scale
    steps: dict[str, Step] = {}
    for name, target in targets.items():
        steps[f"{name}, 1 image"] = partial(_single, generator, target)
    for name in (*contenders.served, CPP_ECHO, PYTHON_ECHO):
        steps[f"{name}, one at a time"] = partial(_alone, generator, targets[name])
    steps["raw, 1 image"] = lambda: {"raw, 1, us": 1e6 / raw_images_per_s(contenders.raw, 1, 1, seconds)}
    for name, server in contenders.served.items():
        num_threads = int(server.metric("atelier_workers"))  # that run inferences at the same time
        steps[f"{name}, 64 images"] = partial(_batched, generator, targets[name])
        steps[f"raw beside {name}, 64 images"] = partial(_raw, contenders.raw, name, num_threads, seconds)
    return steps


def _single(generator: H2Load, target: Target) -> dict[str, float]:
    outcome, name = generator.offer(target, SINGLE), target.name
    return {
        f"{name}, 1": outcome.requests_per_s,
        f"{name}, CPU us": outcome.cpu_us,
        f"{name}, p50 ms": outcome.p50_ms,
        f"{name}, p99 ms": outcome.p99_ms,
    }


def _alone(generator: H2Load, target: Target) -> dict[str, float]:
    return {f"{target.name}, alone us": generator.offer(target, ALONE).p50_ms * 1e3}


def _batched(generator: H2Load, target: Target) -> dict[str, float]:
    return {f"{target.name}, 64": 64 * generator.offer(target, BATCHED).requests_per_s}


def _raw(backend: Backend, name: str, num_threads: int, seconds: float) -> dict[str, float]:
    return {f"raw beside {name}, 64": raw_images_per_s(backend, 64, num_threads, seconds)}


def raw_images_per_s(backend: Backend, batch_size: int, num_threads: int, seconds: float) -> float:
    """Measures the runtime in this process with nothing around it, called from so many threads at once."""
    images = random_images(batch_size)
    with ThreadPoolExecutor(num_threads) as threads:
        runs = [threads.submit(measure, backend.infer, [images], seconds) for _ in range(num_threads)]
        return sum(run.result().images_per_s for run in runs)


def measure_goodput(
    contenders: Contenders, repository: Path, peaks: Mapping[str, Mapping[int, float]], repeats: int, scale: float
) -> dict[str, dict[tuple[int, int, float], list[Run]]]:
    """Measures, server by server, multiples of its peaks: requests/s by the images of each, by front end.

    Each front end is also run on a device of a known pace, which is its peak.
    """
    with paced_servers(repository) as paced:
        servers = contenders.served | paced
        peaks = {**peaks, **{name: {1: 1 / IMAGE_S} for name in paced}}
        found: dict[str, dict[tuple[int, int, float], list[Run]]] = {name: defaultdict(list) for name in servers}
        protocols = {name: protocol_of(server, contenders.raw) for name, server in servers.items()}
        with Generators(NUM_PROCESSES, protocols, NUM_IMAGES) as generators:
            for _ in tqdm(range(repeats), desc="past saturation", unit="repeat", disable=None):
                for name in servers:
                    for key, run in measure_overload(generators, name, peaks[name], scale).items():
                        found[name][key].append(run)
    return found


def measure_starts(repository: Path, repeats: int) -> Figures:
    """Measures from the start of a server's process to its first answer, in turn."""
    figures: Figures = defaultdict(list)
    for _ in range(repeats):
        for name in reversed(available_front_ends()):
            started_s = time.monotonic()
            with serving(repository, "--front-end", name) as server, Client(server.target) as client:
                client.classify(random_images(1)[0])
                figures[f"{name}, first answer s"].append(time.monotonic() - started_s)
    return figures
