"""What docs/ecosystem.md says of dashboards and clusters is tried, command by command, as far as it can be here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.server_process import server_process

ROOT = Path(__file__).parent.parent
SECTIONS = re.split(r"^## ", (ROOT / "docs" / "ecosystem.md").read_text(), flags=re.MULTILINE)
TABLES = "".join(section for section in SECTIONS if section.startswith(("Dashboards", "Clusters")))
COMMANDS = [row.replace("\\|", "|") for row in re.findall(r"^\| [^|]+ \| .*?`(.+?)` ", TABLES, re.MULTILINE)]

# What a command of the page begins with, and what tries it without starting or changing anything.
CHECKS = {
    "prometheus --config.file": "promtool check config",
    "promtool test rules": "promtool test rules",
    "envoy --config-path": f"{Path(sys.executable).parent}/envoy --mode validate --config-path",
    "kubectl apply --kustomize": "kubectl kustomize",
    "curl": "curl",
}
# Whose counterpart is not to be had here, or takes minutes; tests/deploy and tests/training hold what they name.
NOT_TRIED: tuple[str, ...] = (
    "deploy/monitoring/dashboard.json",
    "docker compose",
    "kubectl apply --filename",
    "kubectl create",
)
NOT_TRIED += ("torchrun", ".venv/bin/python -m deploy.ray.check")
# The server's own flags: tests/test_docs.py starts it with them.
NOT_TRIED += ("make serve", "OTEL_EXPORTER_OTLP_ENDPOINT=")


def run(command: str) -> str:
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_command_is_tried_or_known_not_to_be() -> None:
    assert len(COMMANDS) >= 12
    assert [each for each in COMMANDS if not each.startswith((*CHECKS, *NOT_TRIED))] == []
    for command in COMMANDS:
        for path in re.findall(r"deploy/[\w./-]+", command):
            assert (ROOT / path).exists(), command


@pytest.mark.parametrize("beginning", [each for each in CHECKS if each != "curl"])
def test_program_itself_takes_what_the_page_gives_it(beginning: str) -> None:
    check = CHECKS[beginning]
    if shutil.which(check.split()[0]) is None:
        pytest.skip(f"{check.split()[0]} is not installed")
    commands = [command.replace(beginning, check) for command in COMMANDS if command.startswith(beginning)]
    assert commands
    for command in commands:
        run(command)


@pytest.mark.slow
def test_metrics_are_fetched_as_the_page_says(small_repository: Path) -> None:
    with server_process("serving", "--repository", str(small_repository), "--port", "0", "--device", "cpu") as server:
        address = server.metrics_url.split("/")[2]
        printed = [
            run(command.replace("localhost:8002", address)) for command in COMMANDS if command.startswith("curl")
        ]
    assert 'nv_inference_request_success{model="lenet5"' in printed[0]
    assert printed[1].endswith("# EOF\n")
