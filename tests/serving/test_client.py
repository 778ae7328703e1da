"""Both clients and the command, against a real gRPC server that answers by a script."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from serving.client import Answer, AsyncClient, ClassifyError, Client, main
from serving.errors import run_program
from serving.manifest import TensorSpec
from tests.serving.scripted_server import CLASSES, ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


def images(*labels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(N, 1, 28, 28): what the scripted server sees these labels in."""
    return np.repeat(np.array(labels, np.uint8), 784).reshape(-1, 1, 28, 28)


def ask_with_client(target: str, method: str, *arguments: Any, **options: Any) -> Any:
    with Client(target) as client:
        return getattr(client, method)(*arguments, **options)


def ask_with_async_client(target: str, method: str, *arguments: Any, **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(target) as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(ask())


Ask = Callable[..., Any]


@pytest.fixture(params=[ask_with_client, ask_with_async_client], ids=["Client", "AsyncClient"])
def ask(request: pytest.FixtureRequest) -> Ask:
    chosen: Ask = request.param
    return chosen


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
    ],
)
def test_array_that_is_no_image_is_never_sent(server: ScriptedServer, ask: Ask, array: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ask(server.target, "classify", array)
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


def test_retries_end_after_five_attempts(server: ScriptedServer, ask: Ask) -> None:
    server.script = [UNAVAILABLE] * 9
    with pytest.raises(ClassifyError, match="UNAVAILABLE: DRAINING: the server") as caught:
        ask(server.target, "classify", images(8))
    assert (caught.value.status, caught.value.word) == ("UNAVAILABLE", "DRAINING")
    assert len(server.requests) == 5


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
    assert (caught.value.status, caught.value.word) == ("DEADLINE_EXCEEDED", "")


def test_every_call_has_a_deadline(server: ScriptedServer, ask: Ask) -> None:
    ask(server.target, "classify", images(8))
    ask(server.target, "model")
    assert len(server.seconds_left) == 2
    assert max(server.seconds_left) < 6


def test_health_is_read(server: ScriptedServer, ask: Ask) -> None:
    assert ask(server.target, "is_serving")
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not ask(server.target, "is_serving")


def test_wait_until_ready_ends_when_the_server_serves(server: ScriptedServer, ask: Ask) -> None:
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    with pytest.raises(ClassifyError, match="DEADLINE_EXCEEDED"):
        ask(server.target, "wait_until_ready", timeout_s=0.2)
    timer = threading.Timer(0.1, server.health.set, ("", health_pb2.HealthCheckResponse.SERVING))
    timer.start()
    ask(server.target, "wait_until_ready", timeout_s=20)
    assert ask(server.target, "is_serving")
    timer.join()


# --- The command -----------------------------------------------------------------------------------------------------


def test_command_prints_the_most_probable_classes(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "shirt.png"
    picture.write_bytes(b"\x02png")
    assert run_program(main, [str(picture), "--target", server.target, "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(picture), f"  class 2       50.0%  {'#' * 16}", f"  class 3       50.0%  {'#' * 16}"]


def test_command_names_the_file_that_the_server_refuses(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "shirt.png"
    picture.write_bytes(b"\x02png")
    server.script = [(grpc.StatusCode.INVALID_ARGUMENT, "BAD_PICTURE: pictures[0] is empty (send a whole one)")]
    assert run_program(main, [str(picture), "--target", server.target]) == 65
    assert capsys.readouterr().err == f"error: BAD_PICTURE: {picture}: pictures[0] is empty (send a whole one)\n"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "word"),
    [(["no-such-file.png"], 66, "NO_PICTURE"), (["."], 66, "NO_PICTURE"), ([], 2, "NO_FILES")],
)
def test_command_without_a_picture_says_so(
    arguments: list[str], exit_code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(main, arguments) == exit_code
    assert capsys.readouterr().err.startswith(f"error: {word}: ")


def test_command_without_a_server_says_what_starts_one(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stop()
    assert run_program(main, ["--health", "--target", server.target]) == 69
    assert "NO_SERVER: no server answers" in (message := capsys.readouterr().err)
    assert "make serve starts one" in message


def test_health_check_tells_whether_the_server_serves(server: ScriptedServer) -> None:
    assert run_program(main, ["--health", "--target", server.target]) == 0
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert run_program(main, ["--health", "--target", server.target]) == 69
