"""A server that does nothing but wait: a known latency, a pause, a fault on demand.

What a load test says of it is known beforehand, so it tells whether the load test tells the truth. Its answers are
right, for it knows the images: each begins with its number.
"""

import argparse
import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop

from atelier.wire import OPEN_INFERENCE, SERVICE
from atelier.wire import classifier_pb2 as pb
from atelier.wire import open_inference_pb2 as oip
from loadtest.echo_server import write_ready_file
from loadtest.load.protocols import Reference

NUM_IMAGES = 200


def reference() -> Reference:
    """Images that begin with their number, and logits drawn with a fixed seed."""
    images = np.zeros((NUM_IMAGES, 1, 28, 28), np.uint8)
    images[:, 0, 0, 0] = np.arange(NUM_IMAGES)
    logits = np.random.default_rng(0).normal(size=(NUM_IMAGES, 10)).astype(np.float32)
    return Reference(images=images, logits=logits, atol=1e-5)


class NullServer(grpc.GenericRpcHandler):
    """Classify and ModelInfer, answered rightly after `latency_ms`, unless the request's number says otherwise."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._reference = reference()
        self._num_requests = 0
        self._pause_begins_s = self._pause_ends_s = float("inf")

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        methods: dict[str, Any] = {
            f"/{SERVICE}/Classify": self._classify,
            f"/{OPEN_INFERENCE}/ModelInfer": self._infer,
            f"/{OPEN_INFERENCE}/ModelReady": self._ready,
            f"/{OPEN_INFERENCE}/ModelMetadata": self._metadata,
        }
        method = methods.get(call.method)
        return method and grpc.unary_unary_rpc_method_handler(method)

    async def _classify(self, message: bytes, context: Any) -> bytes:
        indices = list(pb.ClassifyRequest.FromString(message).images[::784])
        fault = await self._wait(context)
        if fault == "swap":
            indices = [(index + 1) % NUM_IMAGES for index in indices]
        response = pb.ClassifyResponse(model_name="null", model_version="1")
        response.time.queue_us, response.time.inference_us, response.time.batch_size = 1000, 2000, 3
        for index in indices * (2 if fault == "duplicate" else 1):
            label = int(self._reference.logits[index].argmax())
            probability = self._reference.probabilities[index, label]
            response.classifications.add().predictions.add(label=label, probability=probability)
        return response.SerializeToString()

    async def _infer(self, message: bytes, context: Any) -> bytes:
        request = oip.ModelInferRequest.FromString(message)
        if (request.model_name, request.inputs[0].name, request.inputs[0].datatype) != ("lenet5", "images", "UINT8"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not what this server takes")
        indices = list(request.raw_input_contents[0][::784])
        fault = await self._wait(context)
        if fault == "swap":
            indices = [(index + 1) % NUM_IMAGES for index in indices]
        response = oip.ModelInferResponse(model_name="lenet5", model_version="1", id=request.id)
        response.outputs.add(name="logits", datatype="FP32", shape=[len(indices), 10])
        response.raw_output_contents.append(self._reference.logits[indices].tobytes())
        return response.SerializeToString()

    async def _ready(self, _message: bytes, _context: Any) -> bytes:
        return oip.ModelReadyResponse(ready=True).SerializeToString()

    async def _metadata(self, _message: bytes, _context: Any) -> bytes:
        metadata = oip.ModelMetadataResponse(name="lenet5", versions=["1"], platform="null")
        metadata.inputs.add(name="images", datatype="UINT8", shape=[-1, 1, 28, 28])
        metadata.outputs.add(name="logits", datatype="FP32", shape=[-1, 10])
        return metadata.SerializeToString()

    async def _wait(self, context: Any) -> str:
        """Until the answer is due; the fault of this request, if it has one."""
        options, now_s = self.options, time.monotonic()
        self._num_requests += 1
        if self._num_requests == options.tell_at:
            print(f"request {self._num_requests} came", flush=True)
        if self._num_requests == options.pause_at:
            self._pause_begins_s, self._pause_ends_s = now_s, now_s + options.pause_ms / 1e3
        due_s = now_s + options.latency_ms / 1e3
        if self._pause_begins_s <= due_s:
            due_s = max(due_s, self._pause_ends_s)
        fault = str(options.fault) if self._num_requests == options.fault_at else ""
        if fault == "lose":
            due_s += 60
        await asyncio.sleep(due_s - time.monotonic())
        if fault == "cancel":
            await context.abort(grpc.StatusCode.CANCELLED, "")
        if fault == "refuse":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL: on demand")
        return fault


async def serve(service: NullServer) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port(f"127.0.0.1:{service.options.port}")
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print(f"serving nothing on 127.0.0.1:{port}", flush=True)
    if service.options.ready_file:
        write_ready_file(service.options.ready_file, port)
    await stopped.wait()
    await server.stop(None)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ready-file", type=Path)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--tell-at", type=int, default=0)
    parser.add_argument("--pause-at", type=int, default=0)
    parser.add_argument("--pause-ms", type=float, default=0.0)
    parser.add_argument("--fault", choices=("swap", "duplicate", "lose", "refuse", "cancel"))
    parser.add_argument("--fault-at", type=int, default=0)
    return parser


if __name__ == "__main__":
    uvloop.run(serve(NullServer(argument_parser().parse_args())))
