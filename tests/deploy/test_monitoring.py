"""Holds deploy/monitoring to a real Prometheus over a real server under load: every expression finds something."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml

from atelier.client import Client
from atelier.wire import classifier_pb2 as pb
from loadtest.server_process import free_port, server_process
from tests.serving.running import wait_for

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_bytes())
RULES = yaml.safe_load((MONITORING / "alerts.yaml").read_bytes())["groups"][0]["rules"]
PANELS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
# Alerts are about what has not happened: with `bool` their comparisons answer 0 or 1. The server here has no TLS.
ALERTS = [
    (rule["alert"], re.sub(r" (>|<|==) ([\d.]+)$", r" \1 bool \2", rule["expr"]))
    for rule in RULES
    if "_tls_" not in rule["expr"]
]

if "ATELIER_REQUIRE_PROMETHEUS" not in os.environ and not (shutil.which("prometheus") and shutil.which("promtool")):
    pytest.skip("prometheus and promtool are not installed (apt-get install prometheus)", allow_module_level=True)


class Prometheus:
    """A running one, with its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def results(self, expression: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(  # noqa: S310 # it is http
            f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=10
        ) as reply:
            results: list[dict[str, Any]] = json.loads(reply.read())["data"]["result"]
        return results

    def value(self, expression: str) -> float:
        (result,) = self.results(expression)
        return float(result["value"][1])


@contextmanager
def prometheus(directory: Path, metrics_url: str) -> Iterator[Prometheus]:
    """Runs deploy's own configuration over this server, looking twice a second."""
    settings = yaml.safe_load((MONITORING / "prometheus.yaml").read_bytes())
    settings["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms", "scrape_timeout": "500ms"}
    settings["rule_files"] = [str(MONITORING / name) for name in settings["rule_files"]]
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [metrics_url.split("/")[2]]}]
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    url = f"127.0.0.1:{free_port()}"
    command = ["prometheus", "--config.file=prometheus.yaml", "--storage.tsdb.path=data", f"--web.listen-address={url}"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=directory, stderr=log)
    try:
        wait_for(lambda: answers(f"http://{url}/-/ready"))
        yield Prometheus(f"http://{url}")
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 # it is http
    except OSError:
        return False
    return True


def make_load(target: str, until: threading.Event) -> None:
    """Asks for what is right and, now and then, for what is not."""
    images = np.zeros((3, 28, 28), np.uint8)
    with Client(target) as client, grpc.insecure_channel(target) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/atelier.v1.Classifier/Classify")
        while not until.is_set():
            for _ in range(9):
                client.classify(images)
            with pytest.raises(grpc.RpcError):
                call(pb.ClassifyRequest(images=b"too short").SerializeToString())
            time.sleep(0.02)


@pytest.fixture(scope="module")
def observed(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has watched a server under load for a few seconds."""
    settings = ("--repository", str(small_repository), "--port", "0", "--device", "cpu")
    done = threading.Event()
    with (
        server_process("serving", *settings) as server,
        prometheus(tmp_path_factory.mktemp("prometheus"), server.metrics_url) as watch,
    ):
        load = threading.Thread(target=make_load, args=(server.target, done))
        load.start()
        try:
            wait_for(lambda: bool(watch.results('count_over_time(up{job="atelier"}[1m]) > 8')))
            yield watch
        finally:
            done.set()
            load.join(30)


@pytest.mark.parametrize(("name", "expression"), [*PANELS, *ALERTS])
def test_expression_finds_what_it_is_about(observed: Prometheus, name: str, expression: str) -> None:
    filled = expression.replace("$__rate_interval", "4s").replace("$instance", ".*")
    assert "$" not in filled
    results = observed.results(filled)
    assert results, f"{name}: {filled}"
    for result in results:
        assert result["value"][1] != "NaN" or "_bucket" in filled, f"{name}: {result}"


def test_numbers_are_those_of_the_load(observed: Prometheus) -> None:
    def panel(title: str, index: int = 0) -> float:
        expressions = [expression for name, expression in PANELS if name == title]
        return observed.value(expressions[index].replace("$__rate_interval", "4s").replace("$instance", ".*"))

    assert panel("Servers that serve") == 1
    assert 0.05 < panel("Not answered") < 0.2  # one in ten
    assert panel("Images a second") == pytest.approx(3 * 0.9 * panel("Calls a second"), rel=0.2)
    assert 0 < panel("Where the time goes", 1) < panel("Where the time goes", 2)
    assert panel("Latency", 0) <= panel("Latency", 2)


def test_no_alert_fires_over_a_healthy_server(observed: Prometheus) -> None:
    assert observed.value('up{job="atelier"}') == 1
    assert observed.results("ALERTS") == []


def test_tritons_counters_arrive_as_triton_has_them(observed: Prometheus) -> None:
    answered = observed.value('atelier_requests_total{method="Classify",code="OK"}')
    assert observed.value('nv_inference_request_success{model="lenet5",version="1"}') == answered > 0
    assert observed.value("rate(nv_inference_request_duration_us[4s]) / rate(nv_inference_request_success[4s])") > 0


@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yaml"), ("test", "rules", "alerts_test.yaml")])
def test_promtool_accepts_the_configuration_and_sees_each_alert_fire(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_among_those_that_promtool_sees_fire() -> None:
    tests = (MONITORING / "alerts_test.yaml").read_text()
    assert [rule["alert"] for rule in RULES if f'alertname="{rule["alert"]}"' not in tests] == []
