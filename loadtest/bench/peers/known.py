"""The peers: how each is started with the model, what it is asked, and where in its answer the logits are."""

import base64
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atelier.contract import Images, Logits
from atelier.errors import ResourceUnavailableError
from atelier.wire import OPEN_INFERENCE
from atelier.wire import open_inference_pb2 as oip
from loadtest.bench.h2load import GRPC, infer_body

HERE = Path(__file__).parent
NUM_PORTS = 5  # as many as one of them opens


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One server. It is asked on the first of its ports."""

    packages: tuple[str, ...]  # the first is the server's own, pinned
    command: Callable[[Path, Path, Path, Sequence[int]], list[str]]  # python, model, directory of its own, ports
    path: str
    body_for: Callable[[Images], bytes]
    logits_in: Callable[[bytes], Logits]  # the body of an answer to one image
    headers: tuple[str, ...] = GRPC
    is_http1: bool = False
    is_text: bool = False  # then answers differ in size


def _script(name: str, *chosen: int) -> Callable[[Path, Path, Path, Sequence[int]], list[str]]:
    """Starts one of the scripts here, which takes the model and those of the ports."""

    def command(python: Path, model: Path, _directory: Path, ports: Sequence[int]) -> list[str]:
        return [str(python), str(HERE / name), str(model), *(str(ports[place]) for place in chosen)]

    return command


def _torchserve(python: Path, model: Path, directory: Path, ports: Sequence[int]) -> list[str]:
    """Starts TorchServe with a worker per core, in batches; its REST interface is faster than its gRPC."""
    if shutil.which("java") is None:
        raise ResourceUnavailableError("NO_JAVA", "TorchServe needs Java 11 or later", "apt-get install default-jre")
    archive = directory / "store" / "lenet5"
    (archive / "MAR-INF").mkdir(parents=True)
    shutil.copy(model, archive / "model.onnx")
    shutil.copy(HERE / "torchserve_handler.py", archive)
    described = {"modelName": "lenet5", "modelVersion": "1.0", "handler": "torchserve_handler.py"}
    described |= {"serializedFile": "model.onnx", "configFile": "model-config.yaml"}
    manifest = {"createdOn": "", "runtime": "python", "archiverVersion": "0.12.0", "model": described}
    (archive / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    workers = {"minWorkers": os.cpu_count(), "maxWorkers": os.cpu_count(), "batchSize": 64, "maxBatchDelay": 1}
    (archive / "model-config.yaml").write_text(json.dumps(workers))  # which is YAML too
    kinds = ("inference_address", "management_address", "metrics_address")
    settings = {kind: f"http://127.0.0.1:{port}" for kind, port in zip(kinds, ports, strict=False)}
    settings |= {"grpc_inference_port": str(ports[3]), "grpc_management_port": str(ports[4])}
    settings |= {"job_queue_size": "2000", "disable_system_metrics": "true", "disable_token_authorization": "true"}
    (directory / "config.properties").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    quiet = '<Configuration><Loggers><Root level="error"/></Loggers></Configuration>'  # or it logs every request
    (directory / "log4j2.xml").write_text(quiet)
    command = [str(python.with_name("torchserve")), "--start", "--foreground", "--ncs", "--models", "lenet5=lenet5"]
    command += ["--model-store", str(archive.parent), "--ts-config", str(directory / "config.properties")]
    return [*command, "--log-config", str(directory / "log4j2.xml")]


def _oip_logits(body: bytes) -> Logits:
    return np.frombuffer(oip.ModelInferResponse.FromString(body[5:]).raw_output_contents[0], np.float32)


PEERS = {
    "TorchServe": Peer(
        packages=("torchserve==0.12.0", "pyyaml==6.0.3"),  # PyYAML is what it needs and does not ask for
        command=_torchserve,
        path="/predictions/lenet5",
        body_for=lambda images: images.tobytes(),
        logits_in=lambda body: np.frombuffer(body, np.float32),
        headers=("content-type: application/octet-stream",),
        is_http1=True,
    ),
    "KServe": Peer(
        packages=("kserve==0.21.0",),
        command=_script("kserve_server.py", 1, 0),  # HTTP, gRPC
        path=f"/{OPEN_INFERENCE}/ModelInfer",
        body_for=infer_body,
        logits_in=_oip_logits,
    ),
    "LitServe": Peer(
        packages=("litserve==0.2.19",),
        command=_script("litserve_server.py", 0),
        path="/predict",
        body_for=lambda images: json.dumps({"image": base64.b64encode(images.tobytes()).decode()}).encode(),
        logits_in=lambda body: np.array(json.loads(body)["logits"], np.float32),
        headers=("content-type: application/json",),
        is_http1=True,
        is_text=True,
    ),
}
