"""The C++ echo server is compiled once and answers; without a compiler the cure is named."""

import shutil
from pathlib import Path

import grpc
import pytest

from atelier.errors import ResourceUnavailableError
from loadtest.bench.contenders import compiled, cpp_echo
from loadtest.bench.h2load import CLASSIFY

needs_grpc = pytest.mark.skipif(
    shutil.which("g++") is None or not Path("/usr/include/grpcpp").exists(),
    reason="needs apt-get install g++ libgrpc++-dev",
)


@needs_grpc
def test_echo_answers_with_so_many_bytes_whatever_it_is_asked() -> None:
    with cpp_echo(48) as server, grpc.insecure_channel(server.target) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CLASSIFY)
        assert [len(call(message, timeout=10)) for message in (b"", bytes(784), bytes(1 << 20))] == [48, 48, 48]
        assert server.stop() == 0


@needs_grpc
def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\necho > "$6"\n')  # behind -o
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = compiled(tmp_path / "cache")
    made_ns = program.stat().st_mtime_ns
    assert compiled(tmp_path / "cache") == program
    assert program.stat().st_mtime_ns == made_ns
    assert list((tmp_path / "cache").iterdir()) == [program]


def test_without_a_compiler_the_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceUnavailableError, match=r"NO_CPP_GRPC: .*g\+\+.*apt-get install g\+\+ libgrpc\+\+-dev"):
        compiled(tmp_path / "cache")


def test_without_the_library_the_compilers_own_words_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'echo.cc:12: fatal error: grpcpp/grpcpp.h: No such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ResourceUnavailableError, match=r"grpcpp/grpcpp.h: No such file \(Debian: apt-get"):
        compiled(tmp_path / "cache")
