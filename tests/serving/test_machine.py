"""What the machine may do to a server: no network but the loopback, a full disk, a repository that all may write."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atelier.client import Client
from atelier.errors import ConfigurationError
from loadtest.server_process import free_port
from serving.listening import Listening
from tests.conftest import command
from tests.namespaces import read_only, unshared
from tests.serving.fake_backend import image
from tests.serving.running import wait_for

SERVER = ("tests.serving.breaking_server", "--port", "0", "--metrics-port", "0")


@contextmanager
def ending(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """Ends it with the block, if it has not ended by itself."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.fault("O16")
@pytest.mark.parametrize(
    ("host", "case", "reached", "missing"),
    [
        ("localhost", "names", {"127.0.0.1": [7], "[::1]": [7]}, ""),
        ("localhost", "ipv6", {"127.0.0.1": [7], "[::1]": "NO_SERVER"}, "[::1]"),
        ("localhost", "ipv4", {"127.0.0.1": "NO_SERVER", "[::1]": [7]}, "127.0.0.1"),
        ("0.0.0.0", "ipv6", {"127.0.0.1": [7], "[::1]": "NO_SERVER"}, ""),  # which asks for no address in particular
    ],
)
def test_server_listens_on_what_there_is_and_says_where(
    front_end: str, host: str, case: str, reached: dict[str, object], missing: str
) -> None:
    arguments = ["--host", host, "--insecure"]
    alone = [*unshared("--net"), sys.executable, "-m", "tests.serving.cut_off", case, front_end, *arguments]
    done = subprocess.run(alone, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["exit"], found["reached"]) == (0, reached)
    assert f" on {host}:" in found["output"]
    assert re.findall(r"not listening on (\S+):\d+,", found["output"]) == [missing] * bool(missing)


@pytest.mark.fault("O16")
@pytest.mark.parametrize(("flag", "named"), [("--port", "--host"), ("--playground-port", "--playground-host")])
def test_address_that_is_not_there_is_named_with_its_flag(flag: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=f"BAD_HOST: {named} '192.0.2.1' is no address of this machine"):
        Listening(["192.0.2.1"], 0, flag=flag)


@pytest.mark.fault("O1")
def test_server_writes_nothing_and_so_runs_on_a_read_only_system(small_repository: Path, front_end: str) -> None:
    """As in a container with a read-only root, and here without even a /tmp."""
    port = free_port()
    settings = ["--repository", str(small_repository), "--device", "cpu", "--port", str(port), "--metrics-port", "0"]
    command = [*read_only(), sys.executable, "-m", "serving", *settings, "--front-end", front_end]
    with ending(subprocess.Popen(command)) as server, Client(f"127.0.0.1:{port}") as client:
        client.wait_until_ready(timeout_s=60)
        assert len(client.classify(image(7)).labels) == 1
        server.terminate()
        assert server.wait(30) == 0


@pytest.mark.fault("O1")
def test_program_that_finds_no_room_for_temporary_files_says_so() -> None:
    code = "import tempfile; from atelier.program import run_program; exit(run_program(lambda _: tempfile.mkdtemp()))"
    done = subprocess.run([*read_only(), sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 74
    assert done.stderr.startswith("error: IO_ERROR: no directory takes temporary files: ") and "TMPDIR" in done.stderr


@pytest.mark.fault("O13")
def test_disk_that_fills_up_with_the_log_costs_no_answer(front_end: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    settings = [*SERVER, "--front-end", front_end, "--ready-file", str(ready), "--log-requests"]
    with Path("/dev/full").open("w") as full:
        server = subprocess.Popen([sys.executable, "-m", *settings], stdout=full, stderr=full)
    with ending(server):
        wait_for(ready.exists)
        with Client(json.loads(ready.read_bytes())["targets"][0]) as client:
            assert [client.classify(image(label)).labels.tolist() for label in range(10)] == [[n] for n in range(10)]
        server.terminate()
        assert server.wait(30) == 0


@pytest.mark.fault("O10")
def test_repository_that_every_user_can_write_or_that_leads_out_is_not_served(
    small_repository: Path, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(small_repository, tmp_path / "models"))
    settings = ("--repository", repository, "--port", 0, "--metrics-port", 0, "--device", "cpu")
    repository.chmod(0o777)
    done = command("serving", *settings)
    assert done.returncode == 77, done
    assert done.stderr.startswith(f"error: UNTRUSTED_FILE: {repository} can be written by every user of this machine")
    repository.chmod(0o755)
    outside = (repository / "lenet5" / "1").rename(tmp_path / "elsewhere")
    (repository / "lenet5" / "1").symlink_to(outside)
    done = command("serving", *settings)
    assert done.returncode == 77, done
    assert "outside of" in done.stderr and done.stderr.count("\n") == 1
