"""The native front end's TLS and tokens, with real certificates and clients."""

import hashlib
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

pytest.importorskip("atelier_native", reason="the native front end is not built here (native/)")

from atelier.errors import ConfigurationError
from atelier.wire import SERVICE
from atelier.wire import classifier_pb2 as pb
from tests.serving import test_server as cases
from tests.serving.fake_backend import FakeBackend
from tests.serving.test_native import CLASSIFY, label_from, server_of

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def make_certificate(folder: Path, name: str, authority: tuple[str, str] | None = None) -> tuple[str, str]:
    """A certificate for localhost and its key, signed by itself or an authority."""
    folder.mkdir(exist_ok=True)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    alternatives = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    if authority is not None:
        files += ["-CA", authority[0], "-CAkey", authority[1], "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*command.split(), *alternatives, *files], check=True, capture_output=True)
    return str(certificate), str(key)


def classified(target: str, label: int, roots: str, client: tuple[str, str] | None = None) -> int:
    """The label, over TLS."""
    chain = tuple(Path(path).read_bytes() for path in client or ())
    certificate, key = chain or (None, None)
    credentials = grpc.ssl_channel_credentials(Path(roots).read_bytes(), key, certificate)
    with grpc.secure_channel(target, credentials) as channel:
        call: Any = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        found: int = call(cases.request(label).SerializeToString(), timeout=5).classifications[0].predictions[0].label
        return found


def test_tls_serves_those_who_trust_it_and_nobody_in_plain_text(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    with server_of(FakeBackend(), tls_certificate=certificate, tls_key=key) as server:
        assert classified(server.addresses[0], 5, certificate) == 5
        with pytest.raises(grpc.RpcError):
            label_from(server.addresses[0], 5)


def test_mutual_tls_turns_away_clients_without_a_certificate(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    authority = make_certificate(tmp_path, "authority")
    client = make_certificate(tmp_path, "client", authority)
    settings = {"tls_certificate": certificate, "tls_key": key, "tls_client_authority": authority[0]}
    with server_of(FakeBackend(), **settings) as server:
        assert classified(server.addresses[0], 5, certificate, client) == 5
        with pytest.raises(grpc.RpcError):
            classified(server.addresses[0], 5, certificate)


def test_certificate_that_changes_is_read_again_and_a_broken_one_is_not_taken(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    with server_of(FakeBackend(), tls_certificate=certificate, tls_key=key) as server:
        other, other_key = make_certificate(tmp_path, "other")
        shutil.copy(other_key, key)
        shutil.copy(other, certificate)
        time.sleep(2.5)
        assert classified(server.addresses[0], 5, other) == 5
        Path(certificate).write_text("nonsense")
        time.sleep(2.5)
        assert classified(server.addresses[0], 6, other) == 6


@pytest.mark.parametrize("broken", ["certificate", "key"])
def test_broken_files_are_an_error_at_the_start(tmp_path: Path, broken: str) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    Path(certificate if broken == "certificate" else key).write_text("nonsense")
    settings = {"tls_certificate": certificate, "tls_key": key}
    with pytest.raises(ConfigurationError, match="BAD_TLS: "), server_of(FakeBackend(), **settings):
        pass


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def end_of_call(target: str, *metadata: tuple[str, str]) -> str:
    try:
        return str(label_from(target, 4, metadata=metadata))
    except grpc.RpcError as error:
        failure: Any = error
        return f"{failure.code().name} {failure.details().partition(':')[0]}"


def test_tokens_are_asked_for_by_every_method_but_health(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# who may call\n{digest_of('first')} alice\n{digest_of('second')}\n")
    with server_of(FakeBackend(), tokens=path) as server:
        target = server.addresses[0]
        assert end_of_call(target) == "UNAUTHENTICATED NO_TOKEN"
        assert end_of_call(target, ("authorization", "Bearer third")) == "UNAUTHENTICATED BAD_TOKEN"
        assert end_of_call(target, ("authorization", "Basic  first")) == "UNAUTHENTICATED BAD_TOKEN"
        assert end_of_call(target, ("authorization", "Bearer first")) == "4"
        assert end_of_call(target, ("authorization", "bearer second")) == "4"
        with grpc.insecure_channel(target) as channel:
            check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert check(b"", timeout=5) == b"\x08\x01"
            for path_of_method in (f"/{SERVICE}/GetModel", "/no/Method"):
                call: Any = channel.unary_unary(path_of_method)
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"", timeout=5)
                failure: Any = caught.value
                assert failure.code() is grpc.StatusCode.UNAUTHENTICATED
        path.write_text(digest_of("third"))
        time.sleep(2.5)
        assert end_of_call(target, ("authorization", "Bearer first")) == "UNAUTHENTICATED BAD_TOKEN"
        assert end_of_call(target, ("authorization", "Bearer third")) == "4"


@pytest.mark.parametrize("text", ["", "abc\n", "g" * 64, "# nobody\n"])
def test_file_without_digests_is_an_error_at_the_start(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="BAD_TOKENS: "), server_of(FakeBackend(), tokens=path):
        pass
