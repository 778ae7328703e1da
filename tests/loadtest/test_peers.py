"""A peer is measured only if it gives the model's own logits; one that cannot be had is a row with the reason."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from atelier.contract import Images, Logits
from atelier.errors import ProgramError, ResourceUnavailableError
from loadtest.backend_speed import random_images
from loadtest.bench.h2load import ask
from loadtest.bench.peers.known import PEERS, Peer
from loadtest.bench.peers.start import installed, running_peer, running_peers
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.manifest import ONNX_NAME
from tests.export.small_model import exported_files

ONNX = exported_files()[ONNX_NAME]


def truth(images: Images) -> Logits:
    return OnnxRuntimeBackend(ONNX, max_batch_size=64).infer(images)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / ONNX_NAME
    path.write_bytes(ONNX)
    return path


def double(*command: str) -> Peer:
    """A peer in our own environment, which is asked as plainly as can be: as TorchServe is."""

    def started(python: Path, model: Path, _directory: Path, ports: Sequence[int]) -> list[str]:
        return [str(python), *command, str(model), str(ports[0])]

    return replace(PEERS["TorchServe"], packages=(), command=started)


def test_peer_that_gives_the_models_logits_is_ready_and_ends_with_the_block(model: Path) -> None:
    with running_peer("Double", double("-m", "tests.loadtest.http_peer", "right"), model, truth) as target:
        assert target.reply_bytes == 40
        answer = np.frombuffer(ask(target, random_images(1)), np.float32)
        assert answer == pytest.approx(truth(random_images(1))[0])
    assert not psutil.pid_exists(target.pid)


def test_peer_with_other_logits_is_not_measured(model: Path) -> None:
    with (
        pytest.raises(ProgramError, match="WRONG_PEER: Double did not give the model's logits"),
        running_peer("Double", double("-m", "tests.loadtest.http_peer", "wrong"), model, truth),
    ):
        pass


def test_peer_that_ends_is_absent_with_its_own_last_words(model: Path) -> None:
    with running_peers(model, truth, {"Double": double("-c", "raise SystemExit('no such device')")}) as found:
        targets, absent = found
        assert targets == {}
        assert list(absent) == ["Double"]
        assert "NO_PEER: Double did not answer: no such device" in absent["Double"]


@pytest.mark.slow
def test_peer_that_cannot_be_installed_says_why(tmp_path: Path) -> None:
    absent_package = str(tmp_path / "litserve-9-py3-none-any.whl")
    with pytest.raises(ResourceUnavailableError, match=r"NO_PEER: LitServe cannot be installed: .*litserve-9"):
        installed("LitServe", (absent_package,), tmp_path)
    assert not (tmp_path / "litserve" / ".installed").exists()


def test_without_java_torchserve_says_so(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceUnavailableError, match=r"NO_JAVA: .*apt-get install default-jre"):
        PEERS["TorchServe"].command(Path(sys.executable), model, tmp_path, range(5))
