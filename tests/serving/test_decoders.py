"""The processes that decode pictures: what breaks one costs one picture."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from serving.errors import InvalidRequestError
from serving.pictures import decoders, worker
from serving.pictures.decoders import Decoder
from serving.pictures.reading import Prepared, Reading
from tests.serving.pictures import COLOUR_ALPHA, blank_png, encoded, garment
from tests.serving.running import has_ended, wait_for

AS_IS = Reading(invert=False, prepare=False)
SMALL = encoded(Image.fromarray(garment()))


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.end()


def process_of(decoder: Decoder) -> psutil.Process:
    assert decoder.pid is not None
    return psutil.Process(decoder.pid)


def test_picture_is_read_as_it_would_be_here(decoder: Decoder) -> None:
    assert decoder.pid is None  # nobody has asked yet
    read = decoder.read(SMALL, 0, AS_IS)
    assert (read.image[0] == garment()).all()
    assert read.prepared is None
    assert (decoder.read(SMALL, 0, Reading(invert=True, prepare=False)).image[0] == 255 - garment()).all()
    light = encoded(Image.new("L", (40, 30), 255))
    assert decoder.read(light, 0, AS_IS).is_light
    assert decoder.read(light, 0, Reading(invert=False, prepare=True)).prepared == Prepared(True, (0, 0, 30, 40))


def test_refusal_comes_back_in_its_words(decoder: Decoder) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        decoder.read(SMALL[:-40], 7, AS_IS)
    assert str(caught.value).startswith("BAD_PICTURE: pictures[7] is a PNG that is damaged or breaks off (send a whole")
    pid = decoder.pid
    decoder.read(SMALL, 0, AS_IS)
    assert decoder.pid == pid


def test_process_has_neither_the_servers_files_nor_its_environment(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    with (tmp_path / "key.pem").open("w") as key:
        os.set_inheritable(key.fileno(), True)
        decoder.read(SMALL, 0, AS_IS)
        process = process_of(decoder)
        assert "SECRET" not in process.environ()
        assert not [file for file in process.open_files() if file.path == key.name]
    assert process.net_connections() == []


def test_killed_process_is_replaced_and_the_picture_read_all_the_same(decoder: Decoder) -> None:
    decoder.read(SMALL, 0, AS_IS)
    first = process_of(decoder)
    first.send_signal(signal.SIGSTOP)  # with a picture in hand
    killer = threading.Timer(0.1, first.kill)
    killer.start()
    assert (decoder.read(SMALL, 0, AS_IS).image[0] == garment()).all()
    killer.join()
    second = process_of(decoder)
    second.kill()  # with none
    wait_for(lambda: has_ended(second))
    assert (decoder.read(SMALL, 0, AS_IS).image[0] == garment()).all()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGXCPU])
def test_picture_that_crashes_its_decoder_is_refused_and_the_next_is_read(
    decoder: Decoder, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    decoder.read(SMALL, 0, AS_IS)
    process = process_of(decoder)
    process.send_signal(signal.SIGSTOP)
    threading.Timer(0.1, process.send_signal, [number]).start()
    threading.Timer(0.2, process.send_signal, [signal.SIGCONT]).start()
    with caplog.at_level(logging.WARNING), pytest.raises(InvalidRequestError) as caught:
        decoder.read(SMALL, 3, AS_IS)
    assert str(caught.value).startswith("BAD_PICTURE: pictures[3] ends the process that decodes it (save it anew")
    assert caplog.messages == [f"a picture's decoder ended by signal {number}: the next picture starts another"]
    assert (decoder.read(SMALL, 0, AS_IS).image[0] == garment()).all()


@pytest.mark.slow
def test_decoder_that_hangs_is_replaced(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder.read(SMALL, 0, AS_IS)
    process_of(decoder).send_signal(signal.SIGSTOP)
    monkeypatch.setattr(decoders, "MAX_WAIT_S", 0.1)
    began_s = time.monotonic()
    with pytest.raises(RuntimeError, match="a picture's decoder gave no answer within"):
        decoder.read(SMALL, 0, AS_IS)
    assert time.monotonic() - began_s < 5
    monkeypatch.undo()
    assert (decoder.read(SMALL, 0, AS_IS).image[0] == garment()).all()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux'")
def test_process_may_hold_so_much_memory_and_no_more(decoder: Decoder) -> None:
    decoder.read(SMALL, 0, AS_IS)
    process = process_of(decoder)
    (most, _), held = process.rlimit(psutil.RLIMIT_AS), process.memory_info().vms
    assert held < most <= held + worker.MAX_BYTES
    decoder.read(blank_png(2048, 1024, 16, COLOUR_ALPHA), 0, AS_IS)
    process.rlimit(psutil.RLIMIT_AS, (held, held))
    with pytest.raises(InvalidRequestError, match="is a PNG for which there is no memory"):
        decoder.read(blank_png(2048, 2048, 8, COLOUR_ALPHA), 0, AS_IS)
    assert (decoder.read(SMALL, 0, AS_IS).image[0] == garment()).all()


def test_process_goes_on_when_a_terminal_signals_to_all(decoder: Decoder) -> None:
    decoder.read(SMALL, 0, AS_IS)
    process = process_of(decoder)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    decoder.read(SMALL, 0, AS_IS)
    assert decoder.pid == process.pid


def test_process_ends_with_the_server_whatever_ends_that() -> None:
    program = """
import time
from serving.pictures.decoders import Decoder
from tests.serving.test_decoders import AS_IS, SMALL
decoder = Decoder()
decoder.read(SMALL, 0, AS_IS)
print(decoder.pid, flush=True)
time.sleep(1000)
"""
    command, environment = [sys.executable, "-c", program], os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            process = psutil.Process(int(server.stdout.readline()))
        finally:
            server.kill()
    try:
        wait_for(lambda: has_ended(process), 10)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_decoder_that_cannot_start_is_no_fault_of_the_picture(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RuntimeError, match="a picture's decoder ended with exit code 1"):
        decoder.read(SMALL, 0, AS_IS)
