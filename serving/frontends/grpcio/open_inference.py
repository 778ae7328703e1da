"""Implements inference.GRPCInferenceService, the Open Inference Protocol, from message bytes to message bytes."""

import time
from collections.abc import AsyncIterator, Callable

from google.protobuf.message import Message

from atelier import __version__
from atelier.contract import NUM_CLASSES, Images, Logits
from atelier.wire import OPEN_INFERENCE
from atelier.wire import open_inference_pb2 as oip
from serving.errors import InvalidRequestError, NotServingError, UnknownModelError
from serving.frontends.grpcio import tensors
from serving.frontends.grpcio.calls import Context, Conversation
from serving.frontends.grpcio.classifier import ClassifierService, parse
from serving.frontends.grpcio.responses import probabilities
from serving.frontends.grpcio.versions import Served, Versions
from serving.frontends.messages import EXTENSIONS
from serving.metrics import Metrics
from serving.pictures.reading import Reading, images_of
from serving.triton_metrics import FAILURES

LOGITS, PROBABILITIES = "logits", "probabilities"
# What is asked by probes, which have no token.
PROBES = frozenset(f"/{OPEN_INFERENCE}/{method}" for method in ("ServerLive", "ServerReady", "ModelReady"))

MAX_OUTPUTS = 4  # each as values and as classes

Outputs = list[tuple[str, int]]  # name, and how many classes instead of values


class OpenInferenceService:
    """Answers as the classifier does, in other messages."""

    def __init__(
        self,
        versions: Versions,
        classifier: ClassifierService,
        metrics: Metrics,
        refusal: Callable[[], NotServingError | None],
    ) -> None:
        """`refusal` returns why the server does not serve, if it does not."""
        self._versions = versions
        self._classifier = classifier
        self._metrics = metrics
        self._refusal = refusal

    async def model_infer(self, message: bytes, deadline_s: float, peer: str = "") -> bytes:
        """Answers a ModelInferRequest with a ModelInferResponse; `deadline_s` is on the monotonic clock."""
        began_s = time.monotonic()
        request = parse(oip.ModelInferRequest(), message)
        tensors.check_number(request.inputs, request.raw_input_contents)
        timeout_us = tensors.number_of(request.parameters, "timeout")
        reading = Reading(*(tensors.flag_of(request.parameters, name) for name in Reading._fields))
        tensors.check_contents(request.inputs, request.raw_input_contents)
        outputs = [(output.name, tensors.number_of(output.parameters, "classification")) for output in request.outputs]
        if timeout_us:
            deadline_s = min(deadline_s, began_s + timeout_us / 1e6)
        with self._versions.find(request.model_name, request.model_version) as served:
            _check_outputs(outputs)
            images = await self._images_of(request, reading, deadline_s)
            answer = await served.classify(images, deadline_s, peer)
        self._classifier.num_requests += 1
        response = _response(request, served, answer.logits, outputs or [(LOGITS, 0), (PROBABILITIES, 0)])
        self._metrics.observe_request(time.monotonic() - began_s)
        return response.SerializeToString()

    def conversations(self) -> dict[str, Conversation]:
        """Maps paths to the other methods, which a draining server answers too."""
        methods: dict[str, tuple[Message, Callable[..., Message]]] = {
            "ServerLive": (oip.ServerLiveRequest(), lambda _asked: oip.ServerLiveResponse(live=True)),
            "ServerReady": (oip.ServerReadyRequest(), lambda _asked: oip.ServerReadyResponse(ready=self._is_serving)),
            "ModelReady": (oip.ModelReadyRequest(), self._model_ready),
            "ServerMetadata": (oip.ServerMetadataRequest(), self._server_metadata),
            "ModelMetadata": (oip.ModelMetadataRequest(), self._model_metadata),
            "ModelConfig": (oip.ModelConfigRequest(), self._model_config),
            "ModelStatistics": (oip.ModelStatisticsRequest(), self._model_statistics),
            "RepositoryIndex": (oip.RepositoryIndexRequest(), self._repository_index),
        }
        return {f"/{OPEN_INFERENCE}/{name}": _conversation(*method) for name, method in methods.items()}

    @property
    def _is_serving(self) -> bool:
        return self._refusal() is None

    # --- ModelInfer ----------------------------------------------------------------------------------------------

    async def _images_of(self, request: oip.ModelInferRequest, reading: Reading, deadline_s: float) -> Images:
        """Reads the images, or decodes the pictures."""
        if len(request.inputs) != 1:
            what = f"the request has {len(request.inputs)} inputs"
            raise InvalidRequestError("BAD_INPUTS", what, "send one, images or pictures")
        tensor, check_count = request.inputs[0], self._classifier.check_count
        raw = request.raw_input_contents[0] if request.raw_input_contents else None
        if tensor.name == "images":
            return tensors.images_from(tensor, raw, check_count)
        if tensor.name == "pictures":
            pictures = tensors.pictures_from(tensor, raw, check_count)
            return images_of(await self._classifier.pictures.decode(pictures, reading, deadline_s=deadline_s))
        what = f"there is no input {tensor.name[:64]!r}"
        raise InvalidRequestError("UNKNOWN_INPUT", what, "send images or pictures")

    # --- What it says of itself ----------------------------------------------------------------------------------

    def _model_ready(self, asked: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
        try:
            self._versions.find(asked.name, asked.version)
        except UnknownModelError:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._is_serving)

    def _server_metadata(self, _asked: oip.ServerMetadataRequest) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name="atelier", version=__version__, extensions=EXTENSIONS)

    def _model_metadata(self, asked: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        """Leaves out `pictures`: it is an alternative, and clients send all inputs that they find here."""
        served = self._versions.find(asked.name, asked.version)
        tensor = oip.ModelMetadataResponse.TensorMetadata
        return oip.ModelMetadataResponse(
            name=served.name,
            versions=[one.version for one in self._versions.loaded],
            platform=served.config.platform,
            inputs=[tensor(name="images", datatype="UINT8", shape=(-1, 1, 28, 28))],
            outputs=[tensor(name=name, datatype="FP32", shape=(-1, NUM_CLASSES)) for name in (LOGITS, PROBABILITIES)],
        )

    def _model_config(self, asked: oip.ModelConfigRequest) -> oip.ModelConfigResponse:
        return oip.ModelConfigResponse(config=self._versions.find(asked.name, asked.version).config)

    def _model_statistics(self, asked: oip.ModelStatisticsRequest) -> oip.ModelStatisticsResponse:
        """Reports what is counted for the metrics page: zeros if there is none."""
        served = self._versions.find(asked.name, asked.version)
        count, num_answered = self._metrics.triton, self._metrics.triton("request_success")

        def of_all(name: str) -> oip.StatisticDuration:
            return oip.StatisticDuration(count=num_answered, ns=1000 * count(f"{name}_duration_us"))

        num_failed = sum(count("request_failure", reason=reason) for reason in FAILURES)
        statistics = oip.InferStatistics(
            success=of_all("request"),
            fail=oip.StatisticDuration(count=num_failed),
            queue=of_all("queue"),
            compute_input=oip.StatisticDuration(),
            compute_infer=of_all("compute_infer"),
            compute_output=oip.StatisticDuration(),
        )
        of_model = oip.ModelStatistics(
            name=served.name,
            version=served.version,
            inference_count=count("count"),
            execution_count=count("exec_count"),
            inference_stats=statistics,
        )
        return oip.ModelStatisticsResponse(model_stats=[of_model])

    def _repository_index(self, asked: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
        if asked.repository_name:
            what = f"there is no repository {asked.repository_name[:64]!r}"
            raise UnknownModelError("UNKNOWN_REPOSITORY", what, "leave its name empty")
        refusal = self._refusal()
        state, reason = ("READY", "") if refusal is None else ("UNAVAILABLE", str(refusal))
        index = oip.RepositoryIndexResponse()
        for served in self._versions.loaded if refusal is None or not asked.ready else ():
            index.models.add(name=served.name, version=served.version, state=state, reason=reason)
        return index


def _check_outputs(outputs: Outputs) -> None:
    if len(outputs) > MAX_OUTPUTS:
        what = f"the request asks for {len(outputs)} outputs"
        raise InvalidRequestError("TOO_MANY_OUTPUTS", what, f"ask for at most {MAX_OUTPUTS}")
    for name, _ in outputs:
        if name not in (LOGITS, PROBABILITIES):
            what = f"there is no output {name[:64]!r}"
            raise InvalidRequestError("UNKNOWN_OUTPUT", what, "ask for logits or probabilities")


def _response(
    request: oip.ModelInferRequest, served: Served, logits: Logits, outputs: Outputs
) -> oip.ModelInferResponse:
    """Writes raw contents for who sends such, and typed ones for who sends those."""
    response = oip.ModelInferResponse(model_name=served.name, model_version=served.version, id=request.id)
    is_raw = bool(request.raw_input_contents)
    for name, num_classes in outputs:
        values = logits if name == LOGITS else probabilities(logits)
        count = min(num_classes, NUM_CLASSES) or NUM_CLASSES
        output = response.outputs.add(name=name, shape=(len(values), count))
        output.datatype = "BYTES" if num_classes else "FP32"
        if num_classes:
            classes = tensors.classes_of(values, count, served.classes)
            if is_raw:
                response.raw_output_contents.append(tensors.raw_elements(classes))
            else:
                output.contents.bytes_contents.extend(classes)
        elif is_raw:
            response.raw_output_contents.append(tensors.as_raw(values))
        else:
            output.contents.fp32_contents.extend(values.ravel().tolist())
    return response


def _conversation(request: Message, answer: Callable[..., Message]) -> Conversation:
    async def converse(messages: AsyncIterator[bytes], context: Context) -> None:
        async for message in messages:
            reply = answer(parse(type(request)(), message))
            await context.write(reply.SerializeToString())
            return
        raise InvalidRequestError("NO_MESSAGE", "the call carried no message", "send one")

    return converse
