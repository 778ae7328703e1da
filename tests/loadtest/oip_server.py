"""A small server of the Open Inference Protocol around the real model.

python -m tests.loadtest.oip_server VERSION_DIR
"""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from atelier.wire import OPEN_INFERENCE
from atelier.wire import open_inference_pb2 as oip
from loadtest.echo_server import write_ready_file
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.manifest import ONNX_NAME, load_manifest, read_verified


class OpenInferenceServer(grpc.GenericRpcHandler):
    """ModelReady, ModelMetadata and ModelInfer of `lenet5`; a reply without raw contents, which the protocol allows."""

    def __init__(self, version_dir: Path) -> None:
        model = read_verified(version_dir, load_manifest(version_dir), ONNX_NAME)
        self._backend = OnnxRuntimeBackend(model, max_batch_size=64)

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        method = getattr(self, f"_{call.method.removeprefix(f'/{OPEN_INFERENCE}/')}", None)
        return method and grpc.unary_unary_rpc_method_handler(method)

    def _ModelReady(self, message: bytes, _context: Any) -> bytes:  # noqa: N802
        return oip.ModelReadyResponse(
            ready=oip.ModelReadyRequest.FromString(message).name == "lenet5"
        ).SerializeToString()

    def _ModelMetadata(self, _message: bytes, _context: Any) -> bytes:  # noqa: N802
        metadata = oip.ModelMetadataResponse(name="lenet5", versions=["1"], platform="onnxruntime_onnx")
        metadata.inputs.add(name="images", datatype="UINT8", shape=[-1, 1, 28, 28])
        metadata.outputs.add(name="logits", datatype="FP32", shape=[-1, 10])
        return metadata.SerializeToString()

    def _ModelInfer(self, message: bytes, _context: Any) -> bytes:  # noqa: N802
        request = oip.ModelInferRequest.FromString(message)
        images = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(request.inputs[0].shape)
        logits = self._backend.infer(images)
        response = oip.ModelInferResponse(model_name="lenet5", model_version="1", id=request.id)
        output = response.outputs.add(name="logits", datatype="FP32", shape=logits.shape)
        output.contents.fp32_contents.extend(logits.ravel().tolist())
        return response.SerializeToString()


if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((OpenInferenceServer(Path(sys.argv[1])),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(None))
    write_ready_file(Path(sys.argv[3]), port)  # after --ready-file
    server.wait_for_termination()
