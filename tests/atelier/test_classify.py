"""The command, against a real gRPC server that answers by a script."""

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

from atelier.classify import main
from atelier.program import run_program
from loadtest.server_process import free_port
from tests.atelier.scripted_server import ScriptedServer


def test_command_prints_the_most_probable_classes(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "shirt.png"
    picture.write_bytes(b"\x02png")
    assert run_program(main, [str(picture), "--target", server.target, "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(picture), f"  class 2       50.0%  {'#' * 16}", f"  class 3       50.0%  {'#' * 16}"]


def test_command_names_the_file_that_the_server_refuses(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "shirt.png"
    picture.write_bytes(b"\x02png")
    server.script = [(grpc.StatusCode.INVALID_ARGUMENT, "BAD_PICTURE: pictures[0] is empty (send a whole one)")]
    assert run_program(main, [str(picture), "--target", server.target]) == 65
    assert capsys.readouterr().err == f"error: BAD_PICTURE: {picture}: pictures[0] is empty (send a whole one)\n"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "word"),
    [(["no-such-file.png"], 66, "NO_PICTURE"), (["."], 66, "NO_PICTURE"), ([], 2, "NO_FILES")],
)
def test_command_without_a_picture_says_so(
    arguments: list[str], exit_code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(main, arguments) == exit_code
    assert capsys.readouterr().err.startswith(f"error: {word}: ")


def test_command_without_a_server_says_what_starts_one(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stop()
    assert run_program(main, ["--health", "--target", server.target]) == 69
    assert "NO_SERVER: no server answers" in (message := capsys.readouterr().err)
    assert "make serve starts one" in message


def test_health_check_tells_whether_the_server_serves(server: ScriptedServer) -> None:
    assert run_program(main, ["--health", "--target", server.target]) == 0
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert run_program(main, ["--health", "--target", server.target]) == 69


def test_one_bad_file_is_reported_and_the_others_go_on(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a.png", "missing.png", "bad.png", "c.png"]
    for name in ("a.png", "bad.png", "c.png"):
        (tmp_path / name).write_bytes(b"\x02png")
    server.after = {1: (grpc.StatusCode.INVALID_ARGUMENT, "BAD_PICTURE: it is no picture (send one)")}
    paths = [str(tmp_path / name) for name in names]
    assert run_program(main, [*paths, "--target", server.target, "--top-k", "1"]) == 66  # of the first that failed
    printed = capsys.readouterr()
    assert [line for line in printed.out.splitlines() if not line.startswith(" ")] == [paths[0], paths[3]]
    missing, bad = printed.err.splitlines()
    assert missing.startswith(f"error: NO_PICTURE: {paths[1]}: ")
    assert bad.startswith(f"error: BAD_PICTURE: {paths[2]}: ")


def test_without_a_server_the_first_file_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"\x02png")
    target = f"localhost:{free_port()}"
    assert run_program(main, [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--target", target]) == 69
    assert capsys.readouterr().err.count("NO_SERVER") == 1


@pytest.mark.parametrize("target", ["http://localhost:50051", "localhost", ""])
def test_target_that_is_no_address_is_a_usage_error(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(main, ["--health", "--target", target]) == 2
    assert capsys.readouterr().err.startswith("error: BAD_TARGET: the target ")


def run_command(*arguments: "str | bytes", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "atelier.classify", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, env=os.environ | environment)


@pytest.mark.slow
def test_proxy_in_the_environment_does_not_take_the_local_server_away(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x02png")
    proxy = f"http://127.0.0.1:{free_port()}"
    for arguments in ([str(tmp_path / "a.png")], ["--health"]):
        done = run_command(*arguments, "--target", server.target, http_proxy=proxy, https_proxy=proxy)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "iso-8859-1"])
@pytest.mark.parametrize("name", [b"shirt \xff.png", "h\u00f6se \u886c\u886b.png".encode()])
def test_names_and_terminals_of_any_encoding_end_in_output(
    server: ScriptedServer, tmp_path: Path, encoding: str, name: bytes
) -> None:
    path = bytes(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).write_bytes(b"\x02png")
    done = run_command(path, b"missing" + path, "--target", server.target, PYTHONIOENCODING=encoding)
    assert done.returncode == 66
    assert b"class 2" in done.stdout
    assert b"INTERNAL" not in done.stderr
    assert done.stderr.startswith(b"error: NO_PICTURE: missing")
