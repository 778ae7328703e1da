"""An installation without the extras: what needs none of them works, and the rest says which one is missing."""

import hashlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from export.repository import publish
from serving.manifest import ONNX_NAME
from tests.export.small_model import exported_files, manifest_for

ROOT = Path(__file__).parent.parent


def distributions_of(name: str, known: dict[str, importlib.metadata.Distribution]) -> None:
    """Adds to `known` the distribution and, in turn, what it requires without extras."""
    if name in known:
        return
    known[name] = importlib.metadata.distribution(name)
    for requirement in map(Requirement, known[name].requires or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            distributions_of(requirement.name, known)


@pytest.fixture(scope="session")
def client_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` brings, and nothing else: links to those packages of the tests' own environment."""
    known: dict[str, importlib.metadata.Distribution] = {}
    distributions_of("atelier", known)
    directory = tmp_path_factory.mktemp("client-only")
    for name, distribution in known.items():
        tops = {file.parts[0] for file in distribution.files or [] if name != "atelier" and file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            if not (directory / top).exists():
                (directory / top).symlink_to(Path(str(distribution.locate_file(top))))
    for package in ("atelier", "training", "export", "serving", "loadtest"):
        (directory / package).symlink_to(ROOT / package)
    return directory


def run(client_only: Path, directory: Path, module: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """`python -m <module>`, without the environment's own packages."""
    command = [sys.executable, "-S", "-m", module, *options]
    environment = {"PYTHONPATH": str(client_only), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("module", ["atelier.classify", "training.dataset", "serving"])
def test_client_data_and_the_servers_help_need_no_extra(client_only: Path, tmp_path: Path, module: str) -> None:
    done = run(client_only, tmp_path, module, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    ("module", "package", "extras"),
    [
        ("training", "torch", "train"),
        ("export", "torch", "export,serve"),
        ("loadtest", "tqdm", "load,serve"),
        ("loadtest.bench", "psutil", "load,serve,train"),
        ("loadtest.attack", "psutil", "load,serve"),
        ("loadtest.restarts", "hdrh", "load,serve,export"),
        ("loadtest.gpu_report", "psutil", "load,serve,train"),
    ],
)
def test_program_without_its_extra_says_which_and_how_to_install_it(
    client_only: Path, tmp_path: Path, module: str, package: str, extras: str
) -> None:
    done = run(client_only, tmp_path, module)
    assert done.returncode == 69, done.stderr
    assert done.stderr.startswith(f"error: NOT_INSTALLED: this program needs the package {package}, which is")
    assert f"pip install '.[{extras}]'" in done.stderr and "make setup" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing was fetched or made before


def test_bulk_classification_without_its_extra_says_which(client_only: Path, tmp_path: Path) -> None:
    done = run(client_only, tmp_path, "atelier.classify", "--out", "labels.csv", ".")
    assert done.returncode == 69, done.stderr
    assert done.stderr.startswith("error: NOT_INSTALLED: this program needs the package ")
    assert "pip install '.[bulk]'" in done.stderr and done.stderr.count("\n") == 1


def test_server_without_its_libraries_says_what_to_install(client_only: Path, tmp_path: Path) -> None:
    files = {ONNX_NAME: exported_files()[ONNX_NAME]}
    digests = {ONNX_NAME: hashlib.sha256(files[ONNX_NAME]).hexdigest()}
    publish(tmp_path / "models" / "lenet5", files, manifest_for(digests))
    model = ("--repository", str(tmp_path / "models"), "--device", "cpu")
    no_page = run(client_only, tmp_path, "serving", "--port", "0", *model)
    assert no_page.returncode == 69 and no_page.stderr.startswith("error: NO_LIBRARY: prometheus_client is not"), (
        no_page
    )
    no_runtime = run(client_only, tmp_path, "serving", "--port", "0", "--metrics-port", "0", *model)
    assert no_runtime.returncode == 69, no_runtime
    assert "error: NO_ONNXRUNTIME: asked for onnxruntime: No module named 'onnxruntime' (" in no_runtime.stderr
    for done in (no_page, no_runtime):
        assert "pip install '.[serve]' in Atelier's directory" in done.stderr
