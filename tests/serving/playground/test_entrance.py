"""The page gets its answers from a server that wants TLS, certificates and tokens of everybody else."""

import hashlib
import shutil
import stat
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from serving.config import ServerConfig
from serving.playground.entrance import open_entrance
from serving.playground.process import open_playground
from tests.serving.playground.http import IMAGE, ask
from tests.serving.playground.test_process import children_of, port_of, serving
from tests.serving.running import kill_serving_process, wait_for
from tests.serving.test_access import end_of_call, make_certificate

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

CLASSIFY = "/atelier.v1.Classifier/Classify"


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the server makes its private directory; a short path, as a socket's must be."""
    directory = tempfile.mkdtemp(dir="/tmp")
    monkeypatch.setenv("TMPDIR", directory)
    return Path(directory)


def guarded(tmp_path: Path) -> list[str]:
    """Settings with which nobody gets in who has neither certificate nor token."""
    certificate, key = make_certificate(tmp_path, "server")
    authority, _ = make_certificate(tmp_path, "authority")
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(b"somebody's").hexdigest())
    tokens.chmod(0o600)
    tls = ["--tls-certificate", certificate, "--tls-key", key, "--tls-client-authority", authority]
    return [*map(str, tls), "--tokens", str(tokens)]


@pytest.mark.slow
def test_page_is_answered_behind_mutual_tls_and_tokens(
    small_repository: Path, tmp_path: Path, front_end: str, temporary: Path
) -> None:
    with serving(small_repository, front_end, *guarded(tmp_path), "--log-requests") as server:
        header, _ = ask(port_of(server), "POST", "/api/look", IMAGE.tobytes()).frame
        assert header["refusal"] is None and header["max_abs_diff_probability"] < 1e-6
        kill_serving_process(server)  # another listens there, with the same token
        wait_for(lambda: ask(port_of(server), "POST", "/api/look", IMAGE.tobytes()).frame[0]["answer"] is not None)
        [private] = temporary.glob("atelier-*")
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert server.ready["targets"] == [server.target] and str(private) not in server.output
        # Whoever got to the socket still has no token, and the operator's file has not changed who may call.
        assert end_of_call(f"unix:{private}/page.sock", CLASSIFY) == "UNAUTHENTICATED NO_TOKEN"
        wrong = ("authorization", "Bearer " + hashlib.sha256(b"x").hexdigest())
        assert end_of_call(f"unix:{private}/page.sock", CLASSIFY, wrong) == "UNAUTHENTICATED BAD_TOKEN"
        assert server.stop() == 0
    assert list(temporary.iterdir()) == []


def test_the_token_is_in_memory_only(small_repository: Path, tmp_path: Path, temporary: Path) -> None:
    with serving(small_repository, "grpcio", *guarded(tmp_path)) as server:
        assert ask(port_of(server), "GET", "/").status == 200
        processes = [psutil.Process(server.process.pid), *children_of(server)]
        assert len(processes) == 3
        for process in processes:
            words = [*process.cmdline(), *process.environ().values()]
            assert not any(len(word) == 64 and set(word) <= set("0123456789abcdef") for word in words)
        assert [path.name for path in temporary.rglob("*") if path.is_file()] == []
        assert server.stop() == 0
    with ExitStack() as stack:
        config = ServerConfig(tokens=tmp_path / "tokens")
        entrance = open_entrance(config, "localhost:1", stack, only_reserve=True)
        assert len(entrance.token) == 64 and entrance.token not in repr(entrance)
        assert entrance.token_sha256 == hashlib.sha256(entrance.token.encode()).hexdigest()


def test_entrance_that_cannot_be_costs_the_page_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / ("x" * 100)  # no Unix socket has so long a path
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    config = ServerConfig(port=0, tokens=tmp_path / "tokens")
    with ExitStack() as stack:
        playground = open_playground(config, "localhost:1", stack, only_reserve=True)
        assert playground.addresses == [] and playground.awaited() == []
    assert "warning: no page looks inside the network: no private socket for it: BAD_HOST" in capsys.readouterr().out
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("listening", "called"),
    [("0.0.0.0:7", "127.0.0.1:7"), ("[::]:7", "[::1]:7"), ("10.0.0.7:7", "10.0.0.7:7"), ("unix:/a", "unix:/a")],
)
def test_open_server_is_called_at_its_own_address(listening: str, called: str) -> None:
    with ExitStack() as stack:
        entrance = open_entrance(ServerConfig(), listening, stack, only_reserve=True)
    assert (entrance.target, entrance.token, entrance.address, entrance.token_sha256) == (called, "", "", "")
