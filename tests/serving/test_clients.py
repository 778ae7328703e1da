"""Other people's clients, unmodified, against a real server: Triton's, node's, curl, and schemathesis over HTTP.

Their packages are installed once, in .cache/clients. Without them the tests are skipped, unless ATELIER_REQUIRE_CLIENTS
is set. KServe's client takes minutes to install, and runs only with ATELIER_KSERVE_CLIENT set.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atelier.client import Client
from atelier.contract import Images
from atelier.environments import node_modules_with, python_with
from atelier.errors import ResourceUnavailableError
from loadtest.server_process import ServerProcess, server_process
from tests.serving.conftest import FRONT_ENDS, HAS_NATIVE, needs_native

SCRIPTS = Path(__file__).parent / "clients"
CACHE = Path(".cache/clients")
ROOT = Path(__file__).parents[2]
IMAGES: Images = np.random.default_rng(5).integers(0, 256, (20, 1, 28, 28)).astype(np.uint8)
IMAGES[:, 0, 0, :4] = 0

ADDRESS = "localhost:50051"  # on the page
TRITONCLIENT = "tritonclient[grpc,http]==2.73.0"
HAS_NODE = shutil.which("npm") is not None
REFUSED = {
    "wrong name": ("INVALID_ARGUMENT", "400", "UNKNOWN_INPUT"),
    "wrong type": ("INVALID_ARGUMENT", "400", "BAD_DATATYPE"),
    "wrong shape": ("INVALID_ARGUMENT", "400", "BAD_SHAPE"),
    "wrong output": ("INVALID_ARGUMENT", "400", "UNKNOWN_OUTPUT"),
    "two inputs": ("INVALID_ARGUMENT", "400", "BAD_INPUTS"),
    "wrong model": ("NOT_FOUND", "404", "UNKNOWN_MODEL"),
    "wrong version": ("NOT_FOUND", "404", "UNKNOWN_VERSION"),
    "other model": ("NOT_FOUND", "404", "UNKNOWN_MODEL"),
}


def installed(install: Callable[[], Path]) -> Path:
    """What the installation returns; without it the test is skipped."""
    try:
        return install()
    except ResourceUnavailableError as error:
        if "ATELIER_REQUIRE_CLIENTS" in os.environ:
            raise
        pytest.skip(str(error))


def python_of(name: str, *packages: str) -> str:
    python = installed(lambda: python_with(packages, CACHE / name))
    return str(python)


def printed(command: Sequence[str], **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module", params=FRONT_ENDS)
def server(small_repository: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with serving(small_repository, request.param) as running:
        yield running


@pytest.fixture(scope="module")
def native(small_repository: Path) -> Iterator[ServerProcess]:
    if not HAS_NATIVE:
        pytest.skip("the native front end is not installed")
    with serving(small_repository, "native") as running:
        yield running


def serving(repository: Path, front_end: str) -> Any:
    settings = ("--port", "0", "--device", "cpu", "--front-end", front_end)
    return server_process("serving", "--repository", str(repository), *settings)


def section(name: str) -> str:
    """Of docs/http.md."""
    text = (ROOT / "docs" / "http.md").read_text()
    return text.split(f"## {name}\n", 1)[1].split("\n## ")[0]


def commands_of(name: str, beginning: str) -> list[str]:
    """The commands of a section of the page that begin so."""
    blocks = "".join(re.findall(r"```sh\n(.*?)```", section(name), re.DOTALL))
    return [line for line in blocks.splitlines() if line.startswith(beginning)]


def run_in_shell(command: str, server: ServerProcess) -> str:
    return printed(["bash", "-euc", command.replace(ADDRESS, server.target)], cwd=ROOT)


def probabilities_from(server: ServerProcess) -> Any:
    return probabilities_of(server, IMAGES)


def probabilities_of(server: ServerProcess, images: Images) -> Any:
    """What Classify says, (N, 10) by label."""
    with Client(server.target) as client:
        answer = client.classify(images, top_k=10)
    rows = np.zeros((len(images), 10), np.float32)
    for row, predictions in zip(rows, answer.classifications, strict=True):
        for prediction in predictions:
            row[prediction.label] = prediction.probability
    return rows


def what_tritonclient_says(server: ServerProcess, kind: str, directory: Path) -> dict[str, Any]:
    python = python_of("tritonclient", TRITONCLIENT)
    np.save(directory / "images.npy", IMAGES)
    np.save(directory / "probabilities.npy", probabilities_from(server))
    files = [str(directory / name) for name in ("images.npy", "probabilities.npy")]
    lines = printed([python, str(SCRIPTS / "tritonclient_calls.py"), kind, server.target, *files]).splitlines()
    return {note["name"]: note["came"] for note in map(json.loads, lines)}


COMMON = {
    "live": True,
    "ready": True,
    "model ready": True,
    "version ready": True,
    "other model ready": False,
    "server": "atelier",
    "inputs": ["images"],
    "config": "lenet5",
    "index": ["READY"],
    "statistics": True,
    "default": True,
    "options": [True, "42"],
    "classes": [[2, 2], True],
    "aio, all at once": True,
    "asynchronous": True,
    "gzip": True,
}


def test_tritonclient_over_grpc_gets_bitwise_the_answers_of_classify(server: ServerProcess, tmp_path: Path) -> None:
    said = what_tritonclient_says(server, "grpc", tmp_path)
    assert said.pop("load").startswith("StatusCode.UNIMPLEMENTED: ")
    for name, (status, _, word) in REFUSED.items():
        assert said.pop(name).startswith(f"StatusCode.{status}: {word}: "), name
    assert said == COMMON


def test_tritonclient_over_http_gets_bitwise_the_answers_of_classify(native: ServerProcess, tmp_path: Path) -> None:
    said = what_tritonclient_says(native, "http", tmp_path)
    assert said.pop("load").startswith("404: UNKNOWN_PATH: ")
    for name, (_, status, word) in REFUSED.items():
        assert said.pop(name).startswith(f"{status}: {word}: "), name
    assert said == {**COMMON, "JSON": True, "deflate": True}


@pytest.mark.skipif(not HAS_NODE, reason="npm is not installed")
def test_node_calls_by_the_proto_files_as_the_page_says(server: ServerProcess, tmp_path: Path) -> None:
    packages = ("@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1")
    modules = installed(lambda: node_modules_with(packages, CACHE / "node"))
    (tmp_path / "images.bin").write_bytes(IMAGES.tobytes())
    (command,) = commands_of("Others", "node ")
    command = command.replace(" node_modules ", f" {modules} ").replace("images.bin", str(tmp_path / "images.bin"))
    classified, inferred = json.loads(run_in_shell(command, server))
    expected = probabilities_from(server).argmax(1).tolist()
    assert classified == inferred == expected


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not on the PATH")
def test_grpcurl_asks_as_the_page_says(server: ServerProcess) -> None:
    (command,) = commands_of("Others", "grpcurl ")
    assert json.loads(run_in_shell(command, server))["platform"] == "onnxruntime_onnx"


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_lines_of_the_page_for_tritons_client_work(native: ServerProcess, kind: str) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", section("Triton's client"), re.DOTALL)
    lines = block.replace("tritonclient.http", f"tritonclient.{kind}").replace(ADDRESS, native.target)
    expected = probabilities_of(native, np.zeros((2, 1, 28, 28), np.uint8)).argmax(1)
    assert printed([python_of("tritonclient", TRITONCLIENT), "-c", lines]) == f"{expected}\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_asks_as_the_page_says(native: ServerProcess, tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0, 0]).save(tmp_path / "shirt.png")
    commands = commands_of("curl", "curl ")
    plain, with_options, refused, ready, model = (
        json.loads(run_in_shell(command.replace("@shirt.png", f"@{tmp_path}/shirt.png"), native))
        for command in commands
    )
    assert [len(each["classifications"][0]["predictions"]) for each in (plain, with_options)] == [1, 3]
    assert refused["error"].startswith("BAD_IMAGE_SIZE: ")
    assert (ready, model["versions"]) == ({"ready": True}, ["1"])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_sends_a_picture_and_a_list(native: ServerProcess, tmp_path: Path) -> None:
    url, picture, listed = f"http://{native.target}/v1/classify", tmp_path / "shirt.png", tmp_path / "images.json"
    Image.fromarray(IMAGES[0, 0]).save(picture)
    listed.write_text(json.dumps(IMAGES[:3, 0].tolist()))
    with Client(native.target) as client:
        of_picture = client.classify_pictures([picture], top_k=3).classifications
        of_images = client.classify(IMAGES[:3]).classifications
    for arguments, expected in (
        (["--data-binary", f"@{picture}", f"{url}?top_k=3"], of_picture),
        (["-H", "Content-Type: image/png", "--data-binary", f"@{picture}", f"{url}?top_k=3"], of_picture),
        (["--data", f"@{listed}", url], of_images),
        (["--http2-prior-knowledge", "--json", f"@{listed}", url], of_images),
    ):
        document = json.loads(printed(["curl", "--silent", "--show-error", "--fail", *arguments]))
        found = [
            [(one["label"], one["name"], np.float32(one["probability"])) for one in of_image["predictions"]]
            for of_image in document["classifications"]
        ]
        assert found == [
            [(one.label, one.name, np.float32(one.probability)) for one in predictions] for predictions in expected
        ]


@pytest.mark.slow
def test_schemathesis_finds_the_rest_routes_as_the_document_says(native: ServerProcess, tmp_path: Path) -> None:
    """Left out is positive_data_acceptance: a schema cannot say that a shape fits its data.

    A deadline of a microsecond passes, which is no error of the server's.
    """
    expected = '["2xx", "4xx", "503", "504"]'
    (tmp_path / "schemathesis.toml").write_text(f"[checks]\nnot_a_server_error.expected-statuses = {expected}\n")
    python = python_of("schemathesis", "schemathesis==4.32.5")
    command = [str(Path(python).parent / "schemathesis"), "run", f"http://{native.target}/openapi.json"]
    options = ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--max-examples", "10"]
    quiet = ["--seed", "1", "--no-color", "--generation-database", "none", "--phases", "examples,coverage,fuzzing"]
    printed([*command, *options, *quiet], cwd=tmp_path)


@needs_native
@pytest.mark.slow
@pytest.mark.skipif("ATELIER_KSERVE_CLIENT" not in os.environ, reason="KServe takes minutes to install")
def test_kserves_client_over_grpc_and_http(native: ServerProcess, tmp_path: Path) -> None:
    python = python_of("kserve", "kserve==0.21.0")
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "probabilities.npy", probabilities_from(native))
    files = [str(tmp_path / name) for name in ("images.npy", "probabilities.npy")]
    lines = printed([python, str(SCRIPTS / "kserve_calls.py"), native.target, *files]).splitlines()
    assert [json.loads(line) for line in lines if line.startswith("{")] == [
        {"ready": [True, True, True], "raw": [True, "k1"], "typed": [True, "k1"], "protocol": protocol}
        for protocol in ("grpc", "http")
    ]
