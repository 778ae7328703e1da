"""Speed and memory of one backend in this process: `python -m loadtest.backend_speed`, one JSON on stdout.

On a GPU by CUDA events on the backend's own stream, with the wall clock beside them; on a CPU by the wall clock.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from atelier.contract import IMAGE_SHAPE, Images
from atelier.errors import MissingInputError, ResourceUnavailableError, UsageError
from atelier.program import run_program
from atelier.timing import timed_calls, wall_s
from loadtest.copies import Floor
from serving.backends.base import Backend
from serving.backends.proof import prove
from serving.backends.select import open_backend, open_tensorrt
from serving.manifest import ONNX_NAME, PROGRAM_NAME, TENSORRT, TENSORRT_RTX, Manifest, find_version, read_verified

# tensorrt-rtx is the portable engine, on this GPU whatever it was built for; tensorrt-rtx-here one built for this GPU.
BACKENDS = ("torch", "torch-compiled", "onnxruntime", "tensorrt", "tensorrt-rtx", "tensorrt-rtx-here", "floor")
REPEATS, SECONDS = 5, 0.2  # figures for each batch size, and how long each takes
LEGACY_STREAM = 0  # PyTorch's own


class Call(NamedTuple):
    """One call, in seconds."""

    clock_s: float  # between the events, or by the wall clock if there are none
    wall_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """One backend called in a loop with batches of one size."""

    batch_size: int
    calls: list[Call] = dataclasses.field(repr=False)

    @property
    def images_per_s(self) -> float:
        """The rate by the clock, without what is between the calls."""
        return self.batch_size * len(self.calls) / sum(call.clock_s for call in self.calls)

    @property
    def latency_us(self) -> float:
        """The median call, by the clock."""
        return 1e6 * statistics.median(call.clock_s for call in self.calls)

    @property
    def wall_us(self) -> float:
        """The median call, by the wall clock."""
        return 1e6 * statistics.median(call.wall_s for call in self.calls)


def measure(
    infer: Callable[[Images], Any], batches: Sequence[Images], seconds: float, clock: "EventClock | None" = None
) -> Speed:
    """Calls with one batch after the other, over and over, for so long; the first call does not count.

    Without a clock of events it is timed by the wall clock.
    """
    infer(batches[0])
    calls = timed_calls(partial(clock.time if clock else _wall_call, infer), batches, seconds)
    return Speed(batch_size=len(batches[0]), calls=calls)


def _wall_call(infer: Callable[[Images], Any], images: Images) -> Call:
    taken_s = wall_s(infer, images)
    return Call(taken_s, taken_s)


def random_images(num_images: int) -> Images:
    """Returns random images, the same for the same number."""
    return np.random.default_rng(0).integers(0, 256, (num_images, *IMAGE_SHAPE), np.uint8)


class EventClock:
    """Times between CUDA events on `stream`, a `serving.backends.cuda.Stream` or a raw handle. Raises CudaError.

    A call returns when the logits are in host memory, so the stream is idle when either event is recorded: between them
    lie both copies, all kernels, and what the host does in the meantime.
    """

    def __init__(self, stream: Any) -> None:
        from serving.backends.cuda import Event

        self._stream, self._start, self._end = stream, Event(), Event()

    def time(self, infer: Callable[[Images], Any], images: Images) -> Call:
        """Makes one call, and waits for the second event."""
        self._start.record(self._stream)
        taken_s = wall_s(infer, images)
        self._end.record(self._stream)
        return Call(self._end.milliseconds_since(self._start) / 1e3, taken_s)

    def close(self) -> None:
        """Frees the events."""
        self._start.free()
        self._end.free()


def clock_of(backend: Backend) -> EventClock | None:
    """Takes events if the backend is on a GPU: on its own `stream`, or on PyTorch's if it has none."""
    if not backend.device.startswith("cuda"):
        return None
    _use(backend.device)
    return EventClock(getattr(backend, "stream", LEGACY_STREAM))


def device_bytes(device: str) -> int | None:
    """Reads what all processes hold on `device`, this one's CUDA context included; None if that is no GPU.

    Raises ResourceUnavailableError NO_GPU if it is not there.
    """
    if not device.startswith("cuda"):
        return None
    from serving.backends.cuda import CudaError, bytes_in_use

    try:
        _use(device)
        return bytes_in_use()
    except CudaError as error:
        what = f"asked for {device}: {error}"
        raise ResourceUnavailableError("NO_GPU", what, "check nvidia-smi, or use --device cpu") from None


def _use(device: str) -> None:
    from serving.backends.cuda import use_device

    use_device(int(device.partition(":")[2] or "0"))


def opened(repository: Path, kind: str, device: str, max_batch_size: int) -> Backend:
    """Opens the newest version on that backend and device and on nothing else; the floor needs no version."""
    if kind == "floor":
        if not device.startswith("cuda"):
            raise UsageError("BAD_OPTIONS", f"--backend floor is asked for on {device}", "--device cuda: it is a GPU's")
        return Floor(device, max_batch_size)
    version_dir, manifest = find_version(repository)
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
    """Opens TensorRT for RTX on this GPU, even if no engine was built for it; what it then says is in the error."""
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


def row_of(backend: Backend, batch_size: int, repeats: int, seconds: float, clock: EventClock | None) -> dict[str, Any]:
    """Measures one batch size `repeats` times: the figures of each."""
    images = [random_images(batch_size)]
    speeds = [measure(backend.infer, images, seconds, clock) for _ in range(repeats)]
    figures = {name: [getattr(speed, name) for speed in speeds] for name in ("latency_us", "wall_us", "images_per_s")}
    return {"batch_size": batch_size, "clock": "CUDA events" if clock else "wall clock", **figures}


def main(arguments: list[str]) -> int:
    """Prints the figures. Raises BadDataError PARITY_HERE, and times nothing, if a probe fails on this backend."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.backend_speed", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--repository", type=Path, default=Path("artifacts/models"), help="(%(default)s)")
    add("--backend", choices=BACKENDS, default="onnxruntime", help="floor: the copies alone, on a GPU")
    add("--device", default="cpu", help="(%(default)s)")
    add("--batch-sizes", type=int, nargs="+", default=[1, 8, 64, 256, 1024], help="(%(default)s)")
    add("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    before = device_bytes(options.device)
    backend = opened(options.repository, options.backend, options.device, max(options.batch_sizes))
    backend.warm_up()
    is_floor = backend.name == "floor"  # computes nothing
    probes = "" if is_floor else str(prove(backend, find_version(options.repository)[1]))
    clock = clock_of(backend)
    rows = [row_of(backend, size, REPEATS, SECONDS, clock) for size in options.batch_sizes]
    after = device_bytes(options.device)
    grown = None if before is None or after is None else after - before
    memory = {"resident_bytes": int(psutil.Process().memory_info().rss), "device_bytes": grown}
    if clock:
        clock.close()
    backend.close()
    about = {"backend": options.backend, "device": options.device, "memory": memory, "probes": probes}
    print(json.dumps(about | {"rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
