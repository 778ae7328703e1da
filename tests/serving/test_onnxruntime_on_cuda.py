"""What our backend asks of ONNX Runtime on CUDA, and how it takes the answers; the GPU is a fake one."""

from typing import Any

import onnxruntime
import pytest

from atelier.errors import ResourceUnavailableError
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.manifest import ONNX_NAME
from tests.export.small_model import exported_files
from tests.serving.fake_onnxruntime_gpu import onnxruntime_on_a_fake_gpu
from tests.tensorrt.fake_cuda import FakeCuda

ONNX = exported_files()[ONNX_NAME]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return onnxruntime_on_a_fake_gpu(monkeypatch)


@pytest.mark.parametrize(
    ("precision", "allowed"), [("fp32", "0"), ("int8", "0"), ("tf32", "1"), ("fp16", "1"), ("bf16", "1")]
)
def test_tensor_cores_are_used_but_where_they_would_round_float32(precision: str, allowed: str, gpu: FakeCuda) -> None:
    backend = OnnxRuntimeBackend(ONNX, device="cuda", max_batch_size=4, precision=precision)
    (session,) = gpu.sessions
    assert session.options["use_tf32"] == allowed
    backend.close()


@pytest.mark.parametrize("entry", ["session.disable_cpu_ep_fallback", "session.disable_quant_qdq"])
def test_no_node_may_fall_to_the_cpu_nor_be_fused_into_what_cuda_lacks(entry: str, gpu: FakeCuda) -> None:
    backend = OnnxRuntimeBackend(ONNX, device="cuda", max_batch_size=4)
    (session,) = gpu.sessions
    assert session.session_options.get_session_config_entry(entry) == "1"
    backend.close()


def refusing(reason: str) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(reason)

    return refuse


@pytest.mark.fault("O4")
def test_libraries_that_are_missing_are_in_the_error_and_not_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime prints them; what it raises afterwards speaks of nodes on the CPU."""
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublas.so.13:\ncannot open it"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", refusing("nodes are assigned to the default CPU EP"))
    told = (
        r"NO_GPU: asked for onnxruntime on cuda:0: nodes are .* CPU EP; Failed to load libcublas.so.13: cannot open it"
    )
    with pytest.raises(ResourceUnavailableError, match=told):
        OnnxRuntimeBackend(ONNX, device="cuda", max_batch_size=4)
    assert capsys.readouterr().out == ""


def test_operator_without_a_kernel_on_cuda_is_no_matter_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "[ONNXRuntimeError] : 1 : FAIL : Provider type for MaxPool node with name 'max_pool2d' is not set."
    monkeypatch.setattr(onnxruntime, "InferenceSession", refusing(reason))
    with pytest.raises(ResourceUnavailableError, match=r"NO_KERNELS: asked for onnxruntime on cuda:0: .*MaxPool"):
        OnnxRuntimeBackend(ONNX, device="cuda", max_batch_size=4, precision="bf16")
