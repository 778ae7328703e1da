"""How fast one backend is in this process, and what it holds: `python -m loadtest.latency`, one JSON on stdout.

On a GPU by CUDA events on the backend's own stream, with the wall clock beside them; on a CPU by the wall clock.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from atelier.contract import IMAGE_SHAPE, Images
from atelier.errors import MissingInputError
from atelier.program import run_program
from loadtest.clocks import EventClock, WallClock, clock_of
from loadtest.copies import copies_on
from loadtest.memory import device_bytes, resident_bytes
from serving.backends.base import Backend
from serving.backends.proof import prove
from serving.backends.select import open_backend, open_tensorrt
from serving.backends.timing import timed_calls
from serving.manifest import (
    ONNX_NAME,
    PROGRAM_NAME,
    TENSORRT,
    TENSORRT_RTX,
    Manifest,
    find_version,
    read_verified,
)

# tensorrt-rtx is the portable engine, on this GPU whatever it was built for; tensorrt-rtx-here one built for this GPU.
BACKENDS = ("torch", "torch-compiled", "onnxruntime", "tensorrt", "tensorrt-rtx", "tensorrt-rtx-here", "floor")


def main(arguments: list[str]) -> int:
    """Prints the figures. Raises BadDataError PARITY_HERE, and times nothing, if a probe fails on this backend."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.latency", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path("artifacts/models"), help="(%(default)s)")
    parser.add_argument("--backend", choices=BACKENDS, default="onnxruntime", help="floor: the copies alone")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64, 256, 1024], help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="figures for each batch size (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each repeat (%(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    before = device_bytes(options.device)
    backend = opened(options.repository, options.backend, options.device, max(options.batch_sizes))
    backend.warm_up()
    # The floor computes nothing.
    probes = "" if backend.name == "floor" else str(prove(backend, find_version(options.repository, "lenet5")[1]))
    clock = clock_of(backend)
    rows = [measured(backend.infer, size, options.repeats, options.seconds, clock) for size in options.batch_sizes]
    after = device_bytes(options.device)
    grown = None if before is None or after is None else after - before
    memory = {"resident_bytes": resident_bytes(), "device_bytes": grown}
    clock.close()
    backend.close()
    measurement = {"backend": options.backend, "device": options.device, "rows": rows, "memory": memory}
    print(json.dumps(measurement | {"probes": probes}))
    return 0


def opened(repository: Path, kind: str, device: str, max_batch_size: int) -> Backend:
    """Opens the newest version on that backend and device and on nothing else; the floor needs no version."""
    if kind == "floor":
        return copies_on(device, max_batch_size)
    version_dir, manifest = find_version(repository, "lenet5")
    if kind == "torch-compiled":
        from serving.backends.torch_backend import TorchBackend

        program = read_verified(version_dir, manifest, PROGRAM_NAME)
        return TorchBackend(program, device=device, max_batch_size=max_batch_size, compiled=True)
    if kind.startswith(TENSORRT_RTX):
        return _tried(kind, version_dir, manifest, device, max_batch_size)
    if kind == TENSORRT:
        own = tuple(engine for engine in manifest.engines if engine.flavour == TENSORRT)
        manifest = dataclasses.replace(manifest, engines=own)
    return open_backend(kind, device, version_dir, manifest, max_batch_size=max_batch_size, num_threads=1)[0]


def _tried(kind: str, version_dir: Path, manifest: Manifest, device: str, max_batch_size: int) -> Backend:
    """TensorRT for RTX on this GPU, even if no engine was built for it; what it then says is in the error."""
    onnx_model, onnx_sha256 = read_verified(version_dir, manifest, ONNX_NAME), manifest.files[ONNX_NAME]
    spec = manifest.engine_of(TENSORRT_RTX)
    if kind == TENSORRT_RTX and spec is None:
        cure = "make setup installs TensorRT for RTX, and make export then builds one"
        raise MissingInputError("NO_ENGINE", f"version {manifest.version} has no engine of {kind}", cure)
    if kind == TENSORRT_RTX and spec is not None:
        engine = read_verified(version_dir, manifest, spec.file)
    else:
        from export.engine_options import EngineOptions
        from export.rtx_engine import rtx_engine_for_this_gpu

        options = EngineOptions(precision=manifest.precision, max_batch_size=manifest.max_batch_size)
        engine, spec = rtx_engine_for_this_gpu(onnx_model, onnx_sha256, options)
    return open_tensorrt(
        engine, spec, onnx_sha256=onnx_sha256, device=device, max_batch_size=max_batch_size, is_trial=True
    )


def measured(
    infer: Callable[[Images], Any],
    batch_size: int,
    repeats: int,
    seconds: float,
    clock: WallClock | EventClock | None = None,
) -> dict[str, Any]:
    """Of each repeat the median latency and the images/s, by `clock` (the wall's, unless another is given)."""
    clock = clock or WallClock()
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *IMAGE_SHAPE), np.uint8)
    infer(images)
    row: dict[str, Any] = {"batch_size": batch_size, "clock": clock.name}
    row |= {"latency_us": [], "wall_us": [], "images_per_s": []}
    for _ in range(repeats):
        calls = timed_calls(partial(clock.time, infer), [images], seconds)
        row["latency_us"].append(1e6 * statistics.median(call.clock_s for call in calls))
        row["wall_us"].append(1e6 * statistics.median(call.wall_s for call in calls))
        row["images_per_s"].append(batch_size * len(calls) / sum(call.clock_s for call in calls))
    return row


if __name__ == "__main__":
    sys.exit(run_program(main))
