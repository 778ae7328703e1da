"""A server needs no right of root's, and says so to whoever gives it all of them."""

import os
import shutil
import sys

import pytest

from loadtest.server_process import program_process, server_process

SERVER = ("tests.serving.breaking_server", "--port", "0", "--metrics-port", "0")


@pytest.mark.fault("O9")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
def test_root_is_warned_once_and_served() -> None:
    with server_process(*SERVER) as server:
        assert server.output.count("warning: it runs as root, and needs none of root's rights") == 1
        assert server.stop() == 0


@pytest.mark.fault("O9")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_another_user_is_not_warned() -> None:
    """In a user namespace of its own it is nobody."""
    user = ["unshare", "--user"] if os.geteuid() == 0 else []
    with program_process([*user, sys.executable, "-m", *SERVER]) as server:
        assert "runs as root" not in server.output
        assert server.stop() == 0
