"""TLS and tokens of both front ends, with real certificates, through our client and through grpc's own."""

import hashlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from atelier.client import ClassifyError, Client
from atelier.wire import SERVICE
from loadtest.server_process import ServerProcess, server_process
from tests.conftest import command
from tests.serving.fake_backend import image

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

SERVER = "tests.serving.breaking_server"
RELOAD_S = 2.5  # by then a file that has changed has been read again
Serving = Callable[..., AbstractContextManager[ServerProcess]]


@pytest.fixture
def serving(front_end: str) -> Serving:
    @contextmanager
    def start(*arguments: object) -> Iterator[ServerProcess]:
        settings = ("--port", "0", "--metrics-port", "0", "--front-end", front_end)
        with server_process(SERVER, *settings, *map(str, arguments)) as server:
            yield server

    return start


def make_certificate(folder: Path, name: str, authority: tuple[Path, Path] | None = None) -> tuple[Path, Path]:
    """A certificate for localhost and its key, signed by itself or an authority."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    alternatives = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    if authority is not None:
        signed = ["-CA", str(authority[0]), "-CAkey", str(authority[1]), "-addext"]
        files += [*signed, "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*command.split(), *alternatives, *files], check=True, capture_output=True)
    return certificate, key


def label_from(target: str, **access: Any) -> int:
    with Client(target, **access) as client:
        label: int = client.classify(image(7), timeout_s=10).labels[0]
    return label


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("S44")
def test_tls_serves_those_who_trust_it_and_nobody_in_plain_text(serving: Serving, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    with serving("--tls-certificate", certificate, "--tls-key", key) as server:
        assert label_from(server.target, tls=certificate) == 7
        with pytest.raises(ClassifyError, match="UNAVAILABLE"):
            label_from(server.target)
        stranger, _ = make_certificate(tmp_path, "stranger")
        with pytest.raises(ClassifyError, match=r"NO_SERVER: the TLS handshake with .* failed"):
            label_from(server.target, tls=stranger)
        assert server.stop() == 0


@pytest.mark.fault("S44")
def test_mutual_tls_turns_away_clients_without_a_certificate(serving: Serving, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    authority = make_certificate(tmp_path, "authority")
    client = make_certificate(tmp_path, "client", authority)
    flags = ("--tls-certificate", certificate, "--tls-key", key, "--tls-client-authority", authority[0])
    with serving(*flags) as server:
        assert label_from(server.target, tls=certificate, certificate=client) == 7
        with pytest.raises(ClassifyError, match="UNAVAILABLE"):
            label_from(server.target, tls=certificate)


@pytest.mark.fault("S42")
@pytest.mark.slow
def test_certificate_that_changes_is_read_again_and_a_broken_one_is_not_taken(serving: Serving, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    with serving("--tls-certificate", certificate, "--tls-key", key) as server:
        other, other_key = make_certificate(tmp_path, "other")
        shutil.copy(other_key, key)
        shutil.copy(other, certificate)
        time.sleep(RELOAD_S)
        assert label_from(server.target, tls=other) == 7
        certificate.write_text("nonsense")
        time.sleep(RELOAD_S)
        assert label_from(server.target, tls=other) == 7


@pytest.mark.fault("S43")
@pytest.mark.parametrize("broken", ["certificate", "key"])
@pytest.mark.parametrize("content", ["nonsense", None])
def test_files_that_are_no_certificate_end_the_start(
    front_end: str, tmp_path: Path, broken: str, content: str | None
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    path = certificate if broken == "certificate" else key
    path.write_text(content) if content else path.unlink()
    flags = ("--tls-certificate", certificate, "--tls-key", key)
    done = command(SERVER, "--port", 0, "--metrics-port", 0, "--front-end", front_end, *flags)
    assert done.returncode == 78, done.stderr
    assert f"error: BAD_TLS: {path}: " in done.stderr


def test_key_without_a_certificate_is_a_setting_that_cannot_be() -> None:
    done = command(SERVER, "--port", 0, "--tls-key", "key.pem")
    assert done.returncode == 78
    assert "BAD_SETTING: --tls-key is " in done.stderr


# --- Tokens ----------------------------------------------------------------------------------------------------------


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def end_of_call(target: str, method: str, *metadata: tuple[str, str]) -> str:
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary(method)
        try:
            call(b"", timeout=5, metadata=metadata)
            return "OK"
        except grpc.RpcError as error:
            failure: Any = error
            return f"{failure.code().name} {failure.details().partition(':')[0]}"


@pytest.mark.fault("S45")
def test_tokens_are_asked_for_by_every_method_but_health(serving: Serving, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# who may call\n{digest_of('first')} alice\n{digest_of('second')}\n")
    method = f"/{SERVICE}/GetModel"
    with serving("--tokens", path) as server:
        target = server.target
        assert end_of_call(target, method) == "UNAUTHENTICATED NO_TOKEN"
        assert end_of_call(target, method, ("authorization", "Bearer third")) == "UNAUTHENTICATED BAD_TOKEN"
        assert end_of_call(target, method, ("authorization", "Basic  first")) == "UNAUTHENTICATED BAD_TOKEN"
        assert end_of_call(target, method, ("authorization", "Bearer first")) == "OK"
        assert end_of_call(target, method, ("authorization", "bearer second")) == "OK"
        for other in (f"/{SERVICE}/Classify", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"):
            assert end_of_call(target, other).startswith("UNAUTHENTICATED")
        assert end_of_call(target, "/grpc.health.v1.Health/Check") == "OK"
        assert label_from(target, token="first") == 7  # noqa: S106
        with pytest.raises(ClassifyError, match="UNAUTHENTICATED: BAD_TOKEN"):
            label_from(target, token="third")  # noqa: S106
        path.write_text(digest_of("third"))
        time.sleep(RELOAD_S)
        assert end_of_call(target, method, ("authorization", "Bearer first")) == "UNAUTHENTICATED BAD_TOKEN"
        assert end_of_call(target, method, ("authorization", "Bearer third")) == "OK"
        assert "first" not in server.output


@pytest.mark.parametrize("text", ["", "abc\n", "g" * 64, "# nobody\n", None])
def test_file_without_digests_ends_the_start(front_end: str, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "tokens"
    if text is not None:
        path.write_text(text)
    done = command(SERVER, "--port", 0, "--metrics-port", 0, "--front-end", front_end, "--tokens", path)
    assert done.returncode == 78, done.stderr
    assert f"error: BAD_TOKENS: {path}: " in done.stderr


def test_client_sends_no_token_in_plain_text_beyond_this_machine() -> None:
    with pytest.raises(ValueError, match="would go in plain text"):
        Client("192.0.2.1:50051", token="secret")  # noqa: S106
    with pytest.raises(ValueError, match="a header cannot carry"):
        Client("localhost:50051", token="line\nend")  # noqa: S106


# --- Beyond this machine ---------------------------------------------------------------------------------------------


@pytest.mark.fault("S47")
def test_address_that_others_reach_wants_tls_and_tokens(front_end: str, serving: Serving, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    tls = ("--tls-certificate", certificate, "--tls-key", key)
    refused = {"TLS and tokens": (), "without tokens": tls}
    for lacking, flags in refused.items():
        done = command(SERVER, "--port", 0, "--front-end", front_end, "--host", "0.0.0.0", *flags)
        assert done.returncode == 78
        assert done.stderr.startswith("error: INSECURE: 0.0.0.0 may be reached by others, ")
        assert lacking in done.stderr
        assert "--insecure" in done.stderr
    tokens = tmp_path / "tokens"
    tokens.write_text(digest_of("token"))
    with serving("--host", "0.0.0.0", *tls, "--tokens", tokens) as server:
        assert "warning" not in server.output
        assert label_from(f"localhost:{server.port}", tls=certificate, token="token") == 7  # noqa: S106
    with serving("--host", "0.0.0.0", "--insecure") as server:
        assert "warning: 0.0.0.0 may be reached by others, without TLS and tokens" in server.output


def test_command_reads_its_token_from_a_file(serving: Serving, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    tokens, token = tmp_path / "tokens", tmp_path / "token"
    tokens.write_text(digest_of("secret"))
    token.write_text("secret\n")
    with serving("--tls-certificate", certificate, "--tls-key", key, "--tokens", tokens) as server:
        flags = ("--health", "--target", server.target, "--authority", certificate, "--token-file", token)
        done = command("atelier.classify", *flags)
        assert (done.returncode, done.stderr) == (0, "")
