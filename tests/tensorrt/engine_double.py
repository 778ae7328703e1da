"""TensorRT's runtime as far as serving calls it: NVIDIA's classes and signatures, with ONNX Runtime behind them.

It computes on the memory that the code under test bound and copied to, so wrong addresses, sizes or shapes give wrong
logits.
"""

import ctypes
from typing import Any

import numpy as np
import pytest

from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.manifest import ONNX_NAME
from tests.export.small_model import exported_files
from tests.tensorrt.fake_cuda import FakeCuda
from tests.tensorrt.specs import Call, Spec

ONNX = exported_files()[ONNX_NAME]
MAX_BATCH_SIZE = 12


def calls_of(log: list[Call], method: str) -> list[tuple[Any, ...]]:
    return [args for _, name, args, _ in log if name == method]


def put_in_place_of_the_runtime(
    trt: Any, module: Any, monkeypatch: pytest.MonkeyPatch, engine: Any, log: list[Call], **answers: Any
) -> None:
    runtime = Spec(trt.Runtime, log, deserialize_cuda_engine=engine, **answers)
    monkeypatch.setattr(module, "Runtime", lambda logger: runtime)


class Engine:
    """The runtime, engine and contexts of `trt`, TensorRT or TensorRT for RTX, with ONNX Runtime inside."""

    def __init__(self, trt: Any, module: Any, monkeypatch: pytest.MonkeyPatch, log: list[Call], gpu: FakeCuda) -> None:
        """`module` is the one that the code under test imports, `trt` the one with the classes."""
        self.trt, self.gpu, self.log = trt, gpu, log
        self.model = OnnxRuntimeBackend(ONNX, max_batch_size=MAX_BATCH_SIZE)
        self.num_contexts, self.scratch_bytes = 0, 4096
        dtypes = {"images": trt.DataType.UINT8, "logits": trt.DataType.FLOAT}
        shapes = {"images": (-1, 1, 28, 28), "logits": (-1, 10)}
        self.spec = Spec(
            trt.ICudaEngine,
            log,
            num_io_tensors=2,
            get_tensor_name=lambda index: ("images", "logits")[index],
            get_tensor_dtype=lambda name: dtypes[name],
            get_tensor_shape=lambda name: shapes[name],
            create_execution_context=self.make_context,
            device_memory_size_v2=self.scratch_bytes,
        )
        put_in_place_of_the_runtime(trt, module, monkeypatch, self.spec, log)

    def make_context(self, strategy: Any) -> Spec:
        if isinstance(strategy, Spec):  # RTX's, where it is set in a runtime configuration
            (strategy,) = calls_of(self.log, "set_execution_context_allocation_strategy")[-1]
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.num_contexts += 1
        bound: dict[str, Any] = {}

        def execute(stream: int) -> bool:
            assert len(self.gpu.memory[bound["scratch"]]) >= self.scratch_bytes
            self.gpu.enqueue(stream, lambda: self.compute(bound["images"], bound["logits"], bound["shape"]))
            return True

        return Spec(
            self.trt.IExecutionContext,
            self.log,
            set_device_memory=lambda memory, size: bound.update(scratch=memory),
            set_input_shape=lambda name, shape: bound.update(shape=shape) or True,
            set_tensor_address=lambda name, memory: bound.update({name: memory}) or True,
            execute_async_v3=execute,
        )

    def compute(self, images_address: int, logits_address: int, shape: tuple[int, ...]) -> None:
        images = np.frombuffer(self.gpu.memory[images_address], np.uint8, int(np.prod(shape))).reshape(shape)
        logits = self.model.infer(images.copy())
        ctypes.memmove(logits_address, logits.tobytes(), logits.nbytes)
