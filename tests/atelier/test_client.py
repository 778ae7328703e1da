"""Both clients and the command, against a real gRPC server that answers by a script."""

import io
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2
from PIL import Image

from atelier.client import Answer, ClassifyError, Client
from atelier.contract import TensorSpec
from tests.atelier.conftest import Ask, ask_with_client
from tests.atelier.scripted_server import CLASSES, ScriptedServer


def images(*labels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(N, 1, 28, 28): what the scripted server sees these labels in."""
    return np.repeat(np.array(labels, np.uint8), 784).reshape(-1, 1, 28, 28)


def test_answers_come_in_the_order_of_the_images(server: ScriptedServer, ask: Ask) -> None:
    answer: Answer = ask(server.target, "classify", images(7, 1, 4), top_k=2)
    assert answer.labels.tolist() == [7, 1, 4]
    assert [prediction.label for prediction in answer.classifications[1]] == [1, 2]
    assert answer.classifications[2][0].name == "class 4"
    assert (answer.model_name, answer.model_version) == ("lenet5", "3")
    assert (answer.queue_us, answer.inference_us, answer.batch_size) == (20, 30, 5)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 28, 28)])
def test_images_may_lack_the_channel(server: ScriptedServer, shape: tuple[int, ...]) -> None:
    assert ask_with_client(server.target, "classify", images(5, 6).reshape(shape)).labels.tolist() == [5, 6]


def test_one_image_may_lack_the_batch(server: ScriptedServer) -> None:
    assert ask_with_client(server.target, "classify", images(5)[0, 0]).labels.tolist() == [5]


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.full((28, 28), np.nan), "NaN"),
        (np.zeros((28, 28), np.float32), "float32"),
        (np.zeros((28, 28), np.int64), "int64"),
        (np.zeros((27, 28), np.uint8), r"\(27, 28\)"),
        (np.zeros((2, 3, 28, 28), np.uint8), r"\(2, 3, 28, 28\)"),
        (np.zeros((1, 1, 1, 28, 28), np.uint8), r"\(1, 1, 1, 28, 28\)"),
        (np.zeros(784, np.uint8), r"\(784,\)"),
        (np.zeros((0, 1, 28, 28), np.uint8), "no image"),
        (np.zeros((28, 28), bool), r"bool.*\* 255"),
        (torch.zeros(28, 28), r"float32.*\* 255"),
        (torch.zeros(28, 28, requires_grad=True), r"detach\(\).cpu\(\)"),
        (torch.zeros(28, 28, dtype=torch.uint8, device="meta"), r"detach\(\).cpu\(\)"),
        ([[0] * 28] * 27 + [[0] * 27], "cannot be read as one array"),
        ([[256] * 28] * 28, "int64"),
        ([[0.5] * 28] * 28, "float64"),
        (Image.new("RGB", (28, 28)), "mode RGB.*classify_pictures"),
        (Image.new("P", (28, 28)), "mode P"),
        ([Image.new("1", (28, 28))], "mode 1"),
        (Image.new("L", (280, 280)), r"\(280, 280\).*classify_pictures scales"),
        ("boot.png", "str: classify_pictures"),
        (Path("boot.png"), "Path: classify_pictures"),
        (b"\x89PNG", "bytes: classify_pictures"),
        (None, "no array of numbers"),
        ({"images": 1}, "no array of numbers"),
    ],
)
def test_what_is_no_image_is_never_sent(server: ScriptedServer, ask: Ask, array: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ask(server.target, "classify", array)
    assert not server.requests


@pytest.mark.parametrize(
    "given",
    [
        torch.from_numpy(images(5, 6)),
        images(5, 6).tolist(),
        list(images(5, 6)[:, 0]),
        tuple(torch.from_numpy(images(5, 6)[:, 0])),
        [Image.fromarray(image) for image in images(5, 6)[:, 0]],
    ],
    ids=["tensor", "lists", "list of arrays", "tuple of tensors", "list of PIL images"],
)
def test_what_can_be_taken_without_a_guess_is_taken(server: ScriptedServer, given: Any) -> None:
    assert ask_with_client(server.target, "classify", given).labels.tolist() == [5, 6]


@pytest.mark.parametrize("lone", [torch.from_numpy(images(5)[0, 0]), Image.fromarray(images(5)[0, 0])])
def test_a_lone_image_needs_no_list(server: ScriptedServer, lone: Any) -> None:
    assert ask_with_client(server.target, "classify", lone).labels.tolist() == [5]


@pytest.mark.parametrize("top_k", [-1, 2**32, "3", 1.5, None])
def test_top_k_that_is_no_number_is_never_sent(server: ScriptedServer, ask: Ask, top_k: Any) -> None:
    with pytest.raises(ValueError, match=r"top_k is .*1 to 10"):
        ask(server.target, "classify", images(8), top_k=top_k)
    assert not server.requests


def test_pictures_are_taken_in_every_form_that_files_come_in(server: ScriptedServer, tmp_path: Path) -> None:
    file = tmp_path / "picture"
    file.write_bytes(b"\x02png")
    with file.open("rb") as opened:
        given = [bytearray(b"\x01a"), memoryview(b"\x02b"), str(file), file, opened, io.BytesIO(b"\x03c")]
        answer: Answer = ask_with_client(server.target, "classify_pictures", given)
    assert answer.labels.tolist() == [1, 2, 2, 2, 2, 3]


@pytest.mark.parametrize("lone", [b"\x04", bytearray(b"\x04"), io.BytesIO(b"\x04")])
def test_a_lone_picture_needs_no_list(server: ScriptedServer, lone: Any) -> None:
    assert ask_with_client(server.target, "classify_pictures", lone).labels.tolist() == [4]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pil_images_are_sent_as_png_and_upright(server: ScriptedServer, mode: str) -> None:
    image = Image.new(mode, (20, 10))
    image.getexif()[0x0112] = 6  # a quarter turn
    with pytest.raises(ClassifyError):  # the scripted server has no class 137, a PNG's first byte
        ask_with_client(server.target, "classify_pictures", image)
    sent = Image.open(io.BytesIO(server.requests[0].pictures[0]))
    assert (sent.format, sent.size) == ("PNG", (10, 20))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "no picture"),
        (None, "NoneType: pass a list"),
        (7, "int: pass a list"),
        ([None], "NoneType is no encoded picture"),
        ([np.zeros((28, 28, 3), np.uint8)], "arrays go to classify"),
        ([torch.zeros(3, 28, 28)], "torch Tensor is no encoded picture"),
        ([io.StringIO("text")], "'rb'"),
        (["https://example.org/boot.png"], "download it"),
        (Image.new("F", (28, 28)), "mode F"),
    ],
)
def test_what_is_no_picture_is_never_sent(server: ScriptedServer, ask: Ask, given: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ask(server.target, "classify_pictures", given)
    assert not server.requests


def test_pictures_are_sent_as_they_are(server: ScriptedServer, ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "picture"
    file.write_bytes(b"\x02png")
    answer: Answer = ask(server.target, "classify_pictures", [b"\x09jpeg", file], invert=True)
    assert answer.labels.tolist() == [9, 2]
    assert list(server.requests[0].pictures) == [b"\x09jpeg", b"\x02png"]
    assert server.requests[0].invert


def test_model_is_described(server: ScriptedServer, ask: Ask) -> None:
    model = ask(server.target, "model")
    assert model.classes == tuple(CLASSES)
    assert model.input == TensorSpec(name="images", dtype="uint8", shape=(-1, 1, 28, 28))
    assert model.max_batch_size == 64


# --- Failures --------------------------------------------------------------------------------------------------------

UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "DRAINING: the server is shutting down (retry)")
CANCELLED = (grpc.StatusCode.CANCELLED, "")


@pytest.mark.parametrize("refusal", [UNAVAILABLE, CANCELLED], ids=["UNAVAILABLE", "CANCELLED"])
@pytest.mark.parametrize("num_images", [1, 1000])  # 1,000 are more than gRPC keeps for a retry by default
def test_what_a_restarting_server_refuses_is_retried(
    server: ScriptedServer, ask: Ask, refusal: tuple[grpc.StatusCode, str], num_images: int
) -> None:
    server.script = [refusal, refusal]
    assert ask(server.target, "classify", images(8).repeat(num_images, axis=0)).labels[-1] == 8
    assert len(server.requests) == 3


@pytest.mark.slow
def test_retries_use_the_whole_deadline_and_then_give_the_servers_own_reason(server: ScriptedServer, ask: Ask) -> None:
    server.script, server.pushback_ms = [UNAVAILABLE] * 99, 100
    began_s = time.monotonic()
    with pytest.raises(ClassifyError, match="UNAVAILABLE: DRAINING: the server") as caught:
        ask(server.target, "classify", images(8), timeout_s=1.5)
    assert (caught.value.status, caught.value.word) == ("UNAVAILABLE", "DRAINING")
    assert time.monotonic() - began_s > 1.2
    assert len(server.requests) > 5


def test_a_server_that_asks_not_to_be_asked_again_is_not(server: ScriptedServer, ask: Ask) -> None:
    server.script, server.pushback_ms = [UNAVAILABLE] * 9, -1
    with pytest.raises(ClassifyError, match="DRAINING"):
        ask(server.target, "classify", images(8))
    assert len(server.requests) == 1


@pytest.mark.slow
def test_a_server_that_keeps_refusing_is_spared(server: ScriptedServer) -> None:
    """Retries stop while failures outnumber successes by 2,000."""
    server.script, server.pushback_ms = [UNAVAILABLE] * 99999, 0
    with Client(server.target) as client:
        for _ in range(3):
            with pytest.raises(ClassifyError, match="DRAINING"):
                client.classify(images(8), timeout_s=60)
    assert 2000 <= len(server.requests) <= 2010


@pytest.mark.parametrize("status", ["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "INTERNAL", "DEADLINE_EXCEEDED"])
def test_nothing_else_is_retried(server: ScriptedServer, ask: Ask, status: str) -> None:
    server.script = [(grpc.StatusCode[status], "SOME_WORD: what (cure)")]
    with pytest.raises(ClassifyError) as caught:
        ask(server.target, "classify", images(8))
    assert (caught.value.status, caught.value.word) == (status, "SOME_WORD")
    assert len(server.requests) == 1


def test_call_without_an_answer_ends_at_its_deadline(server: ScriptedServer, ask: Ask) -> None:
    server.gate.clear()
    with pytest.raises(ClassifyError) as caught:
        ask(server.target, "classify", images(8), timeout_s=0.2)
    assert (caught.value.status, caught.value.word) == ("DEADLINE_EXCEEDED", "NO_ANSWER")
    assert "no answer within 0.2 s" in caught.value.message


def test_every_call_has_a_deadline(server: ScriptedServer, ask: Ask) -> None:
    ask(server.target, "classify", images(8))
    ask(server.target, "model")
    assert len(server.seconds_left) == 2
    assert max(server.seconds_left) < 6


def test_health_is_read(server: ScriptedServer, ask: Ask) -> None:
    assert ask(server.target, "is_serving")
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not ask(server.target, "is_serving")


def test_wait_until_ready_goes_on_if_the_server_that_it_waits_for_is_replaced(server: ScriptedServer, ask: Ask) -> None:
    server.health.set("", health_pb2.HealthCheckResponse.SERVING)
    server.health.num_lost = 3
    ask(server.target, "wait_until_ready", timeout_s=20)
    assert server.health.num_lost == 0


def test_wait_until_ready_ends_when_the_server_serves(server: ScriptedServer, ask: Ask) -> None:
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    with pytest.raises(ClassifyError, match="DEADLINE_EXCEEDED"):
        ask(server.target, "wait_until_ready", timeout_s=0.2)
    timer = threading.Timer(0.1, server.health.set, ("", health_pb2.HealthCheckResponse.SERVING))
    timer.start()
    ask(server.target, "wait_until_ready", timeout_s=20)
    assert ask(server.target, "is_serving")
    timer.join()
