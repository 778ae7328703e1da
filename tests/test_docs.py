"""What docs/ says can be done, can be done."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from export.repository import signer_from
from loadtest.restarts.shelf import Shelf
from loadtest.server_process import server_process
from tests.conftest import command
from tests.serving.running import wait_for
from training.dataset import FashionMNIST
from training.idx_files import find_dataset

DOCS = Path(__file__).parent.parent / "docs"


def commands_of(document: str, section: str) -> list[str]:
    """The shell commands of a section, each on one line."""
    text = (DOCS / document).read_text().split(f"## {section}\n", 1)[1].split("\n## ")[0]
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    return blocks.replace("\\\n", " ").splitlines()


def arguments_of(make: str, target: str) -> list[str]:
    """What `make <target> ARGS="..."` passes on."""
    words = shlex.split(make)
    assert words[:2] == ["make", target], make
    return shlex.split(words[2].removeprefix("ARGS="))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.slow
def test_server_with_tls_and_tokens_is_set_up_and_asked_as_the_docs_say(
    data: FashionMNIST, small_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_MNIST_DIR", str((find_dataset() or Path()).absolute()))  # else it would be fetched anew
    monkeypatch.chdir(tmp_path)
    *preparations, serve, classify = commands_of("serving.md", "TLS and tokens")
    subprocess.run(["bash", "-euc", "\n".join(preparations)], check=True, capture_output=True)
    settings = ("--repository", str(small_repository), "--port", "0", "--metrics-port", "0")
    with server_process("serving", *settings, *arguments_of(serve, "serve")) as server:
        asked = arguments_of(classify, "classify")
        done = command("loadtest.samples", "--target", f"localhost:{server.port}", "--count", 4, *asked)
        assert done.returncode == 0, done.stderr
        assert "of 4 right" in done.stdout
        refused = command("loadtest.samples", "--target", f"localhost:{server.port}", "--count", 4, *asked[:2])
        assert "UNAUTHENTICATED" in refused.stderr or "NO_TOKEN" in refused.stderr


@pytest.mark.slow
def test_server_on_several_addresses_is_asked_as_the_docs_say(
    data: FashionMNIST, small_repository: Path, tmp_path: Path
) -> None:
    serve, classify = commands_of("serving.md", "Where it listens")
    settings = ("--repository", str(small_repository), "--port", "0", "--metrics-port", "0")
    path = f"unix:{tmp_path}/atelier.sock"
    hosts, asked = (
        [word.replace("unix:/tmp/atelier.sock", path) for word in words]
        for words in (arguments_of(serve, "serve"), arguments_of(classify, "classify"))
    )
    with server_process("serving", *settings, *hosts):
        done = command("loadtest.samples", "--count", 4, *asked)
    assert "of 4 right" in done.stdout, done.stderr


@pytest.mark.slow
def test_log_for_collectors_is_written_as_the_docs_say(small_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # nobody collects
    serve, install, traces = commands_of("serving.md", "Logs and traces")
    settings = ("--repository", str(small_repository), "--port", "0", "--metrics-port", "0")
    with server_process("serving", *settings, *arguments_of(serve, "serve")) as server:
        command("atelier.classify", "--target", f"localhost:{server.port}", "--health")
        wait_for(lambda: "grpc.health.v1.Health/Check" in server.output)
        lines = [json.loads(line) for line in server.output.splitlines()]
        assert all(line["level"] == "info" or "runs as root" in line["message"] for line in lines)
    assert "'.[traces]'" in install
    with server_process("serving", *settings, *arguments_of(traces.partition(" ")[2], "serve")) as server:
        assert command("atelier.classify", "--target", f"localhost:{server.port}", "--health").returncode == 0


@pytest.mark.slow
def test_newer_version_is_served_as_the_docs_say(
    small_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    watch, serve, hang_up = commands_of("serving.md", "New versions without a restart")
    assert arguments_of(watch, "serve") == ["--watch-repository"]
    shelf = Shelf(repository=tmp_path / "models", source=small_repository)
    shelf.publish(1)
    settings = ("--repository", str(shelf.repository), "--backend", "onnxruntime", "--port", "0")
    with server_process("serving", *settings, *arguments_of(serve, "serve")) as server:
        Path("ready.json").write_text(json.dumps(server.ready))  # the fixture's own is another
        shelf.publish(2)
        subprocess.run(["bash", "-euc", hang_up], check=True)
        wait_for(lambda: "serving lenet5 version 2;" in server.output)
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_signed_version_is_served_as_the_docs_say(
    small_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_key, make_public, install, export, serve = commands_of("serving.md", "Signed versions")
    (sign,) = re.findall(r"`(openssl pkeyutl -sign .*?)`", (DOCS / "serving.md").read_text())
    shutil.copytree(small_repository, "models")
    version_dir = Path("models/lenet5/1").absolute()
    for line in (make_key, make_public, f"cd {version_dir} && {sign.replace('signing.key', '../../../signing.key')}"):
        subprocess.run(["bash", "-euc", line], check=True, capture_output=True)
    assert "'.[signing]'" in install
    assert arguments_of(export, "export") == ["--signing-key", "signing.key"]
    made = (version_dir / "manifest.sig").read_bytes()
    assert signer_from(Path("signing.key"))((version_dir / "manifest.json").read_bytes()) == made
    settings = ("--repository", "models", "--port", "0", "--metrics-port", "0")
    with server_process("serving", *settings, *arguments_of(serve, "serve")) as server:
        assert server.stop() == 0
