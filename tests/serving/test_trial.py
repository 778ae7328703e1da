"""Versions are tried in a process of their own: what asks for gigabytes, crashes or never ends does so there."""

import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import psutil
import pytest

from atelier.client import Client
from atelier.errors import BadDataError, MissingInputError, ProgramError, ResourceUnavailableError, UsageError
from export.repository import publish
from loadtest.restarts.shelf import Shelf
from loadtest.server_process import ServerProcess, server_process
from serving.config import ServerConfig
from serving.limits import Limits
from serving.manifest import ONNX_NAME, PROGRAM_NAME
from serving.models import ModelVersion, read_version
from serving.trial import Trial
from tests.export.small_model import exported_files, manifest_for
from tests.serving.running import has_ended, kill_serving_process, serving_process_of, wait_for
from tests.serving.test_hostile_models import an_endless_loop, attacked
from tests.serving.test_hostile_programs import edit_graph, entries_of, packed
from tests.serving.trying_server import HARM

IMAGES = np.full((2, 28, 28), 200, np.uint8)
TRYING = "tests.serving.trying_server"


@pytest.fixture(autouse=True)
def without_garbage() -> None:
    """Frees other tests' calls and channels: a fork that did would break off in gRPC, whose threads it lacks."""
    gc.collect()


@pytest.fixture
def shelf(small_repository: Path, tmp_path: Path) -> Shelf:
    """A repository that has version 1."""
    shelf = Shelf(repository=tmp_path / "models", source=small_repository)
    shelf.publish(1)
    return shelf


def settings(repository: Path, *others: str, backend: str = "onnxruntime") -> list[str]:
    return ["--repository", str(repository), "--port", "0", "--device", "cpu", "--backend", backend, *others]


# --- A start ---------------------------------------------------------------------------------------------------------


def refused_start(module: str, *arguments: str, timeout_s: float = 60) -> str:
    """Starts a server that must refuse what it finds; returns the line."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == os.EX_DATAERR, done.stderr
    assert "serving" not in done.stdout
    (line,) = re.findall("^error: .*", done.stderr, re.MULTILINE)
    return str(line)


@pytest.mark.slow
@pytest.mark.fault("E8")
@pytest.mark.parametrize("number", [0, 1, 3, 4])
def test_start_ends_with_the_word_of_what_the_version_does(shelf: Shelf, number: int) -> None:
    line = refused_start(TRYING, "--harm", str(1 - number), *settings(shelf.repository))
    assert line.startswith(f"error: {HARM[number][1]}: "), line


ends_with_its_parent = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process of its parent's end"
)


@contextlib.contextmanager
def endless_start(shelf: Shelf) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Starts a server that tries a version which sleeps; yields it, and the process that tries."""
    arguments = ["--harm", "-1", "--trial-s", "50", *settings(shelf.repository)]
    with subprocess.Popen([sys.executable, "-m", TRYING, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = (re.search(r"process (\d+) opens version 1", line) for line in process.stdout)
        opened = next(filter(None, lines))
        yield process, int(opened[1])


def test_sigterm_while_a_version_is_tried_ends_the_start(shelf: Shelf) -> None:
    with endless_start(shelf) as (process, tries):
        process.terminate()
        assert process.wait(10) == 0
        assert not psutil.pid_exists(tries)


@ends_with_its_parent
def test_trial_ends_with_the_starting_process_that_waits_for_it(shelf: Shelf) -> None:
    with endless_start(shelf) as (process, tries):
        starting = psutil.Process(tries).parent()
        assert starting is not None and starting.pid != process.pid
        starting.kill()
        wait_for(lambda: has_ended(tries), 10)
        process.terminate()


# --- Newer versions --------------------------------------------------------------------------------------------------


@pytest.mark.fault("E8", "S34")
@pytest.mark.slow
def test_newer_versions_that_do_harm_are_refused_and_the_old_one_serves_on(shelf: Shelf) -> None:
    options = settings(shelf.repository, "--watch-repository", "0.1")
    with server_process(TRYING, "--trial-s", "15", *options) as server, Client(server.target) as client:
        process, held_bytes = serving_process_of(server), 0
        for number, (_, word) in enumerate(HARM, 2):
            shelf.publish(number)
            while (refused := re.search(f"version {number} is refused: ([A-Z_]*)", server.output)) is None:
                assert client.classify(IMAGES, timeout_s=5).model_version == "1"
                held_bytes = max(held_bytes, process.memory_info().rss)
                time.sleep(0.1)
            assert refused[1] == word
            shelf.withdraw(number)
        for word in {word for _, word in HARM}:
            num_refused = sum(word == each for _, each in HARM)
            wait_for(lambda: server.metric("atelier_versions_refused_total", reason=word) == num_refused)  # noqa: B023
        assert held_bytes < 400 << 20
        shelf.publish(2 + len(HARM))
        wait_for(lambda: client.classify(IMAGES, timeout_s=5).model_version == str(2 + len(HARM)))
        assert not has_ended(process)
        assert server.stop() == 0


@pytest.mark.slow
def test_version_is_tried_again_if_the_machine_may_have_been_the_reason(shelf: Shelf) -> None:
    options = ["--trial-again-s", "0.5", *settings(shelf.repository, "--watch-repository", "0.1")]
    with server_process(TRYING, *options) as server:
        shelf.publish(6)  # its process is killed
        wait_for(lambda: server.output.count("version 6 is refused: LOAD_CRASHED") >= 3)
        shelf.publish(9)  # its fault
        wait_for(lambda: "version 9 is refused: LOAD_FAILED" in server.output)
        time.sleep(3.0)
        assert server.output.count("version 9 is refused") == 1
        assert server.stop() == 0


@pytest.fixture
def endless_trial(shelf: Shelf) -> Iterator[tuple[ServerProcess, int]]:
    """Starts a server that tries a newer version which sleeps; and the process that tries."""
    options = ["--trial-s", "50", *settings(shelf.repository, "--watch-repository", "0.1")]
    with server_process(TRYING, *options) as server:
        shelf.publish(4)
        wait_for(lambda: "opens version 4" in server.output)
        yield server, int(re.findall(r"process (\d+) opens version 4", server.output)[0])


@ends_with_its_parent
def test_trial_ends_with_the_supervisor_that_waits_for_it(endless_trial: tuple[ServerProcess, int]) -> None:
    server, tries = endless_trial
    server.process.kill()
    wait_for(lambda: has_ended(tries), 10)


def test_server_ends_while_a_newer_version_is_tried(endless_trial: tuple[ServerProcess, int]) -> None:
    server, tries = endless_trial
    assert server.stop() == 0
    assert not psutil.pid_exists(tries)


@pytest.mark.slow
def test_process_that_replaces_another_opens_what_was_tried(shelf: Shelf) -> None:
    with server_process(TRYING, *settings(shelf.repository)) as server, Client(server.target) as client:
        kill_serving_process(server)
        client.classify(IMAGES, timeout_s=20)
        wait_for(lambda: server.output.count("opens version 1") == 3)  # a trial and two that serve
        assert server.stop() == 0


# --- What files can do -----------------------------------------------------------------------------------------------


def program_with_a_border(width: int) -> bytes:
    """A program within the rules whose second convolution has so many zeros around its input: 16 maps a channel."""
    entries = entries_of()

    def edit(document: dict[str, Any]) -> None:
        nodes = document["graph_module"]["graph"]["nodes"]
        first = next(node for node in nodes if node["target"] == "torch.ops.aten.conv2d.default")
        next(each for each in first["inputs"] if each["name"] == "padding")["arg"]["as_ints"] = [width, width]

    edit_graph(entries, edit)
    return packed(entries)


@pytest.mark.fault("E8")
@pytest.mark.slow
def test_torch_program_that_asks_for_8_gb_is_refused(tmp_path: Path) -> None:
    program = program_with_a_border(16_000)  # 6 maps of 32,024 x 32,024
    digests = {PROGRAM_NAME: hashlib.sha256(program).hexdigest()}
    publish(tmp_path / "models" / "lenet5", {PROGRAM_NAME: program}, manifest_for(digests))
    line = refused_start("serving", *settings(tmp_path / "models", backend="torch"), timeout_s=300)
    assert line.startswith("error: BAD_MODEL: lenet5 version 1 takes more than 1024 MiB of memory (")


# --- One trial -------------------------------------------------------------------------------------------------------


def version_of(files: dict[str, bytes], repository: Path, backend: str) -> tuple[ModelVersion, ServerConfig]:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    publish(repository / "lenet5", files, manifest_for(digests))
    config = ServerConfig(repository=repository, backend=backend)
    return read_version(config), config


def refusal_of(version: ModelVersion, config: ServerConfig) -> str:
    """The word of a trial; nothing if the version has passed."""
    trial = Trial(version, config)
    wait([trial.link], trial.left_s)
    try:
        trial.conclude()
    except BadDataError as error:
        return error.word
    return ""


@contextlib.contextmanager
def runtime_that(does: Callable[[], object]) -> Iterator[None]:
    """ONNX Runtime and torch do it when they open a model."""

    def opened(*_: Any, **__: Any) -> Any:
        return does()

    with patch("onnxruntime.InferenceSession", opened), patch("torch.export.load", opened):
        yield


@pytest.mark.fault("E7")
@pytest.mark.parametrize(("backend", "word"), [("onnxruntime", "BAD_MODEL"), ("torch", "BAD_PROGRAM")])
def test_with_a_gpu_files_are_checked_and_nothing_is_opened(tmp_path: Path, backend: str, word: str) -> None:
    good = exported_files()
    bad = {ONNX_NAME: attacked(an_endless_loop), PROGRAM_NAME: good[PROGRAM_NAME][:-100]}
    with runtime_that(lambda: os._exit(3)):
        with patch("serving.trial.GPUS", ("null",)):
            assert refusal_of(*version_of(good, tmp_path / "good", backend)) == ""
            assert refusal_of(*version_of(bad, tmp_path / "bad", backend)) == word
        assert refusal_of(*version_of(good, tmp_path / "opened", backend)) == "LOAD_CRASHED"


@pytest.mark.fault("E8")
def test_trial_that_stands_still_ends_when_its_time_is_up(tmp_path: Path) -> None:
    version, config = version_of(exported_files(), tmp_path, "onnxruntime")
    config = dataclasses.replace(config, limits=Limits(trial_s=0.5))
    with runtime_that(lambda: os.kill(os.getpid(), signal.SIGSTOP)):
        assert refusal_of(version, config) == "LOAD_TIMEOUT"


def test_process_holds_no_socket_or_file_of_the_servers(tmp_path: Path) -> None:
    def look_around() -> None:
        held = {}
        for each in list(Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(OSError):  # that of the listing itself
                held[int(each.name)] = str(each.readlink()).partition(":")[0]
        (tmp_path / "seen.json").write_text(json.dumps([held[number] for number in sorted(held) if number > 2]))

    version, config = version_of(exported_files(), tmp_path, "onnxruntime")
    with (tmp_path / "secret").open("w"), runtime_that(look_around):
        refusal_of(version, config)
    assert json.loads((tmp_path / "seen.json").read_text()) == ["socket"]  # its end of the pipe


def no_kernel() -> None:
    raise onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented("Could not find an implementation for Conv")


@pytest.mark.parametrize(
    ("lacking", "does", "error"),
    [
        ({"max_batch_size": 4096}, None, UsageError),
        ({"backend": "litert"}, None, MissingInputError),
        ({}, no_kernel, ResourceUnavailableError),
    ],
)
def test_what_the_settings_or_the_machine_lack_is_for_the_server_to_say(
    tmp_path: Path, lacking: dict[str, Any], does: Callable[[], object] | None, error: type[ProgramError]
) -> None:
    version, config = version_of(exported_files(), tmp_path, "onnxruntime")
    config = dataclasses.replace(config, device="cpu", **lacking)
    with runtime_that(does) if does else contextlib.nullcontext():
        assert refusal_of(version, config) == ""
        with pytest.raises(error):
            version.open(config)


@pytest.mark.parametrize("said", [b"", b"\xff", b"[1]", b"7", b'{"word": "HALF"}', b"[" * 60_000, b"\0" * 100_000])
def test_whatever_the_process_says_the_server_goes_on(tmp_path: Path, said: bytes) -> None:
    send = Connection.send_bytes
    version, config = version_of(exported_files(), tmp_path, "onnxruntime")
    with patch.object(Connection, "send_bytes", lambda link, _data: send(link, said)):
        assert refusal_of(version, config) == "LOAD_CRASHED"


def test_half_a_message_is_not_waited_for(tmp_path: Path) -> None:
    def say_half(link: Connection, _data: bytes) -> None:
        os.write(link.fileno(), b"\0\0\0\xff{")
        time.sleep(1000)

    version, config = version_of(exported_files(), tmp_path, "onnxruntime")
    with patch.object(Connection, "send_bytes", say_half):
        assert refusal_of(version, config) == "LOAD_CRASHED"
