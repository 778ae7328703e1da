"""Refusals and logs tell nothing of the machine nor of what clients sent: no path, class, address, token or pixel."""

import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from atelier.wire import OPEN_INFERENCE, SERVICE
from atelier.wire import classifier_pb2 as pb
from atelier.wire import open_inference_pb2 as oip
from loadtest.server_process import server_process
from tests.reliability.plugin import Figure
from tests.serving.pictures import encoded

TOKEN = "canary-token-6f1d2c"  # noqa: S105
PIXELS = b"canary-pixels-a94f"
LEAKS = re.compile(
    r"(?:^|[\s\"'(])/(?:[\w.-]+/)+[\w.-]+"  # a path
    r"|Traceback|\.py\b|\.rs:\d|site-packages|<class|object at|\b[A-Z]\w+(?:Error|Exception)\b"  # of a program
    r"|0x[0-9a-f]{6,}|canary"
)
METHODS = {"/atelier.v1.", "/inference."}  # which errors may name


def messages() -> Iterator[tuple[str, bytes]]:
    """Method and message of calls that must fail."""
    damaged = encoded(Image.new("L", (28, 28)))[:45] + PIXELS * 20
    requests = [
        pb.ClassifyRequest(),
        pb.ClassifyRequest(images=PIXELS),
        pb.ClassifyRequest(images=PIXELS * 10_000),
        pb.ClassifyRequest(pictures=[PIXELS]),
        pb.ClassifyRequest(pictures=[damaged]),
        pb.ClassifyRequest(images=bytes(784), model_version="../../asked"),
        pb.ClassifyRequest(images=bytes(784), model_name="asked/../x"),
    ]
    for request in requests:
        yield f"/{SERVICE}/Classify", request.SerializeToString()
    for message in (b"\xff" * 40, PIXELS, b"\x0a\xff\xff\xff\xff\x0f"):
        yield f"/{SERVICE}/Classify", message
        yield f"/{OPEN_INFERENCE}/ModelInfer", message
    infer = oip.ModelInferRequest(model_name="asked", id="asked")
    yield f"/{OPEN_INFERENCE}/ModelInfer", infer.SerializeToString()
    infer = oip.ModelInferRequest(model_name="lenet5")
    infer.inputs.add(name="asked", datatype="ASKED", shape=[-1, 1 << 62])
    yield f"/{OPEN_INFERENCE}/ModelInfer", infer.SerializeToString()
    yield f"/{SERVICE}/Guess", b""
    yield "/asked.Service/Method", b""


def refusals(target: str) -> Iterator[str]:
    """What the server answers to them, and to calls with a bad token."""
    with grpc.insecure_channel(target) as channel:
        for authorization in (f"Bearer {TOKEN}", f"Bearer {TOKEN}x", f"{TOKEN}"):
            for method, message in messages():
                call: Any = channel.unary_unary(method)
                with pytest.raises(grpc.RpcError) as caught:
                    call(message, timeout=10, metadata=[("authorization", authorization), ("x-canary", TOKEN)])
                failure: Any = caught.value
                assert failure.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), failure.details()
                yield f"{failure.details()} {failure.trailing_metadata()}"


def http_refusals(target: str) -> Iterator[str]:
    """The same over HTTP."""
    document = json.dumps({"inputs": [{"name": "asked", "shape": [1], "datatype": "ASKED", "data": ["canary"]}]})
    for path in ("/v1/classify", "/v2/models/lenet5/infer", "/v2/models/asked/infer", "/asked"):
        for body in (PIXELS, b"{" * 500, document.encode(), b'{"images": ["canary"]}'):
            headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
            request = urllib.request.Request(f"http://{target}{path}", body, headers)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=10)  # noqa: S310
            assert caught.value.code not in (500, 502)
            yield f"{caught.value.headers} {caught.value.read().decode()}"


def leaks_of(text: str) -> list[str]:
    """What of it should not be there; the names of methods may."""
    found = [match[0].strip(" \"'(") for match in LEAKS.finditer(text)]
    return [leak for leak in found if not any(leak.startswith(name) for name in METHODS)]


@pytest.mark.slow
@pytest.mark.goal("G23", of="refusals, and the log with a line for every call", ci=0, release=0)
def test_neither_refusals_nor_the_log_tell_what_is_nobodys_business(
    front_end: str, small_repository: Path, tmp_path: Path, figure: Figure
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(TOKEN.encode()).hexdigest())
    tokens.chmod(0o600)
    options = ["--repository", str(small_repository), "--port", "0", "--tokens", str(tokens), "--log-requests"]
    with server_process("serving", *options, "--front-end", front_end) as server:
        started = server.output
        said = list(refusals(server.target))
        if front_end == "native":
            said += list(http_refusals(server.target))
        assert server.stop() == 0
        log = server.output.removeprefix(started)
    found = [leak for text in said for leak in leaks_of(text)] + leaks_of(log)
    figure(f"{len(found)} leaks in {len(said)} refusals and {log.count(chr(10))} lines of the log")
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "cannot read /srv/models/lenet5/1/model.onnx",
        "<class 'ValueError'>",
        "DecodeError: bad",
        "at 0x7f0012345678",
        f"got {TOKEN}",
        'File "x.py", line 3',
    ],
)
def test_leaks_are_recognised(text: str) -> None:
    assert leaks_of(text)
