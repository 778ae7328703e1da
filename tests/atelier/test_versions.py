"""A package that is too old to be safe ends a program before it is imported."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from atelier.versions import MINIMUM, check_packages

ROOT = Path(__file__).parents[2]


def installed(name: str, version: str, directory: Path) -> None:
    """Says what pip writes beside a package: found before the environment's own, it says that this one is there."""
    metadata = directory / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def run(module: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    environment = {"PYTHONPATH": f"{directory}:{ROOT}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", module, "--help"]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.fault("O6")
@pytest.mark.parametrize(
    ("module", "name", "version", "why"),
    [
        ("training", "torch", "2.9.1+cu130", "CVE-2026-24747"),
        ("export", "torch", "2.9.1", "CVE-2026-24747"),
        ("export", "onnx", "1.20.1", "CVE-2026-27489"),
        ("serving", "grpcio", "1.60.0", "CVE-2024-7246"),
        ("serving", "pillow", "12.3.0", "CVE-2026-112403"),
        ("atelier.classify", "pillow", "9.5", "CVE-2026-112403"),
    ],
)
def test_program_ends_with_the_minimum_and_the_reason(
    tmp_path: Path, module: str, name: str, version: str, why: str
) -> None:
    installed(name, version, tmp_path)
    done = run(module, tmp_path)
    assert done.returncode == 78, done
    minimum = MINIMUM[name].version
    assert done.stderr.startswith(f"error: OLD_PACKAGE: {name} {version} is installed, and {minimum} is the oldest")
    assert why in done.stderr and f"'{name}>={minimum}'" in done.stderr and done.stderr.count("\n") == 1


def test_program_runs_with_the_minimum_itself_and_without_a_package_it_may_do_without(tmp_path: Path) -> None:
    installed("grpcio", MINIMUM["grpcio"].version + ".0rc1", tmp_path)
    assert run("serving", tmp_path).returncode == 0
    check_packages(list(MINIMUM))


def test_minimum_is_the_bound_that_pip_is_given() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [each for extra in project["optional-dependencies"].values() for each in extra] + project["dependencies"]
    bounds = {
        (each.name, bound.version)
        for each in map(Requirement, needed)
        for bound in each.specifier
        if each.name in MINIMUM and bound.operator == ">="
    }
    assert bounds == {(name, minimum) for name, (minimum, _) in MINIMUM.items()}
