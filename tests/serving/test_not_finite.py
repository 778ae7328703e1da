"""Weights and logits that are no numbers end in a refusal, never in an answer: the largest of NaN would be a class."""

import dataclasses
import hashlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from atelier.answers import ClassifyError
from atelier.client import Client
from export.parity import truth_of
from export.repository import publish
from loadtest.restarts.shelf import Shelf
from loadtest.server_process import server_process
from serving.manifest import ONNX_NAME, find_version, read_verified
from tests.export.small_model import noise_images, probes_of, with_weights
from tests.serving.running import wait_for
from training.models import initialise, model_for
from training.recipes import RECIPES

WHITE = np.full((1, 1, 28, 28), 255, np.uint8)


@pytest.fixture
def overflowing(small_repository: Path, tmp_path: Path) -> Path:
    """A version whose weights are finite and whose probes pass: only a white image overflows float32."""
    model = model_for(dataclasses.replace(RECIPES["tutorial"], activation="relu"))
    initialise(model, seed=0)
    with torch.no_grad():
        state = model.state_dict()
        state["layers.conv1.weight"][0], state["layers.conv1.bias"][0] = 1e37, -2e38  # 25 white pixels are 2.5e38
        state["layers.conv2.weight"][:, 0] = 1e3
    version_dir, manifest = find_version(small_repository)
    weights = {name: tensor.numpy() for name, tensor in state.items()}
    model_onnx = with_weights(read_verified(version_dir, manifest, ONNX_NAME), weights)
    digests = {ONNX_NAME: hashlib.sha256(model_onnx).hexdigest()}
    manifest = dataclasses.replace(manifest, files=digests, probes=probes_of(truth_of(model.eval())))
    publish(tmp_path / "models" / "lenet5", {ONNX_NAME: model_onnx}, manifest)
    return tmp_path / "models"


@pytest.mark.fault("S28")
def test_logits_that_overflow_for_one_image_are_an_error_for_it_alone(overflowing: Path, front_end: str) -> None:
    options = ("--repository", str(overflowing), "--port", "0", "--device", "cpu", "--front-end", front_end)
    with server_process("serving", *options) as server, Client(server.target) as client:
        before = client.classify(noise_images(3), top_k=10)
        for _ in range(2):
            with pytest.raises(ClassifyError, match="BAD_OUTPUT"):
                client.classify(WHITE, timeout_s=10)
        assert client.classify(noise_images(3), top_k=10).classifications == before.classifications
        assert server.stop() == 0


@pytest.mark.slow
def test_version_with_weights_that_are_no_numbers_is_not_swapped_in(
    small_repository: Path, front_end: str, tmp_path: Path
) -> None:

    shelf = Shelf(repository=tmp_path / "models", source=small_repository)
    shelf.publish(1)
    options = ("--repository", str(shelf.repository), "--port", "0", "--device", "cpu", "--front-end", front_end)
    with server_process("serving", *options, "--watch-repository", "0.1") as server, Client(server.target) as client:
        shelf.publish_bad(2, "no numbers", Random(0))
        wait_for(lambda: "version 2 is refused: NON_FINITE: " in server.output)
        assert client.model().model_version == "1"
        assert server.stop() == 0
