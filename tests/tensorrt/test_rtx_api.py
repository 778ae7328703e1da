"""How an engine of TensorRT for RTX is run, held to the real bindings: classes, enums and signatures are NVIDIA's."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from atelier.errors import BadDataError
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.backends.proof import prove
from serving.backends.tensorrt_backend import TensorRTBackend
from serving.manifest import RTX_ENGINE_NAME, TENSORRT_RTX, EngineSpec
from tests.export.small_model import manifest_for, noise_images, weights_of, with_weights
from tests.tensorrt.bindings import rtx_bindings
from tests.tensorrt.engine_double import MAX_BATCH_SIZE, ONNX, Engine, calls_of, put_in_place_of_the_runtime
from tests.tensorrt.fake_cuda import FakeCuda
from tests.tensorrt.specs import Call, Spec

PORTABLE = ("8.0", "8.6", "8.9", "12.0", "12.1")


@pytest.fixture
def trt() -> Any:
    return rtx_bindings()


@pytest.fixture
def spec(trt: Any) -> EngineSpec:
    return EngineSpec(
        flavour=TENSORRT_RTX,
        file=RTX_ENGINE_NAME,
        version=trt.__version__,
        compute_capabilities=PORTABLE,
        precision="fp32",
        onnx_sha256="0" * 64,
        min_batch_size=1,
        opt_batch_size=8,
        max_batch_size=MAX_BATCH_SIZE,
        layer_types={"fp32": 27},
    )


@pytest.fixture
def log() -> list[Call]:
    return []


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda("NVIDIA GeForce RTX 5090", (12, 0))
    fake.put_in_place(monkeypatch)
    return fake


@pytest.fixture
def engine(trt: Any, monkeypatch: pytest.MonkeyPatch, log: list[Call], gpu: FakeCuda) -> Engine:
    """Its kernels are compiled anew unless the cache that was loaded has them."""
    engine = Engine(trt, trt, monkeypatch, log, gpu)
    cache = Spec(trt.IRuntimeCache, log, serialize=lambda: memoryview(b"compiled kernels"))
    engine.spec.answers["create_runtime_config"] = Spec(trt.IRuntimeConfig, log, create_runtime_cache=cache)
    return engine


def open_it(spec: EngineSpec, cache_dir: Path | None = None) -> TensorRTBackend:
    return TensorRTBackend(b"an engine", spec, onnx_sha256="0" * 64, max_batch_size=MAX_BATCH_SIZE, cache_dir=cache_dir)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 12])
def test_logits_are_the_models_for_every_batch_size(
    batch_size: int, spec: EngineSpec, engine: Engine, gpu: FakeCuda
) -> None:
    backend = open_it(spec)
    assert (backend.name, backend.device) == ("tensorrt-rtx", "cuda:0")
    for seed in range(2):
        images = noise_images(batch_size, seed=seed)
        np.testing.assert_allclose(backend.infer(images), engine.model.infer(images), rtol=1e-5, atol=1e-5)
    backend.close()
    assert gpu.is_clean()


def test_kernels_are_compiled_before_they_are_proven_and_never_replaced(
    trt: Any, spec: EngineSpec, engine: Engine, log: list[Call], gpu: FakeCuda
) -> None:
    backend = open_it(spec)
    backend.warm_up()
    eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert calls_of(log, "dynamic_shapes_kernel_specialization_strategy") == [(eager,)]
    assert engine.num_contexts == len(gpu.executables) == 5  # 1, 2, 4, 8, 12
    backend.close()


def test_engine_that_cannot_be_captured_runs_without_a_graph(
    trt: Any, spec: EngineSpec, engine: Engine, gpu: FakeCuda
) -> None:
    make_context = engine.make_context

    def not_capturable(config: Any) -> Spec:
        context = make_context(config)
        context.answers["is_stream_capturable"] = False
        return context

    engine.spec.answers["create_execution_context"] = not_capturable
    backend = open_it(spec)
    for seed in range(3):
        images = noise_images(7, seed=seed)
        np.testing.assert_allclose(backend.infer(images), engine.model.infer(images), rtol=1e-5, atol=1e-5)
    assert not gpu.executables
    backend.close()
    assert gpu.is_clean()


def test_compiled_kernels_are_kept_and_loaded_at_the_next_start(
    spec: EngineSpec, engine: Engine, log: list[Call], tmp_path: Path
) -> None:
    cache_dir = tmp_path / "not there yet"
    for _ in range(2):
        backend = open_it(spec, cache_dir)
        backend.warm_up()
        backend.close()
    (kept,) = cache_dir.iterdir()
    assert kept.read_bytes() == b"compiled kernels"
    assert calls_of(log, "deserialize") == [(b"compiled kernels",)]
    assert len(calls_of(log, "set_runtime_cache")) == 2


@pytest.mark.parametrize("change", ["engine", "gpu", "driver"])
def test_kernels_of_another_engine_gpu_or_driver_are_not_loaded(
    change: str, spec: EngineSpec, engine: Engine, gpu: FakeCuda, log: list[Call], tmp_path: Path, trt: Any
) -> None:
    backend = open_it(spec, tmp_path)
    backend.warm_up()
    backend.close()
    data = b"an engine"
    if change == "engine":
        data = b"another engine"
    elif change == "gpu":
        gpu.gpu = "NVIDIA GeForce RTX 5080"
    else:
        gpu.driver = 13010
    other = TensorRTBackend(data, spec, onnx_sha256="0" * 64, max_batch_size=4, cache_dir=tmp_path)
    other.warm_up()
    other.close()
    assert not calls_of(log, "deserialize")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(
    spec: EngineSpec, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in the way").touch()
    backend = open_it(spec, tmp_path / "in the way")
    backend.warm_up()
    backend.close()
    assert "the compiled kernels are not kept: " in caplog.text


@pytest.mark.fault("E9", "E10")
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"version": "1.6.0.1"}, r"built for TensorRT for RTX 1\.6\.0\.1, here is 1\."),
        (
            {"compute_capabilities": ("8.0", "8.6")},
            r"built for compute capability 8\.0, 8\.6, here is NVIDIA GeForce RTX 5090 \(compute capability 12\.0\)",
        ),
        ({"onnx_sha256": "1" * 64}, r"built for model 111111111111…, here is 000000000000…"),
    ],
)
def test_engine_that_does_not_fit_is_named_before_the_library_sees_it(
    changed: dict[str, Any], told: str, spec: EngineSpec, engine: Engine, log: list[Call]
) -> None:
    with pytest.raises(BadDataError, match=f"ENGINE_STALE: the engine {RTX_ENGINE_NAME} was {told}.*make export"):
        open_it(dataclasses.replace(spec, **changed))
    assert not calls_of(log, "deserialize_cuda_engine")


def test_refusal_is_told_in_the_librarys_words(
    trt: Any, spec: EngineSpec, gpu: FakeCuda, log: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    validity = {"get_engine_validity": (trt.EngineValidity.INVALID, 6)}
    put_in_place_of_the_runtime(trt, trt, monkeypatch, None, log, **validity)
    told = r"BAD_ENGINE: TensorRT for RTX .* cannot load the engine: .*engine validity INVALID, diagnostics 0x6"
    with pytest.raises(BadDataError, match=told):
        open_it(spec)


def test_library_is_not_imported_for_an_engine_that_does_not_fit(trt: Any) -> None:
    """It maps 200 MB; a server without a GPU, or with one that the engine is not for, never needs it."""
    program = f"""
import sys
import pytest
from atelier.errors import ProgramError
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.backends.proof import prove
from serving.backends.tensorrt_backend import TensorRTBackend
from serving.manifest import EngineSpec
from tests.tensorrt.fake_cuda import FakeCuda
spec = EngineSpec(flavour="tensorrt-rtx", file="model.rtx.engine", version="1", compute_capabilities={PORTABLE},
    precision="fp32", onnx_sha256="", min_batch_size=1, opt_batch_size=1, max_batch_size=1, layer_types={{}})
for has_gpu in (False, True):
    if has_gpu:
        FakeCuda("NVIDIA H100", (9, 0)).put_in_place(pytest.MonkeyPatch())
    try:
        TensorRTBackend(b"", spec, onnx_sha256="", max_batch_size=1)
    except ProgramError as error:
        print(error.word, any("tensorrt_rtx" in name for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["NO_GPU False", "ENGINE_STALE False"], done.stderr


# --- Proof on arrival -------------------------------------------------------------------------------------------------

MANIFEST = manifest_for({})


def test_engine_is_proven_where_it_first_runs(spec: EngineSpec, engine: Engine) -> None:
    proof = prove(open_it(spec), MANIFEST)
    assert (proof.num_probes, proof.batch_sizes) == (64, (1, 7, MAX_BATCH_SIZE))


@pytest.mark.parametrize("seed", range(10))
def test_engine_of_another_version_is_refused_whatever_the_manifest_says_of_it(
    seed: int, spec: EngineSpec, engine: Engine
) -> None:
    """Two versions' engines have changed places, digests and all: only running them tells."""
    name = "layers.linear3.weight"
    weight = weights_of(onnx.load_from_string(ONNX))[name].copy()
    weight[seed] *= 1.01  # another training would be off by more
    other = with_weights(ONNX, {name: weight})
    engine.model = OnnxRuntimeBackend(other, max_batch_size=MAX_BATCH_SIZE)
    with pytest.raises(BadDataError, match=r"PARITY_HERE: tensorrt-rtx on cuda:0: probe .*output logits"):
        prove(open_it(spec), MANIFEST)
