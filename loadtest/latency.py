"""How fast one backend is in this process: `python -m loadtest.latency`, one JSON document on stdout.

A call of `infer` returns when the logits are in host memory, so its wall-clock time covers both copies and all kernels.
Where the stream is known, CUDA events around the same call tell the device's own time, without Python's.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from serving.backends.base import IMAGE_BYTES, IMAGE_SHAPE, Backend, Images
from serving.backends.select import open_backend
from serving.errors import MissingInputError, run_program
from serving.manifest import PROGRAM_NAME, list_versions, load_manifest, read_verified

BACKENDS = ("torch", "torch-compiled", "onnxruntime", "tensorrt", "floor")
LEGACY_STREAM = 0  # PyTorch's own


def main(arguments: list[str]) -> int:
    """Prints the figures; errors as everywhere."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.latency", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path("artifacts/models"), help="(%(default)s)")
    parser.add_argument("--backend", choices=BACKENDS, default="onnxruntime", help="floor: the copies alone")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64, 256, 1024], help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="figures for each batch size (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each repeat (%(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    batch_sizes: list[int] = options.batch_sizes
    if options.backend == "floor":
        infer, backend = floor_on(options.device, max(batch_sizes)), None
    else:
        backend = opened(options.repository, options.backend, options.device, max(batch_sizes))
        backend.warm_up()
        infer = backend.infer
    rows = [measured(infer, backend, size, options.repeats, options.seconds) for size in batch_sizes]
    print(json.dumps({"backend": options.backend, "device": options.device, "rows": rows}))
    return 0


def opened(repository: Path, kind: str, device: str, max_batch_size: int) -> Backend:
    """The newest version on that backend and device, and on nothing else."""
    versions = list_versions(repository / "lenet5")
    if not versions:
        raise MissingInputError("NO_MODEL", f"{repository} has no version of lenet5", "make export writes one")
    version_dir = repository / "lenet5" / str(versions[-1])
    manifest = load_manifest(version_dir)
    if kind == "torch-compiled":
        from serving.backends.torch_backend import TorchBackend

        program = read_verified(version_dir, manifest, PROGRAM_NAME)
        return TorchBackend(program, device=device, max_batch_size=max_batch_size, compiled=True)
    return open_backend(kind, device, version_dir, manifest, max_batch_size=max_batch_size, num_threads=1)[0]


def measured(
    infer: Callable[[Images], Any], backend: Backend | None, batch_size: int, repeats: int, seconds: float
) -> dict[str, Any]:
    """Median and spread over repeats: of a repeat's median latency, and of its images/s."""
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *IMAGE_SHAPE), np.uint8)
    infer(images)
    latencies_us, images_per_s = [], []
    for _ in range(repeats):
        taken_s: list[float] = []
        until_s = time.perf_counter() + seconds
        while not taken_s or time.perf_counter() < until_s:
            started_s = time.perf_counter()
            infer(images)
            taken_s.append(time.perf_counter() - started_s)
        latencies_us.append(1e6 * statistics.median(taken_s))
        images_per_s.append(batch_size * len(taken_s) / sum(taken_s))
    row: dict[str, Any] = {"batch_size": batch_size, "latency_us": latencies_us, "images_per_s": images_per_s}
    if backend is not None and backend.device.startswith("cuda") and backend.name != "onnxruntime":
        row["device_us"] = event_times_us(backend, images, repeats)
    return row


def event_times_us(backend: Backend, images: Images, repeats: int) -> list[float]:
    """Between two events on the backend's stream, the median of 100 calls, per repeat."""
    from serving.backends.cuda import Event

    stream = getattr(backend, "stream", LEGACY_STREAM)
    medians = []
    for _ in range(repeats):
        taken_us = []
        for _ in range(100):
            start, end = Event(), Event()
            start.record(stream)
            backend.infer(images)
            end.record(stream)
            taken_us.append(1e3 * end.milliseconds_since(start))
            start.free()
            end.free()
        medians.append(statistics.median(taken_us))
    return medians


def floor_on(device: str, max_batch_size: int) -> Callable[[Images], Any]:
    """What no runtime can do without: the images to the device and the logits back, as one launch and one wait."""
    if device == "cpu":
        there, back = np.empty((max_batch_size, *IMAGE_SHAPE), np.uint8), np.zeros((max_batch_size, 10), np.float32)

        def copy(images: Images) -> Any:
            there[: len(images)] = images
            return back[: len(images)].copy()

        return copy
    from serving.backends.cuda import DeviceMemory, Graph, PinnedArray, Stream, use_device

    use_device(int(device.partition(":")[2] or "0"))
    stream, graphs = Stream(), dict[int, Graph]()
    images_there, logits_there = DeviceMemory(max_batch_size * IMAGE_BYTES), DeviceMemory(max_batch_size * 40)
    images_here = PinnedArray((max_batch_size, *IMAGE_SHAPE), np.uint8)
    logits_here = PinnedArray((max_batch_size, 10), np.float32)

    def copy_twice(images: Images) -> Any:
        num_images = len(images)

        def run() -> None:
            stream.copy_to_device(images_there, images_here, num_images * IMAGE_BYTES)
            stream.copy_to_host(logits_here, logits_there, num_images * 40)

        if num_images not in graphs:
            graphs[num_images] = stream.capture(run)
        images_here.array[:num_images] = images
        graphs[num_images].launch(stream)
        stream.synchronize()
        return logits_here.array[:num_images].copy()

    return copy_twice


if __name__ == "__main__":
    sys.exit(run_program(main))
