"""HTTP of the native front end, by hand: what is answered, in which form, and under which status."""

import base64
import gzip
import hashlib
import http.client
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

pytest.importorskip("atelier_native", reason="the native front end is not built here (native/)")

from atelier.wire import SERVICE
from atelier.wire import classifier_pb2 as pb
from atelier.wire import open_inference_pb2 as oip
from loadtest.attack import bombs
from tests.serving.fake_backend import FakeBackend, image
from tests.serving.native_server import ListeningServer, end_of, started
from tests.serving.test_server import png

INFER = "/v2/models/lenet5/infer"
CLASSIFY = "/v1/classify"
JSON = {"Content-Type": "application/json"}


class Reply:
    """What came, in whatever way it was compressed."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()
        encoding = response.headers.get("Content-Encoding")
        if encoding is not None:
            self.body = gzip.decompress(self.body) if encoding == "gzip" else zlib.decompress(self.body)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def refusal(self) -> tuple[int, str]:
        """The status, and the stable word."""
        assert list(self.json) == ["error"]
        assert self.headers["Content-Type"] == "application/json"
        assert len(self.body) < 400
        return self.status, self.json["error"].partition(":")[0]


class Asker:
    def __init__(self, server: ListeningServer) -> None:
        self.server = server
        self.host, _, port = server.addresses[0].rpartition(":")
        self.port = int(port)

    def __call__(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout_s: float = 10
    ) -> Reply:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, headers or {})
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self("GET", path, headers=headers)

    def post(self, path: str, document: Any, **headers: str) -> Reply:
        return self("POST", path, json.dumps(document), JSON | headers)


@contextmanager
def asking(backend: FakeBackend | None = None, **settings: Any) -> Iterator[Asker]:
    backend = backend or FakeBackend()
    server = started(backend, **settings)
    try:
        yield Asker(server)
    finally:
        backend.gate.set()
        server.stop()
        end_of(server)


@pytest.fixture(scope="module")
def ask() -> Iterator[Asker]:
    with asking(max_images_per_request=8, max_message_bytes=80 << 10) as asker:
        yield asker


def tensor(*labels: int, **fields: Any) -> dict[str, Any]:
    images = np.concatenate([image(label) for label in labels])
    return {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "data": images.tolist(), **fields}


def without_data(*labels: int, **parameters: Any) -> dict[str, Any]:
    found = tensor(*labels, parameters=parameters)
    del found["data"]
    return found


# --- /v1/classify ----------------------------------------------------------------------------------------------------


def labels_of(reply: Reply) -> list[int]:
    assert reply.status == 200, reply.body
    return [of_image["predictions"][0]["label"] for of_image in reply.json["classifications"]]


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", ""])
def test_picture_is_classified_whatever_it_is_called(ask: Asker, kind: str) -> None:
    reply = ask("POST", f"{CLASSIFY}?top_k=2", png(7), {"Content-Type": kind} if kind else {})
    assert labels_of(reply) == [7]
    assert [len(each["predictions"]) for each in reply.json["classifications"]] == [2]
    assert (reply.json["model_name"], reply.json["model_version"]) == ("lenet5", "3")
    assert ask("POST", f"{CLASSIFY}?invert", png(248)).status == 200  # 255 - 7


def test_json_may_be_a_list_of_images_or_say_more(ask: Asker) -> None:
    rows, flat = image(3)[0, 0].tolist(), image(4).ravel().tolist()
    assert labels_of(ask.post(CLASSIFY, rows)) == [3]
    assert labels_of(ask.post(CLASSIFY, [rows, rows])) == [3, 3]
    assert labels_of(ask.post(CLASSIFY, flat)) == [4]
    assert labels_of(ask.post(CLASSIFY, {"images": [rows], "top_k": 10, "model_version": "3"})) == [3]
    pictures = [base64.b64encode(png(label)).decode() for label in (5, 1)]
    assert labels_of(ask.post(CLASSIFY, {"pictures": pictures})) == [5, 1]


HALF_A_BOMB = base64.b64encode(bombs.blank_png(2048)).decode()  # four of them are allowed
BAD_BODIES: dict[str, tuple[Any, dict[str, str], tuple[int, str]]] = {
    "empty": (b"", {}, (400, "NO_IMAGES")),
    "no picture": (b"GIF89a", {}, (400, "BAD_PICTURE")),
    "bomb": (bombs.blank_webp(4096), {}, (400, "BAD_PICTURE")),
    "bombs": (json.dumps({"pictures": [HALF_A_BOMB] * 5}).encode(), JSON, (400, "TOO_MANY_PIXELS")),
    "picture called JSON": (png(1), JSON, (400, "NO_IMAGES")),
    "form": (b"--x", {"Content-Type": "multipart/form-data; boundary=x"}, (415, "BAD_CONTENT_TYPE")),
    "cut": (b"[[1, 2", JSON, (400, "BAD_JSON")),
    "NaN": (b"[NaN]", JSON, (400, "BAD_JSON")),
    "fraction": (b"[0.5]", JSON, (400, "BAD_JSON")),
    "huge number": (b"[1e999]", JSON, (400, "BAD_JSON")),
    "negative": (b"[-1]", JSON, (400, "BAD_JSON")),
    "nested": (b"[" * 60_000, JSON, (400, "BAD_JSON")),
    "something behind": (b"[1] 2", JSON, (400, "BAD_JSON")),
    "no UTF-8": (b'{"images": "\xff"}', JSON, (400, "BAD_JSON")),
    "unknown field": (b'{"topk": 1}', JSON, (400, "BAD_JSON")),
    "twice": (b'{"top_k": 1, "top_k": 2}', JSON, (400, "BAD_JSON")),
    "no image": (b"[]", JSON, (400, "NO_IMAGES")),
    "part of an image": (b"[1, 2, 3]", JSON, (400, "BAD_IMAGE_SIZE")),
    "no base64": (b'{"pictures": ["*"]}', JSON, (400, "BAD_DATA")),
    "top_k": (b'{"images": [1], "top_k": 11}', JSON, (400, "BAD_TOP_K")),
    "version": (b'{"images": [1], "model_version": "7"}', JSON, (404, "UNKNOWN_VERSION")),
    "encoding": (b"[]", JSON | {"Content-Encoding": "br"}, (415, "BAD_ENCODING")),
    "no gzip": (b"[]", JSON | {"Content-Encoding": "gzip"}, (400, "MALFORMED")),
    "too large": (bytes(90_000), {}, (413, "MESSAGE_TOO_LARGE")),
    "too large unpacked": (gzip.compress(bytes(90_000)), {"Content-Encoding": "gzip"}, (413, "MESSAGE_TOO_LARGE")),
}


@pytest.mark.parametrize(("body", "headers", "refusal"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_bad_body_is_refused_with_its_word(
    ask: Asker, body: bytes, headers: dict[str, str], refusal: tuple[int, str]
) -> None:
    assert ask("POST", CLASSIFY, body, headers).refusal == refusal
    assert labels_of(ask("POST", CLASSIFY, png(2))) == [2]


def test_too_large_a_body_without_a_length_is_refused_too(ask: Asker) -> None:
    reply = ask("POST", CLASSIFY, iter([bytes(1000)] * 90))
    assert reply.refusal == (413, "MESSAGE_TOO_LARGE")


# --- /v2 -------------------------------------------------------------------------------------------------------------


def test_tensors_in_json_are_nested_or_flat(ask: Asker) -> None:
    flat = tensor(1, 2, data=np.concatenate([image(1), image(2)]).ravel().tolist())
    for one in (tensor(1, 2), flat):
        reply = ask.post(INFER, {"inputs": [one], "id": "a", "parameters": {"other": {"deep": [1]}}, "unknown": 1})
        assert (reply.status, reply.json["id"]) == (200, "a")
        logits, probabilities = reply.json["outputs"]
        assert (logits["name"], logits["datatype"], logits["shape"]) == ("logits", "FP32", [2, 10])
        assert logits["data"] == (np.eye(10)[[1, 2]] * 9).ravel().tolist()
        assert sum(probabilities["data"]) == pytest.approx(2)


@pytest.mark.parametrize("kind", [None, "application/octet-stream", "application/json"])
def test_tensors_may_lie_behind_the_json(ask: Asker, kind: str | None) -> None:
    document = {
        "inputs": [without_data(5, binary_data_size=784)],
        "outputs": [
            {"name": "logits", "parameters": {"binary_data": True}},
            {"name": "probabilities"},
            {"name": "logits", "parameters": {"classification": 1, "binary_data": True}},
        ],
    }
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} | ({"Content-Type": kind} if kind else {})
    reply = ask("POST", INFER, head + image(5).tobytes(), headers)
    length = int(reply.headers["Inference-Header-Content-Length"])
    assert reply.headers["Content-Type"] == "application/octet-stream"
    answer, behind = json.loads(reply.body[:length]), reply.body[length:]
    assert [each.get("parameters") for each in answer["outputs"]] == [
        {"binary_data_size": 40},
        None,
        {"binary_data_size": 21},
    ]
    assert np.frombuffer(behind[:40], "<f4").argmax() == 5
    assert behind[40:] == b"\x11\0\0\0" + b"9.000000:5:Sandal"


def test_body_may_be_the_tensor_alone(ask: Asker) -> None:
    reply = ask("POST", INFER, image(6).tobytes() * 2, {"Inference-Header-Content-Length": "0"})
    length = int(reply.headers["Inference-Header-Content-Length"])
    assert [each["shape"] for each in json.loads(reply.body[:length])["outputs"]] == [[2, 10], [2, 10]]
    assert np.frombuffer(reply.body[length : length + 80], "<f4").reshape(2, 10).argmax(1).tolist() == [6, 6]


def test_pictures_are_base64_and_classes_are_texts(ask: Asker) -> None:
    data = [base64.b64encode(png(label)).decode() for label in (8, 0)]
    pictures = {"name": "pictures", "datatype": "BYTES", "shape": [2], "data": data}
    asked = [{"name": "logits", "parameters": {"classification": 1}}]
    reply = ask.post(f"{INFER.replace('/infer', '')}/versions/3/infer", {"inputs": [pictures], "outputs": asked})
    (output,) = reply.json["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 1])
    assert output["data"] == ["9.000000:8:Bag", "9.000000:0:T-shirt/top"]


BAD_DOCUMENTS: dict[str, tuple[Any, tuple[int, str]]] = {
    "no inputs": ({}, (400, "BAD_JSON")),
    "null": (None, (400, "BAD_JSON")),
    "list": ([], (400, "BAD_JSON")),
    "two": ({"inputs": [tensor(1), tensor(1)]}, (400, "BAD_INPUTS")),
    "hundred": ({"inputs": [without_data(1)] * 100}, (400, "BAD_JSON")),
    "long shape": ({"inputs": [tensor(1, shape=[1] * 100)]}, (400, "BAD_JSON")),
    "huge shape": ({"inputs": [tensor(1, shape=[2**62, 1, 28, 28])]}, (400, "TOO_MANY_IMAGES")),
    "larger shape": ({"inputs": [tensor(1, shape=[2**70, 1, 28, 28])]}, (400, "BAD_JSON")),
    "negative shape": ({"inputs": [tensor(1, shape=[-1, 1, 28, 28])]}, (400, "BAD_SHAPE")),
    "fractional shape": ({"inputs": [tensor(1, shape=[1.5, 1, 28, 28])]}, (400, "BAD_JSON")),
    "less data": ({"inputs": [tensor(1, shape=[2, 1, 28, 28])]}, (400, "BAD_DATA")),
    "no data": ({"inputs": [without_data(1)]}, (400, "BAD_DATA")),
    "binary that is not there": ({"inputs": [without_data(1, binary_data_size=784)]}, (400, "BAD_LENGTH")),
    "mixed": ({"inputs": [tensor(1, data=[1, "YQ=="])]}, (400, "BAD_DATA")),
    "datatype": ({"inputs": [tensor(1, datatype="INT8")]}, (400, "BAD_DATATYPE")),
    "name": ({"inputs": [tensor(1, name="x" * 5000)]}, (400, "UNKNOWN_INPUT")),
    "output": ({"inputs": [tensor(1)], "outputs": [{"name": "labels"}]}, (400, "UNKNOWN_OUTPUT")),
    "outputs": ({"inputs": [tensor(1)], "outputs": [{"name": "logits"}] * 5}, (400, "TOO_MANY_OUTPUTS")),
    "long id": ({"inputs": [tensor(1)], "id": "x" * 70_000}, (400, "FIELD_TOO_LARGE")),
    "timeout": ({"inputs": [tensor(1)], "parameters": {"timeout": "soon"}}, (400, "BAD_JSON")),
    "id": ({"inputs": [tensor(1)], "id": 7}, (400, "BAD_JSON")),
}


@pytest.mark.fault("S2", "S4", "S6")
@pytest.mark.parametrize(("document", "refusal"), BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS)
def test_bad_document_is_refused_with_its_word(ask: Asker, document: Any, refusal: tuple[int, str]) -> None:
    assert ask.post(INFER, document).refusal == refusal


@pytest.mark.parametrize("length", ["-1", "x", "99999", "1e3"])
def test_bad_length_of_the_json_is_refused(ask: Asker, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length}
    assert ask("POST", INFER, b"{}", headers).refusal == (400, "BAD_LENGTH")


@pytest.mark.parametrize(
    ("method", "path", "refusal"),
    [
        ("GET", "/", (404, "UNKNOWN_PATH")),
        ("GET", "/v2/" + "x" * 5000, (404, "UNKNOWN_PATH")),
        ("POST", "/v2/models/lenet5/load", (404, "UNKNOWN_PATH")),
        ("POST", "/atelier.v1.Classifier/Classify", (415, "BAD_CONTENT_TYPE")),
        ("GET", INFER, (405, "BAD_METHOD")),
        ("DELETE", "/v2", (405, "BAD_METHOD")),
        ("GET", "/v2/models/resnet", (404, "UNKNOWN_MODEL")),
        ("GET", "/v2/models/resnet/ready", (404, "UNKNOWN_MODEL")),
        ("GET", "/v2/models/lenet5/versions/7/config", (404, "UNKNOWN_VERSION")),
        ("POST", "/v2/models/resnet/infer", (404, "UNKNOWN_MODEL")),
    ],
)
def test_what_is_not_there_is_said_so(ask: Asker, method: str, path: str, refusal: tuple[int, str]) -> None:
    reply = ask(method, path, json.dumps({"inputs": [tensor(1)]}) if method == "POST" else None)
    assert reply.refusal == refusal
    assert ("Allow" in reply.headers) == (refusal[0] == 405)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bodies_are_compressed_both_ways(ask: Asker, encoding: str) -> None:
    document = json.dumps({"inputs": [tensor(*range(8))]}).encode()
    packed = gzip.compress(document) if encoding == "gzip" else zlib.compress(document)
    reply = ask("POST", INFER, packed, {"Content-Encoding": encoding, "Accept-Encoding": encoding})
    assert reply.headers["Content-Encoding"] == encoding
    assert np.reshape(reply.json["outputs"][0]["data"], (8, 10)).argmax(1).tolist() == list(range(8))


def test_views_have_bodies_and_head_has_none(ask: Asker) -> None:
    assert ask.get("/v2/health/live").json == {"live": True}
    assert ask.get("/v2/health/ready").json == {"ready": True}
    assert ask.get("/v2/models/lenet5/versions/3/ready").json == {"name": "lenet5", "ready": True}
    assert ask.get("/v2").json["name"] == "atelier"
    assert ask.get("/v2/models/lenet5").json["versions"] == ["3"]
    assert ask.get("/v2/models/lenet5/config").json["max_batch_size"] == 8
    assert ask("POST", "/v2/repository/index").json[0]["state"] == "READY"
    assert ask.get("/openapi.json").json["openapi"].startswith("3.")
    head = ask("HEAD", "/v2")
    assert (head.status, head.body) == (200, b"")
    before, _ = (ask.get("/v2/models/stats").json, ask.post(INFER, {"inputs": [tensor(1, 2)]}))
    after = ask.get("/v2/models/lenet5/stats").json
    counts = [of["model_stats"][0]["inference_count"] for of in (before, after)]
    assert counts[1] - counts[0] == 2


# --- Bounds, deadlines, access ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_full_and_late_and_draining_have_their_statuses() -> None:
    backend = FakeBackend(max_batch_size=1)
    with asking(backend, max_queue_size=1, max_images_per_request=1, lame_duck_s=1.0) as ask:
        backend.gate.clear()
        held = [threading.Thread(target=ask.post, args=(CLASSIFY, image(1).ravel().tolist())) for _ in range(2)]
        for thread in held:
            thread.start()
            time.sleep(0.3)
        full = ask.post(CLASSIFY, image(2).ravel().tolist())
        assert (full.refusal, full.headers["Retry-After"]) == ((503, "QUEUE_FULL"), "1")
        backend.gate.set()
        for thread in held:
            thread.join()
        backend.gate.clear()
        document = {"inputs": [tensor(3)], "parameters": {"timeout": 200_000}}
        first = threading.Thread(target=ask.post, args=(CLASSIFY, image(1).ravel().tolist()))
        first.start()
        time.sleep(0.3)
        began_s = time.monotonic()
        late = ask.post(INFER, document)
        assert late.refusal[0] in (503, 504)
        assert time.monotonic() - began_s < 5
        backend.gate.set()
        first.join()
        assert 3 not in backend.executed
        ask.server.stop()
        time.sleep(0.2)
        draining = ask.post(CLASSIFY, image(2).ravel().tolist())
        assert (draining.refusal, draining.headers["Retry-After"]) == ((503, "DRAINING"), "1")
        assert ask.get("/v2/health/ready").refusal == (503, "DRAINING")
        assert ask.get("/v2/health/live").json == {"live": True}


def test_body_that_does_not_come_ends_the_request() -> None:
    with asking(message_timeout_s=0.3) as ask, socket.create_connection((ask.host, ask.port), timeout=10) as slow:
        slow.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
        began_s = time.monotonic()
        answer = slow.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"SLOW_MESSAGE" in answer
        assert time.monotonic() - began_s < 5
        assert labels_of(ask("POST", CLASSIFY, png(1))) == [1]


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/v2/models/lenet5/load", "", 404),
        ("/v2/health/live", "", 405),
        (INFER, "Inference-Header-Content-Length: -1\r\n", 400),
    ],
)
def test_connection_goes_on_after_a_refusal_that_did_not_wait_for_the_body(
    ask: Asker, path: str, header: str, status: int
) -> None:
    with socket.create_connection((ask.host, ask.port), timeout=10) as connection:
        for wanted, body in ((status, b"x" * 20_000), (200, png(1))):
            path, header = (path, header) if wanted == status else (CLASSIFY, "")
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode())
            time.sleep(0.1)  # as http.client sends it, and others whose bodies are large
            connection.sendall(body)
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert (response.status, bool(response.read())) == (wanted, True)


def test_tokens_are_asked_for_but_by_probes(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(b"secret").hexdigest() + "\n")
    tokens.chmod(0o600)
    with asking(tokens=tokens) as ask:
        refused = ask("POST", CLASSIFY, png(1))
        assert (refused.refusal, refused.headers["WWW-Authenticate"]) == ((401, "NO_TOKEN"), "Bearer")
        assert ask.get("/v2/models/lenet5", Authorization="Bearer wrong").refusal == (401, "BAD_TOKEN")
        assert labels_of(ask("POST", CLASSIFY, png(1), {"Authorization": "Bearer secret"})) == [1]
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/lenet5/ready"):
            assert ask.get(path).status == 200


# --- gRPC-Web --------------------------------------------------------------------------------------------------------


def web_frames(body: bytes) -> tuple[list[bytes], dict[str, str]]:
    """The messages, and the trailers."""
    messages: list[bytes] = []
    trailers: dict[str, str] = {}
    rest = body
    while rest:
        flag, length = rest[0], int.from_bytes(rest[1:5], "big")
        frame, rest = rest[5 : 5 + length], rest[5 + length :]
        if flag == 0x80:
            for line in frame.decode().splitlines():
                name, _, trailers[name] = line.partition(": ")
        else:
            messages.append(frame)
    return messages, trailers


@pytest.mark.parametrize("is_text", [False, True], ids=["binary", "text"])
def test_browsers_call_every_unary_method_by_grpc_web(ask: Asker, is_text: bool) -> None:
    kind = "application/grpc-web-text+proto" if is_text else "application/grpc-web+proto"

    def call(path: str, message: bytes) -> tuple[list[bytes], dict[str, str]]:
        body = b"\0" + len(message).to_bytes(4, "big") + message
        reply = ask("POST", path, base64.b64encode(body) if is_text else body, {"Content-Type": kind})
        assert (reply.status, reply.headers["Content-Type"]) == (200, kind)
        return web_frames(base64.b64decode(reply.body) if is_text else reply.body)

    request = pb.ClassifyRequest(images=image(7).tobytes())
    (message,), trailers = call(f"/{SERVICE}/Classify", request.SerializeToString())
    assert pb.ClassifyResponse.FromString(message).classifications[0].predictions[0].label == 7
    assert trailers == {"grpc-status": "0"}
    (message,), _ = call("/inference.GRPCInferenceService/ServerLive", b"")
    assert oip.ServerLiveResponse.FromString(message).live
    messages, trailers = call(f"/{SERVICE}/Classify", b"\xff")
    assert (messages, trailers["grpc-status"]) == ([], str(grpc.StatusCode.INVALID_ARGUMENT.value[0]))
    assert trailers["grpc-message"].startswith("MALFORMED: ")
    messages, trailers = call("/grpc.health.v1.Health/Watch", b"")
    assert (messages, trailers["grpc-status"]) == ([], str(grpc.StatusCode.UNIMPLEMENTED.value[0]))
