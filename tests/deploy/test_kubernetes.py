"""Holds deploy/'s manifests to the schemas of Kubernetes, KServe and Kubeflow, and to the server that they start."""

import copy
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from atelier.client import Client
from atelier.wire import OPEN_INFERENCE
from atelier.wire import open_inference_pb2 as oip
from loadtest.server_process import server_process
from serving.config import ServerConfig
from tests.deploy.crd import DEPLOY, MANIFESTS, SCHEMAS
from tests.deploy.test_hardening import weaknesses
from tests.serving.running import scrape

VERSION = "1.34"
OVERLAYS = ["cpu", "gpu"]
needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None and "ATELIER_REQUIRE_KUBECTL" not in os.environ, reason="kubectl is not installed"
)


def rendered(overlay: str) -> list[dict[str, Any]]:
    """What `kubectl apply --kustomize` would send, from kubectl itself."""
    path = DEPLOY / "kubernetes" / "overlays" / overlay
    done = subprocess.run(["kubectl", "kustomize", str(path)], capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr  # warnings, of fields that will go
    return list(yaml.safe_load_all(done.stdout))


def one(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (each for each in documents if each["kind"] == kind)
    return found


def pod_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = one(documents, "Deployment")["spec"]["template"]["spec"]
    return spec


def strict(documents: list[dict[str, Any]]) -> None:
    import kubernetes_validate  # takes a second, which every process that tests would need

    for document in documents:
        kubernetes_validate.validate(document, VERSION, strict=True)


# --- Kubernetes ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_is_what_kubernetes_takes(overlay: str) -> None:
    documents = rendered(overlay)
    kinds = {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"}
    assert {document["kind"] for document in documents} == kinds
    strict(documents)


@needs_kubectl
def test_misspelled_field_is_seen() -> None:
    import kubernetes_validate  # as above

    documents = copy.deepcopy(rendered("cpu"))
    container = pod_of(documents)["containers"][0]
    container["readinesProbe"] = container.pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        strict(documents)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_of_all_parts_are_the_same_ones(overlay: str) -> None:
    documents = rendered(overlay)
    labels = one(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        one(documents, "Service")["spec"]["selector"],
        one(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        one(documents, "Deployment")["spec"]["selector"]["matchLabels"],
        pod_of(documents)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    assert one(documents, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "atelier"
    assert one(documents, "Service")["spec"]["clusterIP"] == "None"


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pod_can_write_and_do_nothing_that_it_need_not(overlay: str) -> None:
    pod = pod_of(rendered(overlay))
    (container,) = pod["containers"]
    assert weaknesses(pod | {"limits": {}}) == []
    assert pod["automountServiceAccountToken"] is False
    assert [mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")] == ["tmp"]
    assert pod["terminationGracePeriodSeconds"] > ServerConfig().drain_timeout_s


@needs_kubectl
def test_overlay_gpu_asks_for_one_and_serves_on_it() -> None:
    documents = rendered("gpu")
    (container,) = pod_of(documents)["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["args"] == ["--device=cuda"]
    assert [each["type"] for each in one(documents, "HorizontalPodAutoscaler")["spec"]["metrics"]] == ["Pods"]


@pytest.mark.slow
@needs_kubectl
def test_server_with_the_pods_arguments_answers_its_probes_and_has_the_autoscalers_metric(
    small_repository: Path,
) -> None:
    """The kubelet's gRPC probe is Health/Check of the service that the probe names."""
    documents = rendered("cpu")
    (container,) = pod_of(documents)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (ports["grpc"], ports["metrics"]) == (ServerConfig().port, ServerConfig().metrics_port_to_open)
    probes = [container[f"{name}Probe"]["grpc"] for name in ("startup", "readiness", "liveness")]
    assert {(probe["port"], probe.get("service", "")) for probe in probes} == {(ports["grpc"], "")}
    arguments = ("--repository", str(small_repository), "--port", "0", *container["args"])
    with server_process("serving", *arguments) as server:
        with Client(server.target) as client:
            assert client.is_serving()
        for metric in one(documents, "HorizontalPodAutoscaler")["spec"]["metrics"]:
            if metric["type"] == "Pods":
                assert scrape(server).value(metric["pods"]["metric"]["name"]) == 0


# --- What is not Kubernetes' own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_custom_resource_is_as_its_definition_has_it(path: Path) -> None:
    import jsonschema  # as above

    document = yaml.safe_load(path.read_bytes())
    schema = json.loads(SCHEMAS.read_bytes())[f"{document['apiVersion']} {document['kind']}"]
    jsonschema.validate(document, schema)
    spoiled = copy.deepcopy(document)
    spoiled["spec"]["replicass"] = 2
    with pytest.raises(jsonschema.ValidationError, match="replicass"):
        jsonschema.validate(spoiled, schema)


def test_inference_service_names_the_runtime_and_a_protocol_that_it_has() -> None:
    runtime, service = (
        yaml.safe_load((DEPLOY / "kserve" / name).read_bytes()) for name in ("runtime.yaml", "service.yaml")
    )
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["modelFormat"]["name"] in {each["name"] for each in runtime["spec"]["supportedModelFormats"]}


@pytest.mark.slow
def test_server_with_the_runtimes_arguments_is_ready_in_the_protocol_that_kserve_asks_for(
    small_repository: Path,
) -> None:
    runtime = yaml.safe_load((DEPLOY / "kserve" / "runtime.yaml").read_bytes())
    (container,) = runtime["spec"]["containers"]
    assert container["ports"][0]["containerPort"] == ServerConfig().port
    arguments = [each.replace("/mnt/models", str(small_repository)) for each in container["args"]]
    with (
        server_process("serving", "--port", "0", "--metrics-port", "0", *arguments) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        call: Any = channel.unary_unary(f"/{OPEN_INFERENCE}/ModelReady")
        reply = call(oip.ModelReadyRequest(name="lenet5").SerializeToString(), timeout=10)
    assert oip.ModelReadyResponse.FromString(reply).ready
