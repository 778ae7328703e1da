"""What the page is told is what the server answers: over a real server, with either front end."""

import asyncio
import dataclasses
import http.client
import shutil
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from atelier.answers import ClassifyError
from atelier.client import AsyncClient, Client
from export.parity import truth_of
from export.repository import publish
from loadtest.server_process import ServerProcess
from serving.manifest import LAYERS_NAME, ONNX_NAME, find_version
from serving.models import ModelVersion
from serving.playground.errors import PageError, described
from serving.playground.looks import Looks
from serving.playground.probe import Probe
from serving.playground.versions import Versions
from tests.conftest import command
from tests.export.small_model import probes_of, version_for_servers
from tests.serving.conftest import FRONT_ENDS
from tests.serving.playground.http import IMAGE, Reply, ask
from tests.serving.playground.test_process import port_of, serving
from tests.serving.playground.versions import exported, manifest_of, seeded
from tests.serving.running import wait_for


@pytest.fixture(scope="module", params=FRONT_ENDS)
def server(request: pytest.FixtureRequest, small_repository: Path) -> Iterator[ServerProcess]:
    with serving(small_repository, request.param) as running:
        yield running


def look(server: ServerProcess, query: str = "") -> Reply:
    reply = ask(port_of(server), "POST", f"/api/look{query}", IMAGE.tobytes())
    assert reply.status == 200, reply.body
    return reply


def test_network_is_described(server: ServerProcess, small_repository: Path) -> None:
    network = ask(port_of(server), "GET", "/api/network").json
    with Client(server.target) as client:
        served = client.model()
    assert network["model"] == {
        "name": "lenet5",
        "version": 1,
        "architecture": "tutorial",
        "precision": "fp32",
        "backend": "onnxruntime",
        "device": "cpu",
        "model_sha256": served.model_sha256,
        "checkpoint_sha256": served.checkpoint_sha256,
    }
    assert network["format"] == network["served_version"] == 1 and network["classes"] == list(served.classes)
    assert network["probe"] == {"runtime": "onnxruntime", "device": "cpu", "is_served_runtime": True}
    assert network["versions"] == [{"version": 1, "precision": "fp32", "architecture": "tutorial"}]
    assert (network["num_values"], network["num_weights"]) == (13786, 61706)
    weights = ask(port_of(server), "GET", "/api/weights")
    assert len(weights.body) == 4 * 61706 and weights.headers["content-type"] == "application/octet-stream"


def test_look_is_the_served_answer_and_all_values(server: ServerProcess, small_repository: Path) -> None:
    reply = look(server)
    header, values = reply.frame
    assert len(reply.body) - 4 - int.from_bytes(reply.body[:4], "little") == 55_144
    with Client(server.target) as client:
        [predictions] = client.classify(IMAGE, top_k=10).classifications
    wanted = [each.probability for each in sorted(predictions, key=lambda each: each.label)]
    answer = header["answer"]
    assert answer["probabilities"] == wanted
    assert answer["batch_size"] == 1 and 0 < answer["inference_us"] <= answer["round_trip_us"]
    assert header["refusal"] is None and header["version"] == 1 and header["probe_us"] > 0
    assert 0 <= header["max_abs_diff_probability"] < 1e-6
    directory, manifest = find_version(small_repository, 1)
    probe = Probe(ModelVersion(directory=directory, manifest=manifest))
    assert np.array_equal(values, probe.look(IMAGE[None, None]))


@pytest.mark.parametrize("query", ["?answer=0", "?version=1", "?off=conv1:0,conv2:5"])
def test_what_is_not_served_has_no_answer(server: ServerProcess, query: str) -> None:
    header, values = look(server, query).frame
    assert header["answer"] is header["refusal"] is None and len(values) == 13786
    off = values[784 : 784 + 28 * 28]  # conv1's first map
    assert off.any() == ("off" not in query)


def test_occlusion_is_170_images_in_one_call(server: ServerProcess) -> None:
    header, losses = ask(port_of(server), "POST", "/api/occlusion", IMAGE.tobytes()).frame
    assert (header["images"], header["batches"], header["rows"]) == (170, 3, 13) and header["round_trip_us"] > 0
    losses = losses.reshape(13, 13)
    with Client(server.target) as client:
        [[best]] = client.classify(IMAGE).classifications
        assert header["label"] == best.label
        for row, column in ((0, 0), (6, 7), (12, 12), (0, 12)):
            covered = IMAGE.copy()
            top, left = max(0, 2 * row - 1), max(0, 2 * column - 1)
            covered[top : 2 * row + 4, left : 2 * column + 4] = 0
            [predictions] = client.classify(covered, top_k=10).classifications
            [left_over] = [each.probability for each in predictions if each.label == best.label]
            assert losses[row, column] == pytest.approx(best.probability - left_over, abs=1e-6)


def test_what_the_server_refuses_is_told_with_its_word_once() -> None:
    """Of the 170 images that ask which pixels matter."""

    class FullServer:
        async def model(self, **_: float) -> None:
            raise ClassifyError("UNAVAILABLE", "NOT_READY: the server is starting (wait)")

        async def classify(self, *_: object, **__: object) -> None:
            raise ClassifyError("RESOURCE_EXHAUSTED", "QUEUE_FULL: 4090 images wait (try again later)")

    looks = Looks(cast(AsyncClient, FullServer()), cast(Versions, None))
    with pytest.raises(PageError) as caught:
        asyncio.run(looks.occlusion(IMAGE[None, None], 5, 2))
    status, told = described(caught.value)
    message = "QUEUE_FULL: 4090 images wait (try again later)"
    assert (status, told) == (503, {"reason": "QUEUE_FULL", "message": message, "cure": "try again later"})


@pytest.mark.slow
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_page_shows_the_version_that_answers_after_a_swap(
    small_repository: Path, tmp_path: Path, front_end: str
) -> None:
    repository = Path(shutil.copytree(small_repository, tmp_path / "models"))
    with serving(repository, front_end) as server:
        assert look(server).frame[0]["version"] == 1
        publish_classic(repository)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "serving lenet5 version 2;" in server.output)
        header, values = look(server).frame
        assert header["version"] == 2 and len(values) == 19562
        assert header["max_abs_diff_probability"] < 1e-6
        network = ask(port_of(server), "GET", "/api/network").json
        assert (network["model"]["version"], network["model"]["architecture"]) == (2, "classic")
        before = ask(port_of(server), "GET", "/api/network?version=1").json
        assert before["model"]["backend"] is None and before["served_version"] == 2
        assert [each["version"] for each in before["versions"]] == [1, 2]


def publish_classic(repository: Path) -> None:
    files = exported("classic")
    manifest = manifest_of(files, "classic", "fp32")
    publish(repository / "lenet5", files, dataclasses.replace(manifest, probes=probes_of(truth_of(seeded("classic")))))


@pytest.mark.slow
def test_changed_and_older_versions_are_refused_and_the_served_one_is_not(
    small_repository: Path, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(small_repository, tmp_path / "models"))
    files, manifest = version_for_servers()
    publish(repository / "lenet5", files, manifest)
    old = {name: data for name, data in files.items() if name != LAYERS_NAME}
    digests = {name: digest for name, digest in manifest.files.items() if name != LAYERS_NAME}
    publish(repository / "lenet5", old, dataclasses.replace(manifest, files=digests))
    changed = repository / "lenet5" / "2" / ONNX_NAME
    changed.write_bytes(changed.read_bytes()[:-1])
    with serving(repository, "grpcio", "--model-version", "1") as server:
        port = port_of(server)
        for number, reason in ((2, "HASH_MISMATCH"), (3, "OLD_EXPORT")):
            reply = ask(port, "GET", f"/api/network?version={number}")
            assert (reply.status, reply.json["reason"]) == (503, reason) and "make export" in reply.json["cure"]
        assert look(server).frame[0]["version"] == 1


@pytest.mark.slow
def test_files_that_are_not_those_that_answer_are_not_shown(small_repository: Path, tmp_path: Path) -> None:
    """A version that was replaced under its number, by hand, after the server had read it."""
    repository = Path(shutil.copytree(small_repository, tmp_path / "models"))
    with serving(repository, "grpcio", "--model-version", "1") as server:
        (repository / "lenet5" / "1" / LAYERS_NAME).write_text("{}")
        reply = ask(port_of(server), "GET", "/api/network")
        assert (reply.status, reply.json["reason"]) == (503, "HASH_MISMATCH")


def test_help_names_the_page() -> None:
    shown = " ".join(command("serving", "--help").stdout.split())
    assert "--playground-port" in shown and "looks inside the served network" in shown


@pytest.mark.timing
def test_a_look_costs_little_more_than_a_file_of_its_size(server: ServerProcess) -> None:
    """The maps of one image, 55 KB, beside the picture of the garments, 40 KB, in turn on one connection."""
    took_s: dict[str, list[float]] = {"/api/look?answer=0": [], "/garments.png": []}
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=30)
    for _ in range(50):  # of the 60 looks that are allowed at once
        for path, took in took_s.items():
            method, body = ("POST", IMAGE.tobytes()) if path.startswith("/api/") else ("GET", None)
            began_s = time.monotonic()
            connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
            reply = connection.getresponse()
            assert len(reply.read()) > 35_000 and reply.status == 200
            took.append(time.monotonic() - began_s)
    connection.close()
    look_s, file_s = (statistics.median(took) for took in took_s.values())
    assert look_s < 5 * file_s
