"""What a server asks of the system: no connection to anywhere, no file to write, no rights of root."""

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from atelier.client import Client
from loadtest.server_process import program_process
from tests.reliability.plugin import Figure

OPENS = ("open", "openat", "creat")
CHANGES = ("mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "link", "linkat", "symlink")
WRITES = re.compile(r"\b(?:O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND)\b")
# What is no file on a disk: devices that keep nothing, and the process's own settings.
HARMLESS = re.compile(r'"/dev/(?:null|tty|ptmx|urandom)"|"/proc/self/')
READY_FILE = "/atelier-ready-"  # which this test asks for
STRACE = ["strace", "--daemonize", "--follow-forks", "--output-separately", "--quiet=all"]
POWERLESS = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: apt-get install strace")
@pytest.mark.goal("G26", of="system calls of a server from its start to its end", ci=0, release=0)
def test_server_writes_no_file_and_connects_to_nobody(
    front_end: str, small_repository: Path, tmp_path: Path, figure: Figure
) -> None:
    powerless = POWERLESS if os.geteuid() == 0 else []
    traced = [*STRACE, f"--trace=connect,{','.join(OPENS + CHANGES)}", f"--output={tmp_path}/calls"]
    options = ["--repository", str(small_repository), "--port", "0", "--metrics-port", "0", "--front-end", front_end]
    with program_process([*powerless, *traced, sys.executable, "-B", "-m", "serving", *options]) as server:
        with Client(server.target) as client:
            client.classify(np.zeros((3, 1, 28, 28), np.uint8))
        assert server.stop() == 0
    texts = [path.read_text() for path in tmp_path.glob("calls.*")]  # a file for each thread
    calls = [line for text in texts for line in text.splitlines() if re.match(r"[a-z0-9]+\(", line)]
    connected = [call for call in calls if call.startswith("connect(") and "AF_INET" in call]
    written = [call for call in calls if is_written(call) and READY_FILE not in call]
    figure(f"{len(calls):,} traced: {len(connected)} connections, {len(written)} writes")
    assert len(calls) > 500
    assert connected == []
    assert written == []


def is_written(call: str) -> bool:
    """Whether a call succeeded that could change a file."""
    name = call.partition("(")[0]
    if re.search(r"= -1 E[A-Z]+", call) or HARMLESS.search(call):
        return False
    return name in CHANGES or (name in OPENS and bool(WRITES.search(call)))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ('openat(AT_FDCWD, "/tmp/x", O_WRONLY|O_CREAT, 0666) = 3', True),
        ('openat(AT_FDCWD, "/tmp/x", O_RDONLY|O_CLOEXEC) = 3', False),
        ('openat(AT_FDCWD, "/x", O_RDWR) = -1 EACCES (Permission denied)', False),
        ('openat(AT_FDCWD, "/dev/null", O_RDWR) = 3', False),
        ('mkdir("/x", 0777) = 0', True),
    ],
)
def test_writes_are_recognised(call: str, expected: bool) -> None:
    assert is_written(call) == expected
