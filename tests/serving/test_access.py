"""TLS and tokens of both front ends, with real certificates, through our client and through grpc's own."""

import datetime
import hashlib
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from atelier.client import ClassifyError, Client
from atelier.errors import ConfigurationError
from atelier.wire import SERVICE
from atelier.wire.classifier_pb2 import ClassifyRequest, ClassifyResponse
from loadtest.attack import http2
from loadtest.server_process import ServerProcess, server_process
from serving.access import Tokens, tls_of
from tests.conftest import command, import_s
from tests.reliability.plugin import Figure
from tests.serving.conftest import needs_native
from tests.serving.fake_backend import FakeBackend, image
from tests.serving.recording_server import executed_by
from tests.serving.running import wait_for
from tests.serving.settings import config_with

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


SERVER = "tests.serving.breaking_server"
RECORDING_SERVER = "tests.serving.recording_server"
TOKEN = "bL2-a0rQ_dXkWv9nJt3sYcEo8uHz5mPgTi7RfNqA1lM"  # noqa: S105
PROBES = ("ServerLive", "ServerReady", "ModelReady")  # of the Open Inference Protocol: health
BAD_CREDENTIALS: list[list[str]] = [
    [],  # none
    [""],
    ["Bearer "],
    [f"Bearer {TOKEN[:-1]}"],
    [f"Bearer {TOKEN}x"],
    [f"Bearer {TOKEN.lower()}"],
    [f"Bearer  {TOKEN}"],
    [f"Basic {TOKEN}"],
    [TOKEN],
    [f"Bearer {digest_of(TOKEN)}"],  # what the file has
    ["Bearer " + "x" * 4000],
    [f"Bearer {TOKEN}", "Bearer other"],  # two
    ["Bearer other", f"Bearer {TOKEN}"],
]
STREAMS = 25  # of a connection, at once
RELOAD_S = 2.5  # by then a file that has changed has been read again
Serving = Callable[..., AbstractContextManager[ServerProcess]]


@pytest.fixture
def serving(front_end: str) -> Serving:
    @contextmanager
    def start(*arguments: object, module: str = SERVER) -> Iterator[ServerProcess]:
        settings = ("--port", "0", "--metrics-port", "0", "--front-end", front_end)
        with server_process(module, *settings, *map(str, arguments)) as server:
            yield server

    return start


def make_certificate(
    folder: Path, name: str, authority: tuple[Path, Path] | None = None, *, curve: str = "prime256v1"
) -> tuple[Path, Path]:
    """A certificate for localhost and its key, signed by itself or an authority."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:{curve} -nodes -days 2 -subj /CN=localhost"
    alternatives = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    if authority is not None:
        signed = ["-CA", str(authority[0]), "-CAkey", str(authority[1]), "-addext"]
        files += [*signed, "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*command.split(), *alternatives, *files], check=True, capture_output=True)
    return certificate, key


def certificate_of_days(folder: Path, first: float, last: float) -> tuple[Path, Path]:
    """A certificate for localhost, valid from so many days from now until so many."""
    now, key = datetime.datetime.now(datetime.UTC), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now + datetime.timedelta(first)).not_valid_after(now + datetime.timedelta(last))
    alternatives = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
    builder = builder.add_extension(alternatives, critical=False)
    paths = folder / f"{first}-{last}.pem", folder / f"{first}-{last}.key"
    paths[0].write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    paths[1].chmod(0o600)
    return paths


def label_from(target: str, **access: Any) -> int:
    with Client(target, **access) as client:
        label: int = client.classify(image(7), timeout_s=10).labels[0]
    return label


def num_executed(folder: Path) -> int:
    """How many images the device of a RECORDING_SERVER was given."""
    return len(executed_by(folder / "executed"))


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.fault("S44")
def test_tls_serves_those_who_trust_it_and_nobody_in_plain_text(serving: Serving, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    flags = ("--tls-certificate", certificate, "--tls-key", key, "--executed", tmp_path / "executed")
    with serving(*flags, module=RECORDING_SERVER) as server:
        assert label_from(server.target, tls=certificate) == 7
        with pytest.raises(ClassifyError, match="UNAVAILABLE"):
            label_from(server.target)
        stranger, _ = make_certificate(tmp_path, "stranger")
        with pytest.raises(ClassifyError, match=r"NO_SERVER: the TLS handshake with .* failed"):
            label_from(server.target, tls=stranger)
        assert server.stop() == 0
    assert num_executed(tmp_path) == 1


@pytest.mark.slow
@pytest.mark.fault("S44")
def test_mutual_tls_turns_away_clients_without_a_certificate(serving: Serving, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    authority = make_certificate(tmp_path, "authority")
    client = make_certificate(tmp_path, "client", authority)
    flags = ("--tls-certificate", certificate, "--tls-key", key, "--tls-client-authority", authority[0])
    with serving(*flags, "--executed", tmp_path / "executed", module=RECORDING_SERVER) as server:
        assert label_from(server.target, tls=certificate, certificate=client) == 7
        with pytest.raises(ClassifyError, match="UNAVAILABLE"):
            label_from(server.target, tls=certificate)
        assert server.stop() == 0
    assert num_executed(tmp_path) == 1


@pytest.mark.fault("S42")
@pytest.mark.slow
def test_certificate_that_changes_is_read_again_and_old_connections_live_on(serving: Serving, tmp_path: Path) -> None:
    """Files that are broken, or of which the key belongs to another certificate, are not taken."""
    certificate, key = make_certificate(tmp_path, "server")
    first = shutil.copy(certificate, tmp_path / "first.pem")
    (other, other_key), (third, _) = make_certificate(tmp_path, "other"), make_certificate(tmp_path, "third")
    with (
        serving("--tls-certificate", certificate, "--tls-key", key) as server,
        Client(server.target, tls=first) as before,
    ):
        assert before.classify(image(7), timeout_s=10).labels[0] == 7
        connections = connections_of(server)
        shutil.copy(other_key, key)
        shutil.copy(other, certificate)
        time.sleep(RELOAD_S)
        assert label_from(server.target, tls=other) == 7
        with pytest.raises(ClassifyError, match=r"NO_SERVER: the TLS handshake with .* failed"):
            label_from(server.target, tls=first)
        for unusable in ("nonsense", third.read_text()):
            num_lines = server.output.count("what was read before stays")
            certificate.write_text(unusable)
            wait_for(lambda num=num_lines: server.output.count("what was read before stays") > num)  # type: ignore[misc]
            assert label_from(server.target, tls=other) == 7
        assert before.classify(image(7), timeout_s=10).labels[0] == 7
        assert connections <= connections_of(server)


def connections_of(server: ServerProcess) -> set[Any]:
    """The ends of this process' connections to a server."""
    found = psutil.Process().net_connections("tcp")
    return {
        each.laddr for each in found if each.raddr and each.raddr.port == server.port and each.status == "ESTABLISHED"
    }


@pytest.mark.fault("S41")
@pytest.mark.parametrize(("first", "last"), [(-9, -1), (1, 9)])
def test_certificate_that_is_not_valid_now_ends_the_start(
    front_end: str, tmp_path: Path, first: int, last: int
) -> None:
    certificate, key = certificate_of_days(tmp_path, first, last)
    flags = ("--port", 0, "--metrics-port", 0, "--tls-certificate", certificate, "--tls-key", key)
    done = command(SERVER, *flags, "--front-end", front_end)
    assert done.returncode == os.EX_CONFIG
    assert f"error: BAD_TLS: {certificate}: it is valid from 20" in done.stderr


@pytest.mark.fault("S41", "S42")
@pytest.mark.slow
def test_end_of_a_certificate_is_told_30_days_7_days_and_a_day_before(front_end: str, tmp_path: Path) -> None:
    """And an expired one is not taken."""
    files = certificate_of_days(tmp_path, -1, 31)
    flags = ("--port", "0", "--tls-certificate", str(files[0]), "--tls-key", str(files[1]), "--front-end", front_end)

    def renew(last: float) -> None:
        for new, old in zip(certificate_of_days(tmp_path, -9, last), files, strict=True):
            shutil.copy(new, old)

    with server_process(SERVER, *flags) as server:

        def says(last: float) -> bool:
            ends_s = server.metric("atelier_tls_certificate_expiry_timestamp_seconds")
            return ends_s == pytest.approx(time.time() + last * 86400, abs=100)

        assert says(31)
        warning = "the TLS certificate is valid until 20"
        for number, last in enumerate((29.9, 8, 6.9, 1.1, 0.9, 0.5)):
            renew(last)
            wait_for(lambda last=last: says(last))  # type: ignore[misc]
            wait_for(lambda number=number: server.output.count(warning) == 1 + number // 2)  # type: ignore[misc]
        renew(-1)
        wait_for(lambda: "what was read before stays" in server.output)
        assert says(0.5)
        assert label_from(server.target, tls=tmp_path / "-9-0.5.pem") == 7


@pytest.mark.fault("S41", "S42")
@pytest.mark.slow
def test_certificate_that_is_put_there_before_it_is_valid_is_taken_once_it_is(front_end: str, tmp_path: Path) -> None:
    files = certificate_of_days(tmp_path, -1, 31)
    flags = ("--port", "0", "--tls-certificate", str(files[0]), "--tls-key", str(files[1]), "--front-end", front_end)
    with server_process(SERVER, *flags) as server:
        next_one = certificate_of_days(tmp_path, (4 + 2 * import_s()) / 86400, 60)
        for new, old in zip(next_one, files, strict=True):
            shutil.copy(new, old)
        wait_for(lambda: "which is not now" in server.output)
        wait_for(lambda: server.metric("atelier_tls_certificate_expiry_timestamp_seconds") > time.time() + 50 * 86400)
        assert label_from(server.target, tls=next_one[0]) == 7
        assert (
            server.output.count("what was read before stays") <= 2
        )  # of both files at once, or of one after the other


@pytest.mark.fault("S41")
@pytest.mark.slow
def test_server_whose_certificate_ends_serves_on_and_clients_refuse_it(front_end: str, tmp_path: Path) -> None:
    left_s = 3 + 5 * import_s()  # enough to start, on a busy machine too
    certificate, key = certificate_of_days(tmp_path, -1, left_s / 86400)
    flags = ("--port", "0", "--tls-certificate", str(certificate), "--tls-key", str(key), "--front-end", front_end)
    with server_process(SERVER, *flags) as server, Client(server.target, tls=certificate) as before:
        assert before.classify(image(7), timeout_s=10).labels[0] == 7
        wait_for(lambda: server.output.count("the TLS certificate is valid until 20") == 2)  # the second: it has ended
        assert before.classify(image(7), timeout_s=10).labels[0] == 7
        with pytest.raises(ClassifyError, match=r"NO_SERVER: the TLS handshake with .* failed"):
            label_from(server.target, tls=certificate)
        assert server.stop() == 0


@pytest.mark.fault("S43")
@pytest.mark.parametrize("broken", ["certificate", "key"])
@pytest.mark.parametrize("content", ["nonsense", None])
def test_files_that_are_no_certificate_are_named(
    front_end: str, tmp_path: Path, broken: str, content: str | None
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    path = certificate if broken == "certificate" else key
    path.write_text(content) if content else path.unlink()
    assert refusal_of(front_end, tls_certificate=certificate, tls_key=key).startswith(f"BAD_TLS: {path}: ")


@pytest.mark.fault("S43")
def test_key_behind_a_pass_phrase_is_refused_and_nobody_is_asked_for_it(front_end: str, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    command = ["openssl", "pkey", "-aes256", "-passout", "pass:secret", "-in", str(key)]
    key.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    refusal = refusal_of(front_end, tls_certificate=certificate, tls_key=key)
    assert refusal.startswith("BAD_TLS: ") and "it is encrypted" in refusal


@pytest.mark.fault("S43")
def test_authority_may_have_text_of_any_kind_beside_its_certificates(serving: Serving, tmp_path: Path) -> None:
    (certificate, key), authority = make_certificate(tmp_path, "server"), make_certificate(tmp_path, "authority")
    mine = make_certificate(tmp_path, "client", authority)
    authority[0].write_text(f"# Müller GmbH\n{authority[0].read_text()}")
    flags = ("--tls-certificate", certificate, "--tls-key", key, "--tls-client-authority", authority[0])
    with serving(*flags) as server:
        assert label_from(server.target, tls=certificate, certificate=mine) == 7


@needs_native
@pytest.mark.fault("S43")
def test_key_that_only_openssl_can_use_is_named(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server", curve="secp521r1")
    assert refusal_of("native", tls_certificate=certificate, tls_key=key).startswith(f"BAD_TLS: {certificate}: ")


@pytest.mark.fault("S43")
def test_key_of_another_certificate_ends_the_start(front_end: str, tmp_path: Path) -> None:
    (certificate, _), (_, key) = make_certificate(tmp_path, "server"), make_certificate(tmp_path, "other")
    flags = ("--port", 0, "--metrics-port", 0, "--tls-certificate", certificate, "--tls-key", key)
    done = command(SERVER, *flags, "--front-end", front_end)
    assert done.returncode == os.EX_CONFIG, done.stderr
    assert done.stderr.startswith(f"error: BAD_TLS: {certificate}: ")
    assert done.stderr.count("\n") == 1


def refusal_of(front_end: str, **files: Any) -> str:
    """What the front end says of files that it cannot use, when it is made."""
    with pytest.raises(ConfigurationError) as caught:
        if front_end == "native":
            from tests.serving.native_server import started

            started(FakeBackend(), **files)
        elif "tokens" in files:
            Tokens(files["tokens"])
        else:
            tls_of(config_with(**files))
    return str(caught.value)


@pytest.mark.fault("S43")
@pytest.mark.parametrize(("flag", "word"), [("--tls-certificate", "BAD_TLS"), ("--tokens", "BAD_TOKENS")])
def test_file_that_cannot_be_used_ends_the_start(front_end: str, tmp_path: Path, flag: str, word: str) -> None:
    path = tmp_path / "file"
    path.write_text("nonsense")
    path.chmod(0o600)
    flags = (flag, path, *(("--tls-key", path) if word == "BAD_TLS" else ()))
    done = command(SERVER, "--port", 0, "--metrics-port", 0, "--front-end", front_end, *flags)
    assert done.returncode == 78, done.stderr
    assert f"error: {word}: {path}: " in done.stderr


def test_key_without_a_certificate_is_a_setting_that_cannot_be() -> None:
    done = command(SERVER, "--port", 0, "--tls-key", "key.pem")
    assert done.returncode == 78
    assert "BAD_SETTING: --tls-key is " in done.stderr


# --- Tokens ----------------------------------------------------------------------------------------------------------


def end_of_call(target: str, method: str, *metadata: tuple[str, str]) -> str:
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary(method)
        try:
            call(b"", timeout=5, metadata=metadata)
            return "OK"
        except grpc.RpcError as error:
            failure: Any = error
            return f"{failure.code().name} {failure.details().partition(':')[0]}"


@pytest.mark.slow
@pytest.mark.fault("S45")
def test_tokens_are_asked_for_by_every_method_but_health(serving: Serving, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# who may call\n{digest_of('first')} alice\n{digest_of('second')}\n")
    path.chmod(0o600)
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


@pytest.mark.slow
@pytest.mark.fault("S45")
def test_tokens_file_that_is_broken_later_lets_in_whom_it_named_and_nobody_else(
    serving: Serving, tmp_path: Path
) -> None:
    path, method = tmp_path / "tokens", f"/{SERVICE}/GetModel"
    path.write_text(digest_of("first"))
    path.chmod(0o600)
    with serving("--tokens", path) as server:
        path.write_text("nonsense")
        time.sleep(RELOAD_S)
        assert end_of_call(server.target, method, ("authorization", "Bearer first")) == "OK"  # grpcio looks in calls
        wait_for(lambda: "what was read before stays" in server.output)
        time.sleep(RELOAD_S)
        assert server.output.count("what was read before stays") == 1
        assert end_of_call(server.target, method, ("authorization", "Bearer first")) == "OK"
        assert end_of_call(server.target, method, ("authorization", "Bearer nonsense")) == "UNAUTHENTICATED BAD_TOKEN"


def methods_of(target: str) -> list[str]:
    """Every method of every service that the server itself lists and describes."""
    with grpc.insecure_channel(target) as channel:
        reflected = ProtoReflectionDescriptorDatabase(channel)
        pool, services = DescriptorPool(reflected), reflected.get_services()
        found = [(service, pool.FindServiceByName(service).methods) for service in services]
    return [f"/{service}/{method.name}" for service, methods in found for method in methods]


@pytest.mark.slow
@pytest.mark.fault("S45")
@pytest.mark.goal("G21", of="bad credentials of each method", ci=0, release=0)
def test_every_method_refuses_every_bad_credential(
    front_end: str, serving: Serving, tmp_path: Path, figure: Figure
) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"{digest_of(TOKEN)}\n")
    path.chmod(0o600)
    with serving() as server:
        methods = methods_of(server.target)
    if front_end == "native":  # grpc itself says of a method that there is not that it is UNIMPLEMENTED
        methods += [f"/{SERVICE}/Guess", "/no.Service/Method"]
    with serving("--tokens", path) as server:
        guarded = [method for method in methods if not method.startswith("/grpc.health.v1.Health/")]
        guarded = [method for method in guarded if method.rpartition("/")[2] not in PROBES]
        assert len(guarded) >= 10
        for method in guarded:
            for credential in BAD_CREDENTIALS:
                metadata = [("authorization", value) for value in credential]
                end = end_of_call(server.target, method, *metadata)
                assert end in ("UNAUTHENTICATED NO_TOKEN", "UNAUTHENTICATED BAD_TOKEN"), (method, credential)
            end = end_of_call(server.target, method, ("authorization", f"Bearer {TOKEN}"))
            assert not end.startswith("UNAUTHENTICATED"), method
        assert TOKEN not in server.output
    figure(f"{len(guarded)} methods, {len(BAD_CREDENTIALS)} credentials: 0 exceptions")


@pytest.mark.fault("S45", "S48")
@pytest.mark.timing
@pytest.mark.goal("G21", of="nearly right tokens and as many others, one at a time", ci=1000, release=100_000)
def test_time_of_a_refusal_does_not_tell_how_nearly_right_a_token_is(
    serving: Serving, tmp_path: Path, size: int, figure: Figure
) -> None:
    """By Welch's t over times below the 99th percentile, with the limit of dudect (Reparaz and others, 2017)."""
    path = tmp_path / "tokens"
    path.write_text(digest_of(TOKEN))
    path.chmod(0o600)
    nearly, other = f"Bearer {TOKEN[:-1]}x", "Bearer " + "7" * len(TOKEN)
    with serving("--tokens", path) as server, grpc.insecure_channel(server.target) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/GetModel")

        def refused_us(authorization: str) -> float:
            began_s = time.perf_counter()
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=10, metadata=[("authorization", authorization)])
            return (time.perf_counter() - began_s) * 1e6

        times_us = np.array([(refused_us(nearly), refused_us(other)) for _ in range(size)])
        assert label_from(server.target, token=TOKEN) == 7  # nobody is locked out
        assert TOKEN not in server.output
    times_us = np.clip(times_us, None, np.percentile(times_us, 99))
    means, variances = times_us.mean(axis=0), times_us.var(axis=0, ddof=1)
    t = float((means[0] - means[1]) / np.sqrt(variances.sum() / size))
    figure(f"{means[0]:.1f} and {means[1]:.1f} us, t = {t:+.1f} (detectable from 4.5 on)")
    assert abs(t) < 4.5


def guess(connection: http2.Connection, tokens: Sequence[str]) -> list[int]:
    """Opens a stream of headers alone for each token, "" for none; returns their numbers."""
    streams = [connection.next_stream() for _ in tokens]
    for stream, token in zip(streams, tokens, strict=True):
        header = http2.literal(b"authorization", b"Bearer " + token.encode()) if token else b""
        connection.send(http2.opening(stream, http2.request_headers(extra=header)))
    return streams


def refusals(server: ServerProcess) -> float:
    return server.metric("atelier_requests_total", code="UNAUTHENTICATED")


@contextmanager
def called_without_a_failure(target: str) -> Iterator[list[int]]:
    """Calls with the right token, one call after the other, until the block ends; each must be answered at once."""
    stop, labels = Event(), list[int]()

    def call_on() -> None:
        metadata, request = [("authorization", f"Bearer {TOKEN}")], ClassifyRequest(images=image(7).tobytes())
        with grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)]) as channel:
            call: Any = channel.unary_unary(f"/{SERVICE}/Classify", None, ClassifyResponse.FromString)
            while not stop.is_set():
                reply = call(request.SerializeToString(), timeout=10, metadata=metadata)
                labels.append(reply.classifications[0].predictions[0].label)

    with ThreadPoolExecutor(1) as pool:
        calls = pool.submit(call_on)
        try:
            yield labels
        finally:
            stop.set()
        calls.result()
    assert set(labels) == {7}


@pytest.fixture
def guarded(front_end: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that knows one token, and has metrics."""
    path = tmp_path / "tokens"
    path.write_text(digest_of(TOKEN))
    path.chmod(0o600)
    with server_process(SERVER, "--port", "0", "--front-end", front_end, "--tokens", str(path)) as server:
        yield server
        assert server.stop() == 0


@pytest.mark.fault("S12")
def test_streams_of_headers_without_a_token_are_refused_before_any_message_comes(guarded: ServerProcess) -> None:
    took_s = []
    with http2.Connection(guarded.address) as connection, called_without_a_failure(guarded.target) as labels:
        for number in range(200):
            began_s = time.monotonic()
            (stream,) = guess(connection, ["" if number % 2 else "wrong"])
            assert connection.wait_for(stream, began_s + 4)  # those with a token may be silent for 5 s
            took_s.append(time.monotonic() - began_s)
        assert refusals(guarded) == 200
        wait_for(lambda: len(labels) > 10)
    assert statistics.quantiles(took_s)[0] <= 0.05  # the fastest quarter: the machine may be busy


@pytest.mark.fault("S48")
@pytest.mark.slow
@pytest.mark.goal("G21", of="wrong tokens beside a good client", ci=2_000, release=100_000)
def test_many_wrong_tokens_are_all_refused_and_cost_a_good_client_no_call(
    guarded: ServerProcess, size: int, figure: Figure
) -> None:
    random = Random(size)
    with called_without_a_failure(guarded.target) as labels:
        for _ in range(size // 1000):
            with http2.Connection(guarded.address) as connection:
                for _ in range(1000 // STREAMS):
                    streams = guess(connection, [f"{random.getrandbits(256):064x}" for _ in range(STREAMS)])
                    assert all(connection.wait_for(stream, time.monotonic() + 20) for stream in streams)
        wait_for(lambda: len(labels) > 10)
    figure(f"{size:,} wrong tokens refused; 0 of {len(labels):,} good calls failed")
    assert refusals(guarded) == size


@pytest.mark.parametrize("text", ["", "abc\n", "g" * 64, "# nobody\n", None])
def test_file_without_digests_is_named(front_end: str, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "tokens"
    if text is not None:
        path.write_text(text)
        path.chmod(0o600)
    assert refusal_of(front_end, tokens=path).startswith(f"BAD_TOKENS: {path}: ")


@pytest.mark.slow
@pytest.mark.fault("O8")
@pytest.mark.parametrize("is_key", [False, True])
def test_secret_that_every_user_may_open_ends_the_start(front_end: str, tmp_path: Path, is_key: bool) -> None:
    """As Kubernetes lays it down: a link to a link, and by default mode 0644."""
    certificate, key = make_certificate(tmp_path, "server")
    tokens = tmp_path / "digests"
    tokens.write_text(digest_of("token"))
    file = key if is_key else tokens
    (tmp_path / "..data").symlink_to(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(Path("..data") / file.name)
    flags = ("--tls-certificate", certificate, "--tls-key", link) if is_key else ("--tokens", link)
    file.chmod(0o644)
    done = command(SERVER, "--port", 0, "--metrics-port", 0, "--front-end", front_end, *flags)
    assert done.returncode == 77, done.stderr
    assert done.stderr.startswith(f"error: TOKEN_FILE_MODE: {link} has mode 0644: every user of this machine may open")
    assert "chmod 600" in done.stderr and "defaultMode: 0440" in done.stderr
    file.chmod(0o440)  # with fsGroup
    with server_process(
        SERVER, "--port", "0", "--metrics-port", "0", "--front-end", front_end, *map(str, flags)
    ) as server:
        assert server.stop() == 0


@pytest.mark.fault("O8")
def test_clients_token_that_every_user_may_open_is_not_sent(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o604)
    done = command("atelier.classify", "--health", "--target", "localhost:1", "--token-file", token)
    assert done.returncode == 77
    assert done.stderr.startswith(f"error: TOKEN_FILE_MODE: {token} has mode 0604: every user")


def test_client_sends_no_token_in_plain_text_beyond_this_machine() -> None:
    with pytest.raises(ValueError, match="would go in plain text"):
        Client("192.0.2.1:50051", token="secret")  # noqa: S106
    with pytest.raises(ValueError, match="a header cannot carry"):
        Client("localhost:50051", token="line\nend")  # noqa: S106


# --- Beyond this machine ---------------------------------------------------------------------------------------------


@pytest.mark.slow
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
    tokens.chmod(0o600)
    with serving("--host", "0.0.0.0", *tls, "--tokens", tokens) as server:
        assert "may be reached by others" not in server.output
        assert label_from(f"localhost:{server.port}", tls=certificate, token="token") == 7  # noqa: S106
    with serving("--host", "0.0.0.0", "--insecure") as server:
        assert "warning: 0.0.0.0 may be reached by others, without TLS and tokens" in server.output


@pytest.mark.slow
def test_command_reads_its_token_from_a_file(serving: Serving, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    tokens, token = tmp_path / "tokens", tmp_path / "token"
    tokens.write_text(digest_of("secret"))
    token.write_text("secret\n")
    for secret in (tokens, token):
        secret.chmod(0o600)
    with serving("--tls-certificate", certificate, "--tls-key", key, "--tokens", tokens) as server:
        flags = ("--health", "--target", server.target, "--authority", certificate, "--token-file", token)
        done = command("atelier.classify", *flags)
        assert (done.returncode, done.stderr) == (0, "")
