"""How backends are timed: by which clock, at which sizes, with which memory."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atelier.errors import ResourceUnavailableError
from export.repository import publish
from loadtest.backend_speed import clock_of, main, measure, opened, row_of
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.manifest import ONNX_NAME
from tests.export.small_model import exported_files, manifest_for, noise_images, truth
from tests.serving.fake_onnxruntime_gpu import onnxruntime_on_a_fake_gpu
from tests.tensorrt.fake_cuda import FakeCuda

ONNX = exported_files()[ONNX_NAME]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in exported_files().items()}
    publish(directory / "lenet5", exported_files(), manifest_for(digests))
    return directory


def latency_of(repository: Path, backend: str, *batch_sizes: int, capsys: pytest.CaptureFixture[str]) -> Any:
    sizes = map(str, batch_sizes)
    options = ["--repository", str(repository), "--backend", backend]
    assert main([*options, "--batch-sizes", *sizes]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_on_a_cpu_every_row_is_by_the_wall_clock_and_memory_is_the_processs(
    backend: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = latency_of(repository, backend, 1, 4, capsys=capsys)
    assert [(row["batch_size"], row["clock"]) for row in document["rows"]] == [(1, "wall clock"), (4, "wall clock")]
    for row in document["rows"]:
        assert len(row["images_per_s"]) == 5
        assert row["latency_us"] == row["wall_us"]
    assert document["memory"]["resident_bytes"] > 10 << 20
    assert document["memory"]["device_bytes"] is None


def test_every_call_but_the_first_counts_and_only_the_time_in_it() -> None:
    calls: list[int] = []
    speed = measure(lambda images: calls.append(len(images)), [noise_images(3), noise_images(3)], 0.01)
    assert len(speed.calls) == len(calls) - 1 > 1
    assert speed.images_per_s == pytest.approx(3 * len(speed.calls) / sum(call.wall_s for call in speed.calls))
    assert min(speed.calls).wall_s * 1e6 <= speed.latency_us == speed.wall_us


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without CUDA")
@pytest.mark.parametrize("backend", ["floor", "onnxruntime", "torch"])
def test_gpu_that_is_not_there_is_told_with_the_cure(backend: str, repository: Path) -> None:
    with pytest.raises(ResourceUnavailableError, match=r"NO_GPU: asked for cuda: cudaError.*use --device cpu"):
        main(["--repository", str(repository), "--backend", backend, "--device", "cuda"])


CXX = next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)


@pytest.mark.slow
@pytest.mark.skipif(CXX is None, reason="torch.compile needs a C++ compiler (Debian and Ubuntu: apt-get install g++)")
def test_compiled_contender_compiles_and_gives_the_models_logits(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two and three images, so one piece of code: a lone one has its own, and the compiler takes most of the time."""
    from torch._dynamo.utils import counters  # which takes seconds to import

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # an empty one, so that it is compiled here
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # more are processes that import torch first
    # What the processor has the system says; that a compiler makes code for it need not be tried, three times.
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", True)
    counters.clear()
    backend = opened(repository, "torch-compiled", "cpu", 3)
    for batch_size in (2, 3):
        images = noise_images(batch_size)
        np.testing.assert_allclose(backend.infer(images), truth()(images), rtol=1e-5, atol=1e-5)
    assert backend.name == "torch-compiled"
    assert counters["stats"]["unique_graphs"] == 1
    assert list(tmp_path.rglob("*.so"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return onnxruntime_on_a_fake_gpu(monkeypatch)


def test_onnxruntime_on_cuda_runs_on_a_stream_of_ours_which_events_time(gpu: FakeCuda) -> None:
    backend = OnnxRuntimeBackend(ONNX, device="cuda", max_batch_size=4)
    (session,) = gpu.sessions
    assert session.options["user_compute_stream"] == str(int(backend.stream))
    np.testing.assert_allclose(backend.infer(noise_images(3)), truth()(noise_images(3)), rtol=1e-5, atol=1e-5)
    clock = clock_of(backend)
    assert clock is not None
    row = row_of(backend, 3, 2, 0.0, clock)
    assert (row["clock"], row["latency_us"]) == ("CUDA events", [1000.0, 1000.0])  # one launch between two events
    clock.close()
    backend.close()
    assert gpu.is_clean()
