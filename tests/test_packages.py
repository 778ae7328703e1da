"""Wheel and sdist: what they install into an empty environment is small, serves an exported model and classifies."""

import subprocess
import sys
import tarfile
import zipfile
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from atelier.client import Client
from atelier.environments import python_with, size_mb
from atelier.errors import ResourceUnavailableError
from loadtest.server_process import program_process
from tests.serving.playground.page.pages import look

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
BUILDERS = ("build==1.3.0", "hatchling==1.33.0", "grpcio-tools==1.85.1")  # pyproject.toml's, and what calls them


def run(*command: object, cwd: Path) -> str:
    """Runs where our own packages are not found; returns what it printed."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sdist of this tree, and a wheel that was built from that sdist alone."""
    try:
        python = python_with(BUILDERS, Path(".cache/packages/build"))
    except ResourceUnavailableError as error:
        pytest.skip(f"needs the packages that build: {error}")
    directory = tmp_path_factory.mktemp("packages")
    run(python, "-m", "build", "--no-isolation", "--outdir", directory, ROOT, cwd=directory)
    return directory


def installed(packages: Path, extras: str, directory: Path) -> Path:
    """An environment with what `pip install 'atelier[<extras>]'` brings, and nothing else."""
    environment = directory / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    [wheel] = packages.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-compile", f"{wheel}[{extras}]", cwd=packages)
    return environment


def test_server_only_install_serves_and_classifies_and_is_small(
    packages: Path, small_repository: Path, tmp_path: Path
) -> None:
    """The commands `atelier serve` and `atelier classify` of that environment, away from this checkout."""
    empty = installed(packages, "serve", tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    atelier = empty / "bin" / "atelier"
    options = ("--repository", str(small_repository), "--port", "0", "--metrics-port", "0", "--front-end", "grpcio")
    with program_process([str(atelier), "serve", *options]) as served:
        printed = run(atelier, "classify", "noise.png", "--target", served.target, cwd=tmp_path)
        with Client(served.target) as client:
            assert client.classify(pixels).classifications[0][0].name in printed.splitlines()[1]
    assert size_mb(empty) < 200  # after it has served, so with what Python compiled
    brought = {path.name for path in empty.glob("lib/*/site-packages/*")}
    assert {"atelier", "onnxruntime"} <= brought and not brought & {"torch", "onnx", "pyarrow", "matplotlib"}


def test_wheel_serves_the_page_with_its_extra(packages: Path, small_repository: Path, tmp_path: Path) -> None:
    environment = installed(packages, "serve,playground", tmp_path)
    options = ("--repository", str(small_repository), "--port", "0", "--metrics-port", "0", "--front-end", "grpcio")
    with program_process([str(environment / "bin" / "atelier"), "serve", *options]) as served:
        [address] = served.ready["playground"]
        with closing(HTTPConnection(urlsplit(address).netloc, timeout=60)) as connection:
            connection.request("GET", "/app.js")
            page_dir = ROOT / "serving" / "playground" / "page"
            assert connection.getresponse().read() == (page_dir / "app.js").read_bytes()
        assert look(address, np.zeros(784, np.uint8)).head["answer"]


def test_wheel_and_sdist_hold_what_they_need_and_nothing_of_ours_besides(packages: Path) -> None:
    [wheel], [sdist] = packages.glob("*.whl"), packages.glob("*.tar.gz")
    files = zipfile.ZipFile(wheel).namelist()
    assert {f"serving/playground/page/{name}" for name in ("index.html", "app.js", "style.css", "garments.png")} <= {
        *files
    }
    assert {"loadtest/results/page.css", "loadtest/bench/echo.cc"} <= {*files}
    in_wheel = {name.split("/")[0] for name in files if ".dist-info" not in name}
    assert in_wheel == {"atelier", "training", "export", "serving", "loadtest"}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert in_sdist >= {"pyproject.toml", "protos", "hatch_build.py", "LICENSE", "README.md"}
    assert not in_sdist & {"tests", "data", "artifacts", "reports", ".venv", ".cache"}
    assert wheel.stat().st_size < 1e6 and sdist.stat().st_size < 1e6
