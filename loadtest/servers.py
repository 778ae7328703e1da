"""Servers under load: the served model, started here or found at an address, and echo servers of its reply sizes."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import grpc

from atelier.channel import proxy_options
from atelier.client import Client, program_errors
from atelier.errors import ConfigurationError, ResourceUnavailableError, UsageError
from atelier.wire import OPEN_INFERENCE
from atelier.wire import open_inference_pb2 as oip
from loadtest.config import LoadTestConfig
from loadtest.load.open_inference import OpenInference
from loadtest.load.protocols import Classify, Echo, Reference, ServerProtocol
from loadtest.reference import References
from loadtest.server_process import server_process
from serving.manifest import MODEL_NAME

SERVED = "served"
READY_TIMEOUT_S = 10.0


class Served(NamedTuple):
    """The server under test: how it is asked, in words what it serves, and its process if it was started here."""

    protocol: ServerProtocol
    words: str
    pid: int | None = None


def open_served(config: LoadTestConfig, references: References, reference: Reference, stack: ExitStack) -> Served:
    """Starts or finds the server under test; the runtime that it says it serves with joins the references.

    Raises ResourceUnavailableError if it cannot be reached, ConfigurationError if it serves another model.
    """
    if config.protocol == "oip":
        references.add_raw("onnxruntime", "auto")
        return _open_inference(config, reference)
    target, pid = config.target, None
    if not target:
        settings = ["--repository", str(config.repository), "--port", "0"]
        settings += ["--device", config.device, "--front-end", config.front_end]
        try:
            server = stack.enter_context(server_process("serving", *settings, own_group=True))
            target, pid = server.target, server.process.pid
        except RuntimeError as error:
            raise ResourceUnavailableError("NO_SERVER", str(error), "make serve shows why") from None
    try:
        connected = Client(target)
    except ValueError as error:
        raise UsageError("BAD_TARGET", str(error)) from None
    with program_errors(), connected as client:
        client.is_serving()  # a server that nobody has started is not waited for
        client.wait_until_ready(timeout_s=READY_TIMEOUT_S)
        model = client.model()
    if model.checkpoint_sha256 != references.manifest.checkpoint_sha256:
        what = f"{target} serves version {model.model_version} of checkpoint {model.checkpoint_sha256[:12]}…, "
        what += f"{config.repository} has version {references.manifest.version} of"
        what += f" {references.manifest.checkpoint_sha256[:12]}…"
        raise ConfigurationError("OTHER_MODEL", what, "name the repository that it serves: --repository")
    references.add_raw(model.backend, model.device)
    words = f"{model.model_name} version {model.model_version} on {model.backend}, {model.device}, {model.precision}"
    return Served(Classify(target=target, reference=reference), words, pid)


def _open_inference(config: LoadTestConfig, reference: Reference) -> Served:
    """Finds a server of the Open Inference Protocol, once it is ready and takes `images` for `logits`."""
    with grpc.insecure_channel(config.target, options=proxy_options(config.target)) as channel:
        ready = channel.unary_unary(
            f"/{OPEN_INFERENCE}/ModelReady",
            request_serializer=oip.ModelReadyRequest.SerializeToString,
            response_deserializer=oip.ModelReadyResponse.FromString,
        )
        describe = channel.unary_unary(
            f"/{OPEN_INFERENCE}/ModelMetadata",
            request_serializer=oip.ModelMetadataRequest.SerializeToString,
            response_deserializer=oip.ModelMetadataResponse.FromString,
        )
        try:
            is_ready = ready(oip.ModelReadyRequest(name=MODEL_NAME), timeout=READY_TIMEOUT_S, wait_for_ready=True).ready
            model = describe(oip.ModelMetadataRequest(name=MODEL_NAME), timeout=READY_TIMEOUT_S)
        except grpc.RpcError as error:
            what = f"{config.target}: {error.code().name}: {error.details()}"
            raise ResourceUnavailableError("NO_SERVER", what, "does it speak the Open Inference Protocol?") from None
    if not is_ready:
        raise ResourceUnavailableError("NOT_SERVING", f"{config.target} says {MODEL_NAME} is not ready", "see its log")
    tensors = [(spec.name, spec.datatype) for spec in (*model.inputs, *model.outputs)]
    if tensors != [("images", "UINT8"), ("logits", "FP32")]:
        what = f"{MODEL_NAME} at {config.target} has {tensors} instead of images (UINT8) to logits (FP32)"
        raise ConfigurationError("OTHER_MODEL", what, "serve what make export wrote, as lenet5")
    words = f"{model.name} on {model.platform or 'a server'} by the Open Inference Protocol"
    return Served(OpenInference(target=config.target, reference=reference), words)


def open_echoes(served: ServerProtocol, sizes: Sequence[int], stack: ExitStack) -> dict[str, ServerProtocol]:
    """Starts an echo server for each number of images a request may have, with replies as long as the model's."""
    echoes: dict[str, ServerProtocol] = {}
    with grpc.insecure_channel(served.target, options=proxy_options(served.target)) as channel:
        for size in sorted(set(sizes)):
            method: Any = channel.unary_unary(served.method)
            reply: bytes = method(served.request([0] * size), timeout=READY_TIMEOUT_S)
            process = stack.enter_context(server_process("loadtest.echo_server", str(len(reply)), own_group=True))
            echoes[echo_name(size)] = Echo(
                asked=served, target=process.target, method=served.method, reply_bytes=len(reply)
            )
    return echoes


def echo_name(images_per_request: int) -> str:
    """Names the echo server for requests of so many images."""
    return f"echo {images_per_request}"
