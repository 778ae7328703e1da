"""LiteRT as a backend, on a model that `export.onnx_model.litert_from` made of the seeded one."""

import dataclasses
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atelier.client import Client
from atelier.errors import BadDataError, MissingInputError, ResourceUnavailableError, UsageError
from export.onnx_model import litert_from
from export.repository import publish
from export.runtimes.measure import ENVIRONMENTS
from loadtest.server_process import server_process
from serving.backends.base import Backend
from serving.backends.select import open_backend, open_litert
from serving.manifest import LITERT_NAME, ONNX_NAME, Manifest, load_manifest
from tests.export.small_model import MAX_BATCH_SIZE, exported_files, manifest_for, noise_images, truth

MODEL = Path(__file__).with_name("seeded_model.tflite").read_bytes()


@pytest.fixture
def backend() -> Backend:
    pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra `litert`")
    return open_litert(MODEL, MAX_BATCH_SIZE)


@pytest.fixture
def version(tmp_path: Path) -> tuple[Path, Manifest]:
    files = {LITERT_NAME: MODEL, ONNX_NAME: exported_files()[ONNX_NAME]}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    version_dir = publish(tmp_path / "models" / "lenet5", files, manifest_for(digests))
    return version_dir, load_manifest(version_dir)


@pytest.mark.parametrize("batch_sizes", [(1,), (2, 7), (MAX_BATCH_SIZE, 1, MAX_BATCH_SIZE)])
def test_logits_are_the_models_whatever_batch_came_before(backend: Backend, batch_sizes: tuple[int, ...]) -> None:
    backend.warm_up()
    for batch_size in batch_sizes:
        images = noise_images(batch_size, seed=batch_size)
        logits = backend.infer(images)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, truth()(images), rtol=1e-5, atol=1e-5)


def test_images_may_be_read_only_or_part_of_a_larger_array_and_are_not_changed(backend: Backend) -> None:
    received = np.frombuffer(noise_images(8).tobytes(), np.uint8).reshape(8, 1, 28, 28)
    np.testing.assert_array_equal(backend.infer(received[::2]), backend.infer(noise_images(8)[::2].copy()))
    np.testing.assert_array_equal(received, noise_images(8))


def test_an_answer_stays_when_the_next_one_comes(backend: Backend) -> None:
    first = backend.infer(noise_images(2, seed=1))
    kept = first.copy()
    backend.infer(noise_images(2, seed=2))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("images", [noise_images(2).astype(np.float32), noise_images(2)[:, :, :27], noise_images(2)[0]])
def test_images_of_another_dtype_or_size_are_an_error(backend: Backend, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"."):
        backend.infer(images)


def test_file_that_is_no_model_is_refused(backend: Backend) -> None:
    with pytest.raises(BadDataError, match=r"BAD_MODEL: LiteRT cannot load it"):
        open_litert(b"no model", MAX_BATCH_SIZE)


def test_version_without_a_litert_model_says_how_to_get_one(version: tuple[Path, Manifest]) -> None:
    version_dir, manifest = version
    manifest = dataclasses.replace(manifest, files={ONNX_NAME: manifest.files[ONNX_NAME]})
    with pytest.raises(MissingInputError, match=r"NO_LITERT_MODEL: version 1 has no model\.tflite \(export it with"):
        open_backend("litert", "cpu", version_dir, manifest, max_batch_size=1, num_threads=1)


def test_litert_has_no_other_device_than_the_cpu(version: tuple[Path, Manifest]) -> None:
    with pytest.raises(UsageError, match="BAD_DEVICE: 'cuda' is no device of LiteRT's"):
        open_backend("litert", "cuda", *version, max_batch_size=1, num_threads=1)


def test_litert_that_is_not_installed_is_told_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "serving.backends.litert_backend", raising=False)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ResourceUnavailableError, match=r"NO_LITERT: asked for litert: .*pip install '\.\[litert\]'"):
        open_litert(MODEL, 1)


def test_served_answers_are_the_models(backend: Backend, version: tuple[Path, Manifest]) -> None:
    repository, images = version[0].parent.parent, noise_images(40)
    options = ("--repository", str(repository), "--port", "0", "--backend", "litert")
    with server_process("serving", *options) as server, Client(server.target) as client:
        found = client.classify(images, timeout_s=30)
    np.testing.assert_array_equal(found.labels, truth()(images).argmax(1))


@pytest.mark.slow
@pytest.mark.skipif(not (ENVIRONMENTS / "onnx2tf" / ".installed").exists(), reason="`make runtimes` was not run here")
def test_converter_makes_this_model() -> None:
    assert len(litert_from(exported_files()[ONNX_NAME])) == len(MODEL)


# --- Models that are not ours ----------------------------------------------------------------------------------------


def edited(edit: Callable[[Any], object]) -> bytes:
    """The model with something else in it, by LiteRT's own schema."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="needs the extra `litert`")
    flatbuffers = pytest.importorskip("flatbuffers")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(MODEL))
    edit(model)
    builder = flatbuffers.Builder(len(MODEL))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def with_operator(name: str) -> bytes:
    def edit(model: Any) -> None:
        operators = pytest.importorskip("ai_edge_litert.schema_py_generated").BuiltinOperator
        for operator in model.operatorCodes:
            if operator.builtinCode == operators.LOGISTIC:
                operator.builtinCode = getattr(operators, name)
                operator.deprecatedBuiltinCode = min(operator.builtinCode, 127)
                operator.customCode = b"Evil" if name == "CUSTOM" else None

    return edited(edit)


def test_model_packed_anew_is_read() -> None:
    assert open_litert(edited(lambda _: None), MAX_BATCH_SIZE).infer(noise_images(1)).shape == (1, 10)


@pytest.mark.parametrize(("operator", "said"), [("WHILE", "WHILE"), ("CUSTOM", "Evil"), ("CALL_ONCE", "CALL_ONCE")])
def test_loops_state_and_custom_operators_are_refused_before_they_run(operator: str, said: str) -> None:
    with pytest.raises(BadDataError, match=rf"BAD_MODEL: .*it has {said}, which no LeNet has"):
        open_litert(with_operator(operator), MAX_BATCH_SIZE)


def test_weight_that_is_no_number_is_refused() -> None:
    def poison(model: Any) -> None:
        weights = max((buffer for buffer in model.buffers if buffer.data is not None), key=lambda each: len(each.data))
        weights.data = np.frombuffer(np.float32(np.nan).tobytes() + bytes(weights.data[4:]), np.uint8)

    with pytest.raises(BadDataError, match="NON_FINITE: the LiteRT model will not be served: "):
        open_litert(edited(poison), MAX_BATCH_SIZE)
