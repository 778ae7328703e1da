"""The C++ echo server, echo.cc: compiled at first use, and whenever it has changed."""

import hashlib
import os
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

from atelier.errors import ResourceUnavailableError
from loadtest.bench.h2load import CLASSIFY
from loadtest.server_process import ServerProcess, program_process

SOURCE = Path(__file__).with_name("echo.cc")
CACHE_DIR = Path(".cache") / "bench"
# What else is to be linked differs from release to release: the linker follows what the libraries need.
COMPILE = ("-O2", "-std=c++17", "-Wl,--copy-dt-needed-entries")
LIBRARIES = ("-lgrpc++", "-lgrpc", "-lgpr")


def cpp_echo(reply_bytes: int) -> AbstractContextManager[ServerProcess]:
    """Runs the server, which answers Classify with so many bytes. Raises as `compiled`."""
    return program_process([str(compiled()), str(reply_bytes), CLASSIFY])


def compiled(cache_dir: Path = CACHE_DIR) -> Path:
    """Returns the program. Raises ResourceUnavailableError NO_CPP_GRPC if the compiler or gRPC's library is missing."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    program = cache_dir / f"echo-{digest}"
    if program.exists():
        return program
    cache_dir.mkdir(parents=True, exist_ok=True)
    unfinished = cache_dir / f".{program.name}.{os.getpid()}"  # two benches may compile at once
    command = ["g++", *COMPILE, str(SOURCE), "-o", str(unfinished), *LIBRARIES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # noqa: S603
        why = next((line for line in done.stderr.splitlines() if "error:" in line), done.stderr[-300:])
        is_compiled = done.returncode == 0
    except OSError as error:
        is_compiled, why = False, f"g++: {error.strerror}"
    if not is_compiled:
        cure = "Debian: apt-get install g++ libgrpc++-dev"
        raise ResourceUnavailableError("NO_CPP_GRPC", "the C++ echo server cannot be compiled", cure, why=why)
    unfinished.replace(program)
    return program
