"""Holds deploy/compose.yaml to the schema of Compose, and to what is promised of its containers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_bytes())


def schema_errors(*paths: Path) -> str:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.slow
def test_compose_file_is_as_the_schema_has_it_and_a_misspelled_field_is_seen(tmp_path: Path) -> None:
    text, misspelled = (DEPLOY / "compose.yaml").read_text(), tmp_path / "misspelled.yaml"
    misspelled.write_text(text.replace("stop_grace_period", "stop_grace_periode"))
    errors = schema_errors(DEPLOY / "compose.yaml", misspelled)
    assert "stop_grace_periode" in errors and str(misspelled) in errors
    assert str(DEPLOY / "compose.yaml") not in errors


def test_files_that_are_mounted_exist_and_are_read_only() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source, _, rest = volume.partition(":")
            if source in COMPOSE["volumes"]:
                continue
            assert rest.endswith(":ro"), volume
            assert (DEPLOY / source).exists() or source == "../artifacts/models", volume


def test_grafana_finds_prometheus_and_the_dashboard_where_they_are_mounted() -> None:
    provider = yaml.safe_load((DEPLOY / "monitoring" / "grafana" / "dashboards.yaml").read_bytes())["providers"][0]
    mounts = " ".join(COMPOSE["services"]["grafana"]["volumes"])
    assert f"{provider['options']['path']}/dashboard.json" in mounts
    source = yaml.safe_load((DEPLOY / "monitoring" / "grafana" / "datasource.yaml").read_bytes())["datasources"][0]
    assert source["url"] == "http://localhost:9090"
    assert {COMPOSE["services"][name]["network_mode"] for name in ("prometheus", "grafana")} == {"service:server"}
    assert json.loads((DEPLOY / "monitoring" / "dashboard.json").read_bytes())["uid"] == "atelier"
