"""Photographs on their way through both front ends and the command: the same images, and the same said of them."""

import base64
import http.client
import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from atelier.classify import main
from atelier.client import Answer, Client, Prepared
from atelier.program import run_program
from atelier.wire import OPEN_INFERENCE, SERVICE
from atelier.wire import classifier_pb2 as pb
from atelier.wire import open_inference_pb2 as oip
from loadtest.server_process import ServerProcess, server_process
from serving.pictures.photographs import prepared
from tests.serving.conftest import HAS_NATIVE, needs_native
from tests.serving.photographs import photographs
from tests.serving.pictures import encoded
from tests.serving.test_open_inference import Asker
from training.dataset import FashionMNIST

Servers = dict[str, ServerProcess]


@pytest.fixture(scope="module")
def servers(small_repository: Path) -> Iterator[Servers]:
    """One of each front end."""
    settings = ("--repository", str(small_repository), "--port", "0", "--device", "cpu", "--front-end")
    with ExitStack() as stack:
        names = ("grpcio", "native") if HAS_NATIVE else ("grpcio",)
        yield {name: stack.enter_context(server_process("serving", *settings, name)) for name in names}


@pytest.fixture(scope="module")
def pictures(data: FashionMNIST) -> list[bytes]:
    """Two photographs, a light one and a dark one, and an image of the data set."""
    images = data.test_images[:2, 0]
    light, dark = photographs(images[:1], is_light=True)[0], photographs(images[1:], is_light=False)[0]
    return [encoded(Image.fromarray(pixels)) for pixels in (light.pixels, dark.pixels, images[0])]


def asked(server: ServerProcess, pictures: list[bytes], **options: bool) -> Answer:
    with Client(server.target) as client:
        return client.classify_pictures(pictures, top_k=10, **options)


def test_pictures_are_answered_as_the_images_that_they_are_prepared_to(servers: Servers, pictures: list[bytes]) -> None:
    images, facts = zip(*map(prepared, pictures), strict=True)
    for server in servers.values():
        answer = asked(server, pictures, prepare=True)
        assert answer.prepared == tuple(Prepared(one.inverted, one.box) for one in facts)
        assert [one.inverted for one in answer.prepared] == [True, False, False]
        assert answer.light_pictures == ()
        with Client(server.target) as client:
            assert answer.classifications == client.classify(np.concatenate(images), top_k=10).classifications


def test_light_pictures_are_named_if_nothing_is_asked_for(servers: Servers, pictures: list[bytes]) -> None:
    for server in servers.values():
        plain = asked(server, [pictures[1], pictures[0], pictures[2], pictures[0]])
        assert (plain.prepared, plain.light_pictures) == ((), (1, 3))
        assert asked(server, pictures, invert=True).light_pictures == ()


def test_front_ends_refuse_prepare_beside_invert_and_beside_images(servers: Servers, pictures: list[bytes]) -> None:
    both = oip.ModelInferRequest(model_name="lenet5", raw_input_contents=[raw_elements(pictures)])
    both.inputs.add(name="pictures", datatype="BYTES", shape=[len(pictures)])
    for name in ("prepare", "invert"):
        both.parameters[name].bool_param = True
    refused = [
        (f"/{SERVICE}/Classify", pb.ClassifyRequest(pictures=pictures, prepare=True, invert=True)),
        (f"/{SERVICE}/Classify", pb.ClassifyRequest(images=bytes(784), prepare=True)),
        (f"/{OPEN_INFERENCE}/ModelInfer", both),
    ]
    for path, request in refused:
        details = set()
        for server in servers.values():
            with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError) as caught:
                Asker(server, channel).bytes_from(path, request)
            failure: Any = caught.value
            assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
            details.add(failure.details())
        assert len(details) == 1  # in the same words
        assert details.pop().startswith("BAD_PREPARE: prepare ")


def test_pictures_of_the_open_inference_protocol_are_prepared_too(servers: Servers, pictures: list[bytes]) -> None:
    request = oip.ModelInferRequest(model_name="lenet5", raw_input_contents=[raw_elements(pictures)])
    request.inputs.add(name="pictures", datatype="BYTES", shape=[len(pictures)])
    request.parameters["prepare"].bool_param = True
    request.outputs.add(name="probabilities")
    for server in servers.values():
        with grpc.insecure_channel(server.target) as channel:
            (raw,) = Asker(server, channel)("ModelInfer", request).raw_output_contents
        probabilities = np.frombuffer(raw, "<f4").reshape(-1, 10)
        answer = asked(server, pictures, prepare=True)
        for row, classification in zip(probabilities, answer.classifications, strict=True):
            assert all(one.probability == row[one.label] for one in classification)


@needs_native
def test_http_says_how_pictures_were_prepared(servers: Servers, pictures: list[bytes]) -> None:
    server = servers["native"]
    facts = [{"inverted": one.inverted, "box": list(one.box)} for _, one in map(prepared, pictures)]

    def posted(path: str, body: bytes, kind: str = "image/png") -> Any:
        host, _, port = server.target.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("POST", path, body, {"Content-Type": kind})
        with closing(connection), connection.getresponse() as reply:
            return json.load(reply)

    encoded = [base64.b64encode(one).decode() for one in pictures]
    document = json.dumps({"pictures": encoded, "prepare": True}).encode()
    answer = posted("/v1/classify", document, "application/json")
    assert answer["prepared"] == facts
    assert "light_pictures" not in answer
    assert posted("/v1/classify?prepare=true", pictures[0])["prepared"] == facts[:1]
    plain = posted("/v1/classify", pictures[0])
    assert plain["light_pictures"] == [0]
    assert "prepared" not in plain
    infer = {
        "inputs": [{"name": "pictures", "datatype": "BYTES", "shape": [3], "data": encoded}],
        "outputs": [{"name": "probabilities"}],
        "parameters": {"prepare": True},
    }
    (output,) = posted("/v2/models/lenet5/infer", json.dumps(infer).encode(), "application/json")["outputs"]
    rows = np.array(output["data"], np.float32).reshape(3, 10)
    for row, classification in zip(rows, asked(server, pictures, prepare=True).classifications, strict=True):
        assert all(one.probability == row[one.label] for one in classification)


def test_command_prepares_says_what_it_did_and_hints_where_it_did_not(
    servers: Servers, pictures: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "light.png", tmp_path / "dark.png"]
    for path, picture in zip(paths, pictures, strict=False):
        path.write_bytes(picture)
    server = servers["grpcio"]

    def printed(*flags: str) -> str:
        assert run_program(main, [*map(str, paths), "--target", server.target, *flags]) == 0
        return capsys.readouterr().out

    heads = [line for line in printed().splitlines() if not line.startswith(" ")]
    for head, path, picture, inverted in zip(heads, paths, pictures, ("inverted, ", ""), strict=False):
        y0, x0, y1, x1 = prepared(picture)[1].box
        assert head == f"{path}  {inverted}{x1 - x0} x {y1 - y0} pixels at ({x0}, {y0})"
    assert "hint" not in printed("--prepare")
    unprepared = printed("--no-prepare")
    assert unprepared.count("hint: the border is light") == 1
    assert unprepared.index("hint: ") < unprepared.index("dark.png")
    assert "pixels at" not in unprepared + printed("--invert")
    assert "hint" not in printed("--invert")
    assert run_program(main, [str(paths[0]), "--prepare", "--invert"]) == 2
    assert capsys.readouterr().err.startswith("error: BAD_PREPARE: --prepare and --invert are both given")


def test_client_refuses_prepare_beside_invert_before_it_asks(pictures: list[bytes]) -> None:
    with Client() as client, pytest.raises(ValueError, match="prepare and invert are both set"):
        client.classify_pictures(pictures, prepare=True, invert=True)


@pytest.mark.parametrize(
    ("flags", "reading"), [((), {"prepare": True}), (("--no-prepare",), {}), (("--invert",), {"invert": True})]
)
def test_a_folder_is_read_as_single_files_are(
    servers: Servers, pictures: list[bytes], tmp_path: Path, flags: tuple[str, ...], reading: dict[str, bool]
) -> None:
    pytest.importorskip("pyarrow")
    folder, out = tmp_path / "pictures", tmp_path / "labels.jsonl"
    folder.mkdir()
    for index, picture in enumerate(pictures):
        (folder / f"{index}.png").write_bytes(picture)
    server = servers["grpcio"]
    assert run_program(main, [str(folder), "--out", str(out), "--target", server.target, *flags]) == 0
    rows = sorted(map(json.loads, out.read_text().splitlines()), key=lambda row: row["path"])
    answer = asked(server, pictures, **reading)
    assert [row["probability"] for row in rows] == [best.probability for best, *_ in answer.classifications]


def raw_elements(pictures: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(picture)) + picture for picture in pictures)
