"""A real gRPC server whose answers a test writes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from atelier.wire import SERVICE
from atelier.wire import classifier_pb2 as pb

CLASSES = [f"class {label}" for label in range(10)]


class LostHealth(health.HealthServicer):
    """Loses the first watchers, as a process does that ends."""

    num_lost = 0

    def Watch(self, request: Any, context: Any, send_response_callback: Any = None) -> Any:  # noqa: N802 - gRPC's name
        if self.num_lost:
            self.num_lost -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "Stream removed")
        return super().Watch(request, context, send_response_callback)


class ScriptedServer(grpc.GenericRpcHandler):
    """Refuses with the statuses of `script` first; then an image's first pixel is its label, 0.5 its probability."""

    def __init__(self, *, port: int = 0) -> None:
        self.script: list[tuple[grpc.StatusCode, str]] = []
        self.after: dict[int, tuple[grpc.StatusCode, str]] = {}  # what refuses the request of this number
        self.refused: int | None = None  # the first pixel of what is no image
        self.pushback_ms = 1  # what a refusal asks for
        self.requests: list[pb.ClassifyRequest] = []
        self.seconds_left: list[float] = []
        self.gate = threading.Event()  # answers wait for it
        self.gate.set()
        self.health = LostHealth()
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.target = f"127.0.0.1:{self.port}"
        self._server.start()

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        """The two methods of the Classifier."""
        method = {f"/{SERVICE}/Classify": self._classify, f"/{SERVICE}/GetModel": self._get_model}.get(call.method)
        return method and grpc.unary_unary_rpc_method_handler(method)

    def stop(self) -> None:
        """Ends it, answered or not."""
        self.gate.set()
        self._server.stop(None).wait(10)  # grpcio has been seen to wait for ever

    def _classify(self, message: bytes, context: Any) -> bytes:
        request = pb.ClassifyRequest.FromString(message)
        self.requests.append(request)
        self.seconds_left.append(context.time_remaining())
        self.gate.wait(20)
        if (number := len(self.requests) - 1) in self.after:
            context.abort(*self.after[number])
        if self.script:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(self.pushback_ms)),))
            context.abort(*self.script.pop(0))
        if self.refused is not None and self.refused in request.images[::784]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "PICTURE_IN_IMAGES: images looks like PNG")
        firsts = [picture[0] for picture in request.pictures] or list(request.images[::784])
        response = pb.ClassifyResponse(model_name="lenet5", model_version="3")
        response.time.queue_us, response.time.inference_us, response.time.batch_size = 20, 30, 5
        for first in firsts:
            predictions = response.classifications.add().predictions
            for label in range(first, first + request.top_k):
                predictions.add(label=label, name=CLASSES[label], probability=0.5)
        return response.SerializeToString()

    def _get_model(self, _message: bytes, context: Any) -> bytes:
        self.seconds_left.append(context.time_remaining())
        spec = pb.TensorSpec(name="images", dtype="uint8", shape=[-1, 1, 28, 28])
        response = pb.GetModelResponse(model_name="lenet5", classes=CLASSES, input=spec, max_batch_size=64)
        response.max_message_bytes, response.max_images_per_request = 1 << 20, 100
        return response.SerializeToString()
