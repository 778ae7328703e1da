"""ONNX Runtime on CUDA, without CUDA: our backend's way to a GPU, with its tensors and sessions in host memory."""

from functools import partial
from typing import Any

import onnxruntime
import pytest

from tests.tensorrt.fake_cuda import FakeCuda

RealSession, RealTensor = onnxruntime.InferenceSession, onnxruntime.OrtValue


class SessionOnCuda:
    """ONNX Runtime's session as CUDA's, in host memory: it keeps the provider's options and counts runs as launches."""

    def __init__(self, gpu: FakeCuda, model: bytes, options: Any, *, providers: list[Any], **_: Any) -> None:
        self._gpu, self.session_options = gpu, options
        ((self.provider, self.options),) = providers
        self._session = RealSession(model, providers=["CPUExecutionProvider"])
        gpu.sessions.append(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return [self.provider]

    def run_with_iobinding(self, binding: Any, run_options: Any) -> None:
        assert int(self.options["user_compute_stream"]) in self._gpu.streams
        self._gpu.launches += 1
        self._session.run_with_iobinding(binding, run_options)


class TensorOnCuda:
    """ONNX Runtime's tensors on CUDA, in host memory."""

    @staticmethod
    def ortvalue_from_numpy(array: Any, kind: str, index: int) -> Any:
        assert kind == "cuda"
        return RealTensor.ortvalue_from_numpy(array, "cpu", index)

    @staticmethod
    def ortvalue_from_shape_and_type(shape: list[int], dtype: Any, kind: str, index: int) -> Any:
        assert kind == "cuda"
        return RealTensor.ortvalue_from_shape_and_type(shape, dtype, "cpu", index)


def onnxruntime_on_a_fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """From here on ONNX Runtime has a CUDA provider, and this machine the GPU that is returned."""
    fake = FakeCuda()
    fake.put_in_place(monkeypatch)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", partial(SessionOnCuda, fake))
    monkeypatch.setattr(onnxruntime, "OrtValue", TensorOnCuda)
    return fake
