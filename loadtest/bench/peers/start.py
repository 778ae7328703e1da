"""Starts peers with the exported model, and sees that each gives the right answer before it is measured."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path

import numpy as np

import loadtest
from atelier.contract import Images, Logits
from atelier.environments import python_with
from atelier.errors import ProgramError, ResourceUnavailableError
from loadtest.backend_speed import random_images
from loadtest.bench.h2load import Target, ask
from loadtest.bench.peers.known import NUM_PORTS, Peer

ROOT = Path(loadtest.__file__).absolute().parent.parent
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
ATOL = 1e-3  # of a logit: the runtime is the same, the batch may not be

Truth = Callable[[Images], Logits]
PEERS_DIR = Path(".cache") / "peers"


@contextmanager
def running_peers(
    model: Path, truth: Truth, peers: Mapping[str, Peer]
) -> Iterator[tuple[dict[str, Target], dict[str, str]]]:
    """Starts all that can be; yields by name and version how they are asked, and why the others are absent."""
    targets: dict[str, Target] = {}
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        for name, peer in peers.items():
            title = " ".join([name, *(package.partition("==")[2] for package in peer.packages[:1])])
            try:
                targets[title] = replace(stack.enter_context(running_peer(name, peer, model, truth)), name=title)
            except ProgramError as error:
                absent[title] = str(error)
        yield targets, absent


@contextmanager
def running_peer(name: str, peer: Peer, model: Path, truth: Truth) -> Iterator[Target]:
    """Installs and starts one, which has given the right answer to one image. Raises ProgramError if it cannot."""
    python = installed(name, peer.packages)
    with tempfile.TemporaryDirectory(prefix=f"atelier-{name.lower()}-") as scratch:
        directory, ports = Path(scratch), _free_ports()
        command = peer.command(python, model.absolute(), directory, ports)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": scratch}
        environment["PATH"] = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with (directory / "output").open("wb") as output:
            process = subprocess.Popen(  # noqa: S603
                command, cwd=directory, env=environment, stdout=output, stderr=output, process_group=0
            )
            try:
                target = Target(
                    name=name,
                    pid=process.pid,
                    url=f"http://127.0.0.1:{ports[0]}{peer.path}",
                    body_for=peer.body_for,
                    headers=peer.headers,
                    is_http1=peer.is_http1,
                )
                answer = _first_answer(target, process, directory / "output")
                _check(name, peer, answer, truth)
                yield replace(target, reply_bytes=None if peer.is_text else len(answer))
            finally:
                _end(process)


def _first_answer(target: Target, process: "subprocess.Popen[bytes]", output: Path) -> bytes:
    """Asks about one image until there is an answer."""
    until_s, refusal = time.monotonic() + START_TIMEOUT_S, "it was not asked"
    while time.monotonic() < until_s and process.poll() is None:
        try:
            return ask(target, random_images(1))
        except (OSError, HTTPException) as error:
            refusal = str(error)
        time.sleep(0.2)
    why = " ".join(output.read_text(errors="replace")[-300:].split()) or refusal
    raise ResourceUnavailableError("NO_PEER", f"{target.name} did not answer", "leave out PEERS=1", why=why)


def _check(name: str, peer: Peer, answer: bytes, truth: Truth) -> None:
    try:
        is_right = bool(np.allclose(peer.logits_in(answer), truth(random_images(1))[0], atol=ATOL))
    except (ValueError, IndexError, KeyError):
        is_right = False
    if not is_right:
        raise ProgramError("WRONG_PEER", f"{name} did not give the model's logits", why=repr(answer[:80]))


def _free_ports() -> list[int]:
    """Returns ports on which nothing listens now. If another program takes one first, the peer does not start."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(NUM_PORTS)]
        return [each.getsockname()[1] for each in sockets]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the peer with all that it started: they are a process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(STOP_TIMEOUT_S)


def installed(peer: str, packages: tuple[str, ...], directory: Path = PEERS_DIR) -> Path:
    """Returns the Python of the peer's environment. Raises ResourceUnavailableError NO_PEER if pip cannot make it.

    Behind the peer's own packages the environment sees ours: ONNX Runtime is the same, PyTorch is not fetched again.
    Without packages of its own the peer runs in ours.
    """
    if not packages:
        return Path(sys.executable)
    try:
        return python_with(packages, directory / peer.lower(), sees_ours=True)
    except ResourceUnavailableError as error:
        what = f"{peer} cannot be installed"
        raise ResourceUnavailableError("NO_PEER", what, "leave out PEERS=1", why=error.why) from None
