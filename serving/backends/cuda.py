"""Wraps the CUDA runtime as far as the backends need it: memory, one stream, graphs, events. On NVIDIA's bindings.

The bindings give up the GIL in every call, so while this thread waits for the device, others assemble the next batch.
"""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import runtime
from numpy.typing import DTypeLike, NDArray

_NON_BLOCKING = 1  # cudaStreamNonBlocking: the stream does not wait for the legacy default stream


class CudaError(RuntimeError):
    """A CUDA call failed; the message is CUDA's name and words for it."""


def call(result: tuple[Any, ...]) -> Any:
    """Returns the value of a call of the bindings, which return (error, values...). Raises CudaError."""
    error, *values = result
    if error != runtime.cudaError_t.cudaSuccess:
        _, name = runtime.cudaGetErrorName(error)
        _, text = runtime.cudaGetErrorString(error)
        raise CudaError(f"{name.decode()}: {text.decode()}")
    return values[0] if values else None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One device."""

    name: str
    compute_capability: str  # "9.0"


def gpu_at(index: int) -> Gpu:
    """Describes the device. Raises CudaError if there is none."""
    properties = call(runtime.cudaGetDeviceProperties(index))
    name = properties.name.decode() if isinstance(properties.name, bytes) else properties.name
    return Gpu(name=name.rstrip("\0"), compute_capability=f"{properties.major}.{properties.minor}")


def driver_version() -> str:
    """Returns the driver's release, as the kernel knows it, and the latest CUDA that it supports."""
    release = Path("/proc/driver/nvidia/version")
    told = release.read_text().splitlines()[0] if release.exists() else ""
    return f"{told} CUDA {call(runtime.cudaDriverGetVersion())}".strip()


def use_device(index: int) -> None:
    """Makes it the calling thread's device, for everything below."""
    call(runtime.cudaSetDevice(index))


def bytes_in_use() -> int:
    """Returns what all processes use of the calling thread's device; the first call makes a context there."""
    error, num_free, num_all = runtime.cudaMemGetInfo()
    call((error,))
    return int(num_all) - int(num_free)


class DeviceMemory:
    """Bytes on the device; `address` is what TensorRT binds tensors to."""

    def __init__(self, num_bytes: int) -> None:
        self.address = int(call(runtime.cudaMalloc(max(1, num_bytes))))

    def free(self) -> None:
        """Gives it back; nothing may use it any more."""
        call(runtime.cudaFree(self.address))


class PinnedArray:
    """An array in page-locked host memory, which the device copies from and to by itself."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        self.address = int(call(runtime.cudaMallocHost(num_bytes)))
        memory = (ctypes.c_uint8 * num_bytes).from_address(self.address)
        self.array: NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        self.array[...] = 0

    def free(self) -> None:
        """Gives it back; `array` may not be looked at any more."""
        call(runtime.cudaFreeHost(self.address))


class Graph:
    """Work that was captured once and is launched by one call."""

    def __init__(self, graph: Any) -> None:
        self._executable = call(runtime.cudaGraphInstantiate(graph, 0))
        call(runtime.cudaGraphDestroy(graph))

    def launch(self, stream: "Stream") -> None:
        """Enqueues all of it; returns at once."""
        call(runtime.cudaGraphLaunch(self._executable, stream.handle))

    def free(self) -> None:
        """Destroys it; it must not be running."""
        call(runtime.cudaGraphExecDestroy(self._executable))


class Stream:
    """A queue of work on the device."""

    def __init__(self) -> None:
        self.handle = call(runtime.cudaStreamCreateWithFlags(_NON_BLOCKING))

    def __int__(self) -> int:
        return int(self.handle)

    def copy_to_device(self, memory: DeviceMemory, source: PinnedArray, num_bytes: int) -> None:
        """Enqueues a copy; returns at once."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(runtime.cudaMemcpyAsync(memory.address, source.address, num_bytes, kind, self.handle))

    def copy_to_host(self, target: PinnedArray, memory: DeviceMemory, num_bytes: int) -> None:
        """Enqueues a copy; returns at once."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(runtime.cudaMemcpyAsync(target.address, memory.address, num_bytes, kind, self.handle))

    def capture(self, work: Callable[[], None]) -> Graph:
        """Captures what `work` enqueues as a graph; nothing of it runs yet."""
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(runtime.cudaStreamBeginCapture(self.handle, mode))
        try:
            work()
        except BaseException:
            runtime.cudaStreamEndCapture(self.handle)  # leaves capture mode; the first error is the one to report
            raise
        return Graph(call(runtime.cudaStreamEndCapture(self.handle)))

    def synchronize(self) -> None:
        """Waits until everything enqueued is done, without the GIL."""
        call(runtime.cudaStreamSynchronize(self.handle))

    def free(self) -> None:
        """Destroys it."""
        call(runtime.cudaStreamDestroy(self.handle))


class Event:
    """A moment in a stream, for timing what lies between two of them."""

    def __init__(self) -> None:
        self._handle = call(runtime.cudaEventCreate())

    def record(self, stream: Any) -> None:
        """Enqueues it; `stream` is a Stream or a raw handle."""
        call(runtime.cudaEventRecord(self._handle, int(stream)))

    def milliseconds_since(self, start: "Event") -> float:
        """Waits for it, and returns how long after `start` it was reached."""
        call(runtime.cudaEventSynchronize(self._handle))
        return float(call(runtime.cudaEventElapsedTime(start._handle, self._handle)))

    def free(self) -> None:
        """Destroys it."""
        call(runtime.cudaEventDestroy(self._handle))
