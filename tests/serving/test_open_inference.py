"""The Open Inference Protocol over gRPC, of both front ends: the same model, batches and answers as Classify."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from PIL import Image

from atelier.contract import Images
from atelier.wire import OPEN_INFERENCE, SERVICE
from atelier.wire import classifier_pb2 as pb
from atelier.wire import open_inference_pb2 as oip
from loadtest.server_process import ServerProcess, server_process
from tests.serving.conftest import FRONT_ENDS
from tests.serving.pictures import encoded
from tests.serving.running import scrape

IMAGES: Images = np.random.default_rng(7).integers(0, 256, (70, 1, 28, 28)).astype(np.uint8)
IMAGES[:, 0, 0, :4] = 0
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

Parameter = oip.InferParameter


class Asker:
    """One method after the other, over one connection."""

    def __init__(self, server: ServerProcess, channel: grpc.Channel) -> None:
        self.server = server
        self._channel = channel

    def __call__(self, method: str, message: Message, timeout_s: float = 10.0) -> Any:
        reply_type = getattr(oip, f"{method}Response")
        return reply_type.FromString(self.bytes_from(f"/{OPEN_INFERENCE}/{method}", message, timeout_s))

    def bytes_from(self, path: str, message: Message, timeout_s: float = 10.0) -> bytes:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)
        return call(message.SerializeToString(), timeout=timeout_s)

    def classify(self, images: Images) -> pb.ClassifyResponse:
        request = pb.ClassifyRequest(images=images.tobytes(), top_k=10)
        return pb.ClassifyResponse.FromString(self.bytes_from(f"/{SERVICE}/Classify", request))

    def refusal(self, request: oip.ModelInferRequest, **options: float) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self("ModelInfer", request, **options)
        failure: Any = caught.value
        assert len(failure.details()) < 300
        return failure.code().name, failure.details().partition(":")[0]


@pytest.fixture(scope="module", params=FRONT_ENDS)
def ask(small_repository: Path, request: pytest.FixtureRequest) -> Iterator[Asker]:
    settings = ("--port", "0", "--device", "cpu", "--front-end", request.param)
    with (
        server_process("serving", "--repository", str(small_repository), *settings) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        yield Asker(server, channel)


def infer_request(images: Images, *outputs: str, is_raw: bool = True, **fields: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="lenet5", **fields)
    tensor = request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    if is_raw:
        request.raw_input_contents.append(images.tobytes())
    else:
        tensor.contents.uint_contents.extend(images.ravel().tolist())
    for name in outputs:
        request.outputs.add(name=name)
    return request


@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("num_images", [1, 3, 70])
def test_answers_are_bitwise_those_of_classify(ask: Asker, num_images: int, is_raw: bool) -> None:
    images = IMAGES[:num_images]
    reply = ask("ModelInfer", infer_request(images, is_raw=is_raw, id="a name"))
    assert (reply.model_name, reply.model_version, reply.id) == ("lenet5", "1", "a name")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in reply.outputs] == [
        ("logits", "FP32", [num_images, 10]),
        ("probabilities", "FP32", [num_images, 10]),
    ]
    if is_raw:
        logits, probabilities = (np.frombuffer(raw, "<f4").reshape(-1, 10) for raw in reply.raw_output_contents)
    else:
        assert not reply.raw_output_contents
        logits, probabilities = (
            np.array(tensor.contents.fp32_contents, np.float32).reshape(-1, 10) for tensor in reply.outputs
        )
    for row, found, answer in zip(logits, probabilities, ask.classify(images).classifications, strict=True):
        labels = [prediction.label for prediction in answer.predictions]
        assert [prediction.probability for prediction in answer.predictions] == [
            float(found[label]) for label in labels
        ]
        assert (np.diff(row[labels]) <= 0).all()


def test_outputs_are_those_asked_for_in_that_order(ask: Asker) -> None:
    reply = ask("ModelInfer", infer_request(IMAGES[:2], "probabilities", "logits", "logits"))
    assert [tensor.name for tensor in reply.outputs] == ["probabilities", "logits", "logits"]
    probabilities, logits, again = (np.frombuffer(raw, "<f4") for raw in reply.raw_output_contents)
    assert (logits == again).all()
    assert probabilities.reshape(2, 10).sum(1) == pytest.approx(1)


@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize(("asked", "count"), [(3, 3), (1000, 10)])
def test_class_count_answers_the_best_classes_as_triton_writes_them(
    ask: Asker, is_raw: bool, asked: int, count: int
) -> None:
    request = infer_request(IMAGES[:2], "logits", is_raw=is_raw)
    request.outputs[0].parameters["classification"].int64_param = asked
    reply = ask("ModelInfer", request)
    plain = ask("ModelInfer", infer_request(IMAGES[:2], "logits"))
    logits = np.frombuffer(plain.raw_output_contents[0], "<f4").reshape(2, 10)
    expected = [
        f"{row[label]:.6f}:{label}:{CLASSES[label]}".encode()
        for row in logits
        for label in np.argsort(-row, kind="stable")[:count]
    ]
    (tensor,) = reply.outputs
    assert (tensor.datatype, list(tensor.shape)) == ("BYTES", [2, count])
    if is_raw:
        assert reply.raw_output_contents[0] == b"".join(struct.pack("<I", len(one)) + one for one in expected)
    else:
        assert list(tensor.contents.bytes_contents) == expected


@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_pictures_are_decoded_as_those_of_classify(ask: Asker, is_raw: bool, shape: tuple[int, ...]) -> None:
    pictures = [encoded(Image.fromarray(IMAGES[index, 0])) for index in range(2)]
    request = oip.ModelInferRequest(model_name="lenet5")
    tensor = request.inputs.add(name="pictures", datatype="BYTES", shape=shape)
    request.parameters["invert"].bool_param = True
    if is_raw:
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(one)) + one for one in pictures))
    else:
        tensor.contents.bytes_contents.extend(pictures)
    found = ask("ModelInfer", request).outputs
    assert [list(output.shape) for output in found] == [[2, 10], [2, 10]]
    classified = pb.ClassifyResponse.FromString(
        ask.bytes_from(f"/{SERVICE}/Classify", pb.ClassifyRequest(pictures=pictures, invert=True, top_k=10))
    )
    request.outputs.add(name="probabilities")
    reply = ask("ModelInfer", request)
    raw = reply.raw_output_contents[0] if is_raw else None
    values = np.frombuffer(raw, "<f4") if raw else np.array(reply.outputs[0].contents.fp32_contents, np.float32)
    for row, answer in zip(values.reshape(2, 10), classified.classifications, strict=True):
        assert all(prediction.probability == row[prediction.label] for prediction in answer.predictions)


def changed(**changes: Any) -> oip.ModelInferRequest:
    """A request of two images that is wrong in some way."""
    request = infer_request(IMAGES[:2])
    for name, value in changes.items():
        setattr(request if hasattr(request, name) else request.inputs[0], name, value)
    return request


def with_shape(*shape: int, images: Images = IMAGES[:2]) -> oip.ModelInferRequest:
    request = infer_request(images)
    request.inputs[0].shape[:] = shape
    return request


def with_contents(datatype: str = "UINT8", name: str = "images", **contents: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="lenet5")
    shape = (1, 1, 28, 28) if name == "images" else (1,)
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(oip.InferTensorContents(**contents))
    return request


def with_parameter(name: str, **value: Any) -> oip.ModelInferRequest:
    request = infer_request(IMAGES[:1], "logits")
    where = request.outputs[0].parameters if name == "classification" else request.parameters
    where[name].CopyFrom(Parameter(**value))
    return request


def two_inputs() -> oip.ModelInferRequest:
    request = infer_request(IMAGES[:1])
    request.inputs.add().CopyFrom(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    return request


def raw_and_typed() -> oip.ModelInferRequest:
    request = infer_request(IMAGES[:1], is_raw=False)
    request.raw_input_contents.append(IMAGES[:1].tobytes())
    return request


def raw_twice() -> oip.ModelInferRequest:
    request = infer_request(IMAGES[:1])
    request.raw_input_contents.append(b"")
    return request


def raw_pictures(raw: bytes) -> oip.ModelInferRequest:
    request = with_contents("BYTES", "pictures")
    request.raw_input_contents.append(raw)
    return request


REFUSED: dict[str, tuple[oip.ModelInferRequest, str, str]] = {
    "unknown model": (changed(model_name="resnet"), "NOT_FOUND", "UNKNOWN_MODEL"),
    "unknown version": (changed(model_version="7"), "NOT_FOUND", "UNKNOWN_VERSION"),
    "long name": (changed(model_name="../" * 5000), "NOT_FOUND", "UNKNOWN_MODEL"),
    "wrong input": (changed(name="image"), "INVALID_ARGUMENT", "UNKNOWN_INPUT"),
    "wrong datatype": (changed(datatype="FP32"), "INVALID_ARGUMENT", "BAD_DATATYPE"),
    "wrong output": (infer_request(IMAGES[:1], "probs"), "INVALID_ARGUMENT", "UNKNOWN_OUTPUT"),
    "many outputs": (infer_request(IMAGES[:1], *["logits"] * 5), "INVALID_ARGUMENT", "TOO_MANY_OUTPUTS"),
    "wrong shape": (with_shape(2, 1, 28, 27), "INVALID_ARGUMENT", "BAD_SHAPE"),
    "no batch": (with_shape(1, 28, 28), "INVALID_ARGUMENT", "BAD_SHAPE"),
    "no images": (with_shape(0, 1, 28, 28), "INVALID_ARGUMENT", "BAD_SHAPE"),
    "fewer than none": (with_shape(-1, 1, 28, 28), "INVALID_ARGUMENT", "BAD_SHAPE"),
    "endless shape": (with_shape(*[1] * 5000), "INVALID_ARGUMENT", "BAD_SHAPE"),
    "fewer values than the shape": (with_shape(3, 1, 28, 28), "INVALID_ARGUMENT", "BAD_DATA"),
    "more values than the shape": (with_shape(1, 1, 28, 28), "INVALID_ARGUMENT", "BAD_DATA"),
    "more than memory": (with_shape(2**62, 1, 28, 28), "INVALID_ARGUMENT", "TOO_MANY_IMAGES"),
    "too many images": (
        infer_request(np.zeros((1025, 1, 28, 28), np.uint8)),
        "INVALID_ARGUMENT",
        "TOO_MANY_IMAGES",
    ),
    "no inputs": (oip.ModelInferRequest(model_name="lenet5"), "INVALID_ARGUMENT", "BAD_INPUTS"),
    "two inputs": (two_inputs(), "INVALID_ARGUMENT", "BAD_INPUTS"),
    "no contents": (with_contents(), "INVALID_ARGUMENT", "BAD_DATA"),
    "contents of another type": (with_contents(fp32_contents=[1.0] * 784), "INVALID_ARGUMENT", "BAD_DATA"),
    "value over 255": (with_contents(uint_contents=[256] * 784), "INVALID_ARGUMENT", "BAD_DATA"),
    "raw and typed": (raw_and_typed(), "INVALID_ARGUMENT", "BAD_DATA"),
    "more raw than inputs": (raw_twice(), "INVALID_ARGUMENT", "BAD_INPUTS"),
    "no picture": (with_contents("BYTES", "pictures", bytes_contents=[b"GIF89a"]), "INVALID_ARGUMENT", "BAD_PICTURE"),
    "too short a length": (raw_pictures(b"\1\0"), "INVALID_ARGUMENT", "BAD_DATA"),
    "too long a length": (raw_pictures(b"\xff\xff\xff\xffabc"), "INVALID_ARGUMENT", "BAD_DATA"),
    "something behind": (raw_pictures(b"\1\0\0\0ab"), "INVALID_ARGUMENT", "BAD_DATA"),
    "a picture as images": (
        infer_request(np.frombuffer(b"\x89PNG\r\n\x1a\n".ljust(784), np.uint8).reshape(1, 1, 28, 28)),
        "INVALID_ARGUMENT",
        "PICTURE_IN_IMAGES",
    ),
    "negative timeout": (with_parameter("timeout", int64_param=-1), "INVALID_ARGUMENT", "BAD_PARAMETER"),
    "timeout in words": (with_parameter("timeout", string_param="soon"), "INVALID_ARGUMENT", "BAD_PARAMETER"),
    "classes in words": (with_parameter("classification", string_param="all"), "INVALID_ARGUMENT", "BAD_PARAMETER"),
}


@pytest.mark.fault("S2", "S4", "S5", "S6")
@pytest.mark.parametrize(("request_", "status", "word"), REFUSED.values(), ids=REFUSED)
def test_bad_request_gets_its_status_and_word(
    ask: Asker, request_: oip.ModelInferRequest, status: str, word: str
) -> None:
    assert ask.refusal(request_) == (status, word)
    assert ask("ModelInfer", infer_request(IMAGES[:1])).outputs  # and the server goes on


def test_unknown_parameters_are_ignored(ask: Asker) -> None:
    request = infer_request(IMAGES[:1])
    request.parameters["priority"].uint64_param = 3
    request.inputs[0].parameters["content_type"].string_param = "x"
    request.parameters["nothing"].CopyFrom(Parameter())
    assert ask("ModelInfer", request).model_name == "lenet5"


def test_timeout_of_the_request_is_kept_and_the_smaller_one_wins(ask: Asker) -> None:
    for timeout_us, timeout_s in ((1, 10.0), (60_000_000, 1e-6)):
        request = infer_request(np.zeros((128, 1, 28, 28), np.uint8))
        request.parameters["timeout"].int64_param = timeout_us
        status, _ = ask.refusal(request, timeout_s=timeout_s)
        assert status in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
    request.parameters["timeout"].int64_param = 5_000_000
    assert ask("ModelInfer", request).outputs


def test_server_and_model_say_what_they_are(ask: Asker) -> None:
    assert ask("ServerLive", oip.ServerLiveRequest()).live
    assert ask("ServerReady", oip.ServerReadyRequest()).ready
    assert ask("ModelReady", oip.ModelReadyRequest(name="lenet5", version="1")).ready
    assert not ask("ModelReady", oip.ModelReadyRequest(name="resnet")).ready
    assert not ask("ModelReady", oip.ModelReadyRequest(name="lenet5", version="7")).ready
    server = ask("ServerMetadata", oip.ServerMetadataRequest())
    assert (server.name, bool(server.version)) == ("atelier", True)
    assert {"binary_tensor_data", "classification", "statistics"} <= set(server.extensions)
    model = ask("ModelMetadata", oip.ModelMetadataRequest(name="lenet5"))
    assert (model.name, list(model.versions), model.platform) == ("lenet5", ["1"], "onnxruntime_onnx")
    tensors = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in (*model.inputs, *model.outputs)]
    assert tensors == [
        ("images", "UINT8", [-1, 1, 28, 28]),
        ("logits", "FP32", [-1, 10]),
        ("probabilities", "FP32", [-1, 10]),
    ]
    (model,) = ask("RepositoryIndex", oip.RepositoryIndexRequest(ready=True)).models
    assert (model.name, model.version, model.state) == ("lenet5", "1", "READY")


def test_config_has_what_perf_analyzer_reads(ask: Asker) -> None:
    config = ask("ModelConfig", oip.ModelConfigRequest(name="lenet5", version="1")).config
    assert (config.name, config.max_batch_size, config.backend) == ("lenet5", 1024, "onnxruntime")
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("images", oip.TYPE_UINT8, [1, 28, 28])
    ]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [
        ("logits", oip.TYPE_FP32, [10]),
        ("probabilities", oip.TYPE_FP32, [10]),
    ]
    assert config.HasField("dynamic_batching")


@pytest.mark.fault("S49")
@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_model_that_is_not_served_is_not_found(ask: Asker, method: str) -> None:
    for fields in ({"name": "resnet"}, {"name": "lenet5", "version": "7"}):
        with pytest.raises(grpc.RpcError) as caught:
            ask(method, getattr(oip, f"{method}Request")(**fields))
        failure: Any = caught.value
        assert failure.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "method", ["ModelStreamInfer", "RepositoryModelLoad", "SystemSharedMemoryStatus", "LogSettings"]
)
def test_methods_of_tritons_that_there_are_not_are_unimplemented(ask: Asker, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask.bytes_from(f"/{OPEN_INFERENCE}/{method}", oip.ServerLiveRequest())
    failure: Any = caught.value
    assert failure.code() is grpc.StatusCode.UNIMPLEMENTED


def test_statistics_and_metrics_count_what_was_asked(ask: Asker) -> None:
    def statistics() -> oip.ModelStatistics:
        of_model: oip.ModelStatistics
        (of_model,) = ask("ModelStatistics", oip.ModelStatisticsRequest(name="lenet5")).model_stats
        return of_model

    before, page = statistics(), scrape(ask.server)
    for _ in range(5):
        ask("ModelInfer", infer_request(IMAGES[:3]))
    ask.refusal(infer_request(IMAGES[:1], "probs"))
    after, later = statistics(), scrape(ask.server)
    assert after.inference_count - before.inference_count == 15
    assert after.execution_count - before.execution_count == 5
    assert after.inference_stats.success.count - before.inference_stats.success.count == 5
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    for name in ("success", "compute_infer"):
        assert getattr(after.inference_stats, name).ns > getattr(before.inference_stats, name).ns
    labels = {"method": "ModelInfer", "code": "OK"}
    assert later.value("atelier_requests_total", **labels) - page.value("atelier_requests_total", **labels) == 5
