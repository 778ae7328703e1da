"""Every container of deploy/ may do and write as little as its program needs: no manifest is left out."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_bytes())
# The user of each image: the Dockerfile's, and those that Prometheus and Grafana document.
USERS = {"server": "10001:10001", "prometheus": "65534:65534", "grafana": "472:0"}
Pod = dict[str, Any]


def pods_in(value: Any, limits: Pod) -> Iterator[Pod]:
    """Every object with containers, wherever it is in a manifest, with the limits that stand elsewhere."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value | {"limits": limits}
        for inner in value.values():
            yield from pods_in(inner, limits)
    elif isinstance(value, list):
        for inner in value:
            yield from pods_in(inner, limits)


def found_pods() -> dict[str, Pod]:
    found: dict[str, Pod] = {}
    for path in sorted(DEPLOY.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_bytes()):
            if isinstance(document, dict):
                trainer = document.get("spec", {}).get("trainer", {}) if document.get("kind") == "TrainJob" else {}
                limits = trainer.get("resourcesPerNode", {}).get("limits", {})
                found |= {str(path.relative_to(DEPLOY)): pod for pod in pods_in(document, limits)}
    return found


PODS = found_pods()


def weaknesses(pod: Pod) -> list[str]:
    """What Kubernetes' standard `restricted` would refuse, and more: a root that can be written, memory without end."""
    weak = []
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container.get("securityContext", {})
        both = pod.get("securityContext", {}) | own
        kept = {
            "runs as root": both.get("runAsNonRoot") is True and both.get("runAsUser", 0) > 0,
            "seccomp": both.get("seccompProfile") == {"type": "RuntimeDefault"},
            "new privileges": own.get("allowPrivilegeEscalation") is False,
            "root can be written": own.get("readOnlyRootFilesystem") is True,
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "memory": "memory" in container.get("resources", {}).get("limits", {}) | pod["limits"],
        }
        weak += [name for name, holds in kept.items() if not holds]
    for volume in pod.get("volumes", []):
        if not volume.keys() & {"emptyDir", "persistentVolumeClaim", "secret"}:
            weak.append(f"volume {volume['name']}")
        if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
            weak.append(f"size of {volume['name']}")
        if "secret" in volume and volume["secret"].get("defaultMode", 0o644) & 0o007:  # YAML 1.1: 0440 is octal
            weak.append(f"mode of {volume['name']}")
    return weak


def test_manifests_with_containers_are_all_known() -> None:
    assert set(PODS) == {"kserve/runtime.yaml", "kubernetes/base/deployment.yaml", "kubernetes/training/trainjob.yaml"}


@pytest.mark.parametrize("path", PODS)
def test_container_is_hardened(path: str) -> None:
    assert weaknesses(PODS[path]) == []


def without(name: str) -> Callable[[Pod], None]:
    """Takes a setting of the containers away, and where the pod says it for all of them."""

    def spoil(pod: Pod) -> None:
        pod.get("securityContext", {}).pop(name, None)
        for container in pod["containers"]:
            container["securityContext"].pop(name, None)

    return spoil


def without_limits(pod: Pod) -> None:
    pod["limits"] = {}
    for container in pod["containers"]:
        container.pop("resources", None)


SPOILED: dict[str, Callable[[Pod], None]] = {
    "runs as root": without("runAsUser"),
    "seccomp": without("seccompProfile"),
    "new privileges": without("allowPrivilegeEscalation"),
    "root can be written": without("readOnlyRootFilesystem"),
    "capabilities": without("capabilities"),
    "memory": without_limits,
    "size of tmp": lambda pod: pod["volumes"].append({"name": "tmp", "emptyDir": {}}),
    "volume host": lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
    "mode of tls": lambda pod: pod["volumes"].append({"name": "tls", "secret": {"secretName": "tls"}}),
}


@pytest.mark.parametrize("path", PODS)
@pytest.mark.parametrize("weakness", SPOILED)
def test_one_missing_setting_is_seen(path: str, weakness: str) -> None:
    pod = copy.deepcopy(PODS[path])
    SPOILED[weakness](pod)
    assert weaknesses(pod) == [weakness]


def test_nothing_shares_the_hosts_namespaces_or_is_privileged() -> None:
    text = "\n".join(path.read_text() for path in DEPLOY.rglob("*.yaml"))
    for word in ("hostNetwork", "hostPID", "hostIPC", "hostPath", "privileged:", "network_mode: host", "docker.sock"):
        assert word not in text


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_service_of_compose_is_hardened(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == USERS[name]
    assert service["tmpfs"] == ["/tmp:size=16m,noexec,nosuid,nodev"]  # noqa: S108
    assert service["pids_limit"] == 512 and service["mem_limit"] == "512m"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_user_of_the_images_is_the_one_that_the_manifests_name() -> None:
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()
    assert dockerfile.count("USER 10001:10001") == 2 and "--uid 10001" in dockerfile
    for path, pod in PODS.items():
        for container in pod["containers"]:
            both = pod.get("securityContext", {}) | container["securityContext"]
            assert (both["runAsUser"], both["runAsGroup"]) == (10001, 10001), path
