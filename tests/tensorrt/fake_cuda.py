"""The CUDA runtime on the host's memory: what is captured is kept, what is launched is replayed, in order.

Every call is held to the signature of the real function in NVIDIA's bindings, and every resource must be freed once.
"""

import ctypes
import inspect
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from cuda.bindings import runtime

SUCCESS = runtime.cudaError_t.cudaSuccess
Work = Callable[[], None]


class FakeCuda:
    """One GPU, behind the functions of `cuda.bindings.runtime`."""

    def __init__(self, gpu: str = "NVIDIA H200", compute_capability: tuple[int, int] = (9, 0)) -> None:
        self.gpu, self.compute_capability, self.driver = gpu, compute_capability, 13000
        self.memory: dict[int, Any] = {}
        self.streams: dict[int, list[Work]] = {}  # what is enqueued and has not run yet
        self.capturing: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.events: dict[int, int] = {}
        self.launches = 0
        self.sessions: list[Any] = []  # of ONNX Runtime, which the tests look at
        self._next = 1

    def put_in_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From here on NVIDIA's bindings reach this GPU, and no other: what it lacks fails the test."""
        for name, real in list(vars(runtime).items()):
            if name.startswith("cuda") and callable(real) and not isinstance(real, type):
                ours = getattr(self, f"_{name}", None)
                stand_in = self._standing_in_for(real, ours) if ours else partial(pytest.fail, f"{name} was called")
                monkeypatch.setattr(runtime, name, stand_in)

    @staticmethod
    def _standing_in_for(real: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        signature = inspect.signature(real)

        def call(*args: Any) -> tuple[Any, ...]:
            signature.bind(*args)
            return (SUCCESS, *(ours(*args) or ()))

        return call

    def enqueue(self, stream: int, work: Work) -> None:
        """Into the graph that is being captured, or to run at the next synchronisation."""
        self.capturing.get(stream, self.streams[stream]).append(work)

    def _handle(self) -> int:
        self._next += 1
        return self._next

    def _cudaGetDeviceProperties(self, index: int) -> tuple[Any]:  # noqa: N802
        assert index == 0
        assert all(hasattr(runtime.cudaDeviceProp, name) for name in ("name", "major", "minor"))
        major, minor = self.compute_capability
        return (SimpleNamespace(name=self.gpu.encode(), major=major, minor=minor),)

    def _cudaDriverGetVersion(self) -> tuple[int]:  # noqa: N802
        return (self.driver,)

    def _cudaSetDevice(self, index: int) -> None:  # noqa: N802
        assert index == 0

    def _cudaMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        everything = 1 << 30
        return (everything - sum(map(len, self.memory.values())), everything)

    def _cudaMalloc(self, num_bytes: int) -> tuple[int]:  # noqa: N802
        buffer = (ctypes.c_uint8 * num_bytes)()
        self.memory[ctypes.addressof(buffer)] = buffer
        return (ctypes.addressof(buffer),)

    _cudaMallocHost = _cudaMalloc  # noqa: N815

    def _cudaFree(self, address: int) -> None:  # noqa: N802
        del self.memory[address]

    _cudaFreeHost = _cudaFree  # noqa: N815

    def _cudaStreamCreateWithFlags(self, flags: int) -> tuple[int]:  # noqa: N802
        assert flags == runtime.cudaStreamNonBlocking
        self.streams[handle := self._handle()] = []
        return (handle,)

    def _cudaStreamDestroy(self, stream: int) -> None:  # noqa: N802
        assert not self.streams.pop(stream), "destroyed with work in it"

    def _cudaStreamSynchronize(self, stream: int) -> None:  # noqa: N802
        assert stream not in self.capturing, "CUDA refuses to wait for a stream that is being captured"
        for work in self.streams[stream]:
            work()
        self.streams[stream].clear()

    def _cudaMemcpyAsync(self, target: int, source: int, num_bytes: int, kind: Any, stream: int) -> None:  # noqa: N802
        assert kind in (runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)
        for address in (target, source):
            assert num_bytes <= len(self.memory[address])

        def copy() -> None:
            ctypes.memmove(target, source, num_bytes)

        self.enqueue(stream, copy)

    def _cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:  # noqa: N802
        assert not self.streams[stream], "captured behind work that has not run"
        self.capturing[stream] = []

    def _cudaStreamEndCapture(self, stream: int) -> tuple[int]:  # noqa: N802
        self.graphs[handle := self._handle()] = self.capturing.pop(stream)
        return (handle,)

    def _cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int]:  # noqa: N802
        self.executables[handle := self._handle()] = list(self.graphs[graph])
        return (handle,)

    def _cudaGraphDestroy(self, graph: int) -> None:  # noqa: N802
        del self.graphs[graph]

    def _cudaGraphLaunch(self, executable: int, stream: int) -> None:  # noqa: N802
        self.launches += 1
        self.streams[stream] += self.executables[executable]

    def _cudaGraphExecDestroy(self, executable: int) -> None:  # noqa: N802
        del self.executables[executable]

    def _cudaEventCreate(self) -> tuple[int]:  # noqa: N802
        self.events[handle := self._handle()] = 0
        return (handle,)

    def _cudaEventRecord(self, event: int, stream: int) -> None:  # noqa: N802
        assert stream in self.streams
        self.events[event] = self.launches

    def _cudaEventSynchronize(self, event: int) -> None:  # noqa: N802
        assert event in self.events

    def _cudaEventElapsedTime(self, start: int, end: int) -> tuple[float]:  # noqa: N802
        return (float(self.events[end] - self.events[start]),)  # milliseconds: as many as launches

    def _cudaEventDestroy(self, event: int) -> None:  # noqa: N802
        del self.events[event]

    def is_clean(self) -> bool:
        """Whether everything was freed."""
        return not (self.events or self.memory or self.streams or self.capturing or self.graphs or self.executables)
