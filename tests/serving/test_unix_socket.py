"""A real server on a Unix socket: who may listen there, who is replaced, and what is left behind."""

import os
import re
import signal
import socket
import stat
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from atelier.client import Client
from atelier.errors import ProgramError, ResourceUnavailableError
from loadtest.server_process import ServerProcess, free_port, server_process
from serving.config import parse_arguments
from serving.listening import Listening
from tests.conftest import command
from tests.serving.fake_backend import image
from tests.serving.running import kill_serving_process, serving_process_of

SERVER = "tests.serving.breaking_server"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a socket, in a directory of its own; short, however long pytest's directory is."""
    monkeypatch.chdir(tmp_path)  # for those that are given a relative path
    folder = tmp_path / "run"
    folder.mkdir()
    return folder / "atelier.sock"


Serving = Callable[..., AbstractContextManager[ServerProcess]]


@pytest.fixture
def serving(front_end: str) -> Serving:
    @contextmanager
    def start(path: Path | str, *arguments: str) -> Iterator[ServerProcess]:
        settings = ("--metrics-port", "0", "--playground-port", "0", "--front-end", front_end)
        with server_process(SERVER, *settings, *arguments, "--host", f"unix:{path}") as server:
            yield server

    return start


def served_labels(target: str) -> list[int]:
    with Client(target) as client:
        labels: list[int] = client.classify(image(7)).labels.tolist()
    return labels


def refusal(path: Path | str) -> tuple[int, str]:
    """How a server that cannot listen there ends, and the line that it says."""
    with pytest.raises(ProgramError) as caught:
        config = parse_arguments(["--metrics-port", "0", "--host", f"unix:{path}"])
        with Listening(config.hosts, 0):
            pass
    return caught.value.exit_code, f"error: {caught.value}"


def test_server_answers_on_the_socket_and_takes_it_away_at_the_end(path: Path, serving: Serving) -> None:
    with serving(path) as server:
        assert f" on unix:{path}: front end" in server.output
        assert "may be reached by others" not in server.output  # whom the file's mode lets in
        assert server.target == f"unix:{path}"
        assert served_labels(server.target) == [7]
        assert list(path.parent.iterdir()) == [path]
        assert server.stop() == 0
        assert "answered 1 requests, 1 images" in server.output
    assert list(path.parent.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("spelling", ["unix:run/a.sock", "unix:{}/run/a.sock", "unix://{}/run/a.sock"])
def test_socket_may_be_written_as_grpc_writes_targets(path: Path, tmp_path: Path, spelling: str) -> None:
    with server_process(SERVER, "--metrics-port", "0", "--host", spelling.format(tmp_path)) as server:
        assert served_labels(f"unix:{path.parent}/a.sock") == served_labels(server.target) == [7]


def test_name_with_other_characters_is_written_as_in_grpcs_targets(path: Path, serving: Serving) -> None:
    with serving(path.with_name("a%20b%25ü.sock")) as server:
        assert [entry.name for entry in path.parent.iterdir()] == ["a b%ü.sock"]
        assert served_labels(f"unix:{path.with_name('a%20b%25ü.sock')}") == served_labels(server.target) == [7]


@pytest.mark.slow
def test_command_line_client_and_load_of_connections_use_it(path: Path, serving: Serving) -> None:
    with serving(path):
        asked = command("atelier.classify", "--health", "--target", f"unix:{path}")
        assert (asked.returncode, asked.stderr) == (0, "")
        for _ in range(20):
            assert served_labels(f"unix:{path}") == [7]


@pytest.mark.slow
def test_metrics_are_on_the_loopback_address(path: Path) -> None:
    with server_process(SERVER, "--metrics-port", str(free_port()), "--host", f"unix:{path}") as server:
        served_labels(server.target)
        found = re.search(r"metrics at (http://127\.0\.0\.1:\d+/metrics)", server.output)
        assert found, server.output
        with urllib.request.urlopen(found[1], timeout=10) as page:  # noqa: S310
            assert b'method="Classify"' in page.read()


def test_mode_of_the_file_follows_the_umask(path: Path, serving: Serving) -> None:
    before = os.umask(0o117)
    try:
        with serving(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
    finally:
        os.umask(before)


@pytest.mark.slow
def test_killed_worker_is_replaced_on_the_same_socket(path: Path, serving: Serving) -> None:
    with serving(path) as server:
        for _ in range(2):
            kill_serving_process(server)
            with Client(server.target) as client:
                client.wait_until_ready(timeout_s=20)
                assert client.classify(image(7)).labels.tolist() == [7]
        assert list(path.parent.iterdir()) == [path]
        assert server.stop() == 0
    assert list(path.parent.iterdir()) == []


def test_file_of_a_dead_server_is_replaced(path: Path, serving: Serving) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.is_socket()
    with serving(path) as server:
        assert served_labels(server.target) == [7]


@pytest.mark.slow
@pytest.mark.fault("S39")
def test_server_whose_supervisor_was_killed_can_be_started_anew(path: Path, serving: Serving) -> None:
    with serving(path) as server:
        process = serving_process_of(server)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)
        process.wait(30)
    with serving(path) as server:
        assert served_labels(server.target) == [7]


@pytest.mark.slow
def test_socket_on_which_another_listens_is_in_use_and_stays_its(path: Path, serving: Serving) -> None:
    with serving(path) as first:
        done = command(SERVER, "--metrics-port", 0, "--host", f"unix:{path}")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (os.EX_UNAVAILABLE, "", 1), done.stderr
        assert done.stderr.startswith(f"error: SOCKET_IN_USE: another process listens on unix:{path} (")
        assert served_labels(first.target) == [7]


def test_socket_is_in_use_before_its_server_is_ready(path: Path) -> None:
    with Listening([f"unix:{path}"], 0):
        with pytest.raises(ResourceUnavailableError, match="SOCKET_IN_USE"):
            Listening([f"unix:{path}"], 0)
        assert path.is_socket()
    assert not path.exists()


def test_full_backlog_is_a_sign_of_life(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        code, message = refusal(path)
    assert (code, message[:21]) == (os.EX_UNAVAILABLE, "error: SOCKET_IN_USE:")


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_path_that_is_no_socket_is_refused_and_left_as_it_is(path: Path, tmp_path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        (tmp_path / "precious").write_text("precious")
        path.symlink_to(tmp_path / "precious")
    before = path.lstat()
    code, message = refusal(path)
    assert code == os.EX_CONFIG
    assert message.startswith(f"error: BAD_HOST: --host 'unix:{path}' names what is no socket (")
    assert path.lstat() == before
    assert kind == "directory" or path.read_text() == "precious"


def test_path_that_is_too_long_is_refused_with_the_limit(path: Path, serving: Serving) -> None:
    longest = path.parent / ("x" * (107 - len(os.fsencode(path.parent)) - 1))
    with serving(longest) as server:
        assert served_labels(server.target) == [7]
    code, message = refusal(f"{longest}x")
    assert code == os.EX_CONFIG
    assert message.startswith(
        f"error: BAD_HOST: --host 'unix:{longest}x' has a path of 108 bytes, and 107 is the most ("
    )


@pytest.mark.parametrize("spelling", ["", "%00", "/run/a%00b"])
def test_path_that_names_nothing_is_refused(spelling: str) -> None:
    code, message = refusal(spelling)
    assert code == os.EX_CONFIG
    assert message.startswith(f"error: BAD_HOST: --host 'unix:{spelling}' has no path in it (")


def test_directory_that_is_not_there_is_named(path: Path) -> None:
    code, message = refusal(path.parent / "nowhere" / "a.sock")
    assert code == os.EX_UNAVAILABLE
    assert message.startswith("error: CANNOT_LISTEN: cannot listen on unix:")
    assert "No such file or directory" in message
