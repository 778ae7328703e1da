"""Our TensorRT code against the real bindings of one release; `test_tensorrt_api.py` runs this file under each.

The classes, enums and signatures are NVIDIA's; the engine is ONNX Runtime behind TensorRT's interface, on the memory
that the code under test bound and copied to, so that wrong addresses, sizes or shapes give wrong logits.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt
import tensorrt_bindings as trt

from atelier.errors import BadDataError, ResourceUnavailableError
from export import tensorrt_engine
from export.engine_options import EngineOptions
from export.precision import PRECISIONS, onnx_in
from export.tensorrt_engine import check_types, engine_from_onnx, inspected_types, spec_of
from loadtest.backend_speed import clock_of, device_bytes, row_of
from loadtest.copies import Floor
from serving.backends import cuda
from serving.backends.tensorrt_backend import TensorRTBackend
from serving.manifest import EngineSpec
from tests.export.small_model import noise_images
from tests.tensorrt.engine_double import MAX_BATCH_SIZE, ONNX, Engine, calls_of, put_in_place_of_the_runtime
from tests.tensorrt.fake_cuda import FakeCuda
from tests.tensorrt.specs import Call, Spec

SPEC = EngineSpec(
    flavour="tensorrt",
    file="model.plan",
    version=trt.__version__,
    precision="fp32",
    driver="580.82.07",
    gpu="NVIDIA H200",
    compute_capabilities=("9.0",),
    onnx_sha256="0" * 64,
    min_batch_size=1,
    opt_batch_size=8,
    max_batch_size=MAX_BATCH_SIZE,
    version_compatible=False,
    hardware_compatible="none",
    layer_types={},
)
HALF_TYPES = {"fp16": trt.DataType.HALF, "bf16": trt.DataType.BF16}


@pytest.fixture
def log() -> list[Call]:
    return []


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.put_in_place(monkeypatch)
    return fake


# --- Building ---------------------------------------------------------------------------------------------------------


class Builder:
    """TensorRT's builder, network, parser and config, for `engine_from_onnx` to be driven through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, log: list[Call], precision: str) -> None:
        self.log, self.parsed = log, b""
        dtype = HALF_TYPES.get(precision, trt.DataType.FLOAT)
        # Both inputs of what multiplies come from the first layer, which in int8 dequantises.
        first = trt.LayerType.DEQUANTIZE if precision == "int8" else trt.LayerType.ACTIVATION
        kinds = [first, trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY]

        def tensor(name: str, dtype: Any, shape: tuple[int, ...]) -> Spec:
            return Spec(trt.ITensor, log, dtype=dtype, name=name, shape=shape, is_shape_tensor=False)

        between = [tensor(f"of {kind.name}", dtype, (-1, 6, 28, 28)) for kind in kinds]
        older = {"precision_is_set": False} if hasattr(trt.ILayer, "precision_is_set") else {}
        layers = [
            Spec(
                trt.ILayer,
                log,
                name=kind.name,
                type=kind,
                num_inputs=2,
                get_input=between[0],
                get_output=put,
                **older,
            )
            for kind, put in zip(kinds, between, strict=True)
        ]
        network = Spec(
            trt.INetworkDefinition,
            log,
            num_inputs=1,
            get_input=tensor("images", trt.DataType.UINT8, (-1, 1, 28, 28)),
            num_layers=len(layers),
            get_layer=lambda index: layers[index],
            num_outputs=1,
            get_output=tensor("logits", trt.DataType.FLOAT, (-1, 10)),
            name="lenet5",
        )
        cache = Spec(trt.ITimingCache, log, serialize=lambda: memoryview(b"timings"))
        config = Spec(
            trt.IBuilderConfig,
            log,
            create_timing_cache=cache,
            get_timing_cache=cache,
            engine_capability=trt.EngineCapability.STANDARD,
            num_optimization_profiles=1,
            get_flag=False,
            get_memory_pool_limit=0,
            get_tactic_sources=0,
            get_preview_feature=False,
            default_device_type=trt.DeviceType.GPU,
            avg_timing_iterations=1,
            DLA_core=-1,
            flags=0,
            max_aux_streams=0,
            tiling_optimization_level=trt.TilingOptimizationLevel.NONE,
            builder_optimization_level=3,
            l2_limit_for_tiling=0,
            **({"int8_calibrator": None} if hasattr(trt.IBuilderConfig, "int8_calibrator") else {}),
            **({"quantization_flags": 0, "get_quantization_flag": False} if self.has_quantization_flags else {}),
        )
        builder = Spec(
            trt.Builder,
            log,
            create_network=network,
            create_builder_config=config,
            build_serialized_network=b"a plan",
        )
        parser = Spec(trt.OnnxParser, log, parse=self.parse, num_errors=0)
        monkeypatch.setattr(tensorrt, "Builder", lambda logger: builder)
        monkeypatch.setattr(tensorrt, "OnnxParser", lambda network, logger: parser)

    has_quantization_flags = hasattr(trt.IBuilderConfig, "quantization_flags")

    def parse(self, model: bytes) -> bool:
        self.parsed = model
        return True


@pytest.mark.parametrize("precision", PRECISIONS)
def test_engine_is_built_strongly_typed_with_tf32_only_where_asked(
    precision: str, monkeypatch: pytest.MonkeyPatch, log: list[Call], gpu: FakeCuda, tmp_path: Path
) -> None:
    builder = Builder(monkeypatch, log, precision)
    model = onnx_in(precision, ONNX, noise_images(32))
    timing_cache = tmp_path / "new" / "timing.cache"
    options = EngineOptions(precision=precision, max_batch_size=256, opt_batch_size=32, timing_cache=timing_cache)
    assert engine_from_onnx(model, options) == b"a plan"
    assert builder.parsed == model
    ((_, _, _, flags),) = [call for call in log if call[1] == "create_network"]
    assert flags == {"flags": 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)}
    flags_set = {args[0].name for args in calls_of(log, "set_flag")}
    assert flags_set == ({"TF32"} if precision == "tf32" else set())
    assert [args[0].name for args in calls_of(log, "clear_flag")] == ([] if precision == "tf32" else ["TF32"])
    ((name, smallest, best, largest),) = calls_of(log, "set_shape")
    assert (name, *map(tuple, (smallest, best, largest))) == (
        *("images", (1, 1, 28, 28), (32, 1, 28, 28)),
        (256, 1, 28, 28),
    )
    assert timing_cache.read_bytes() == b"timings"


def test_timings_are_used_again(
    monkeypatch: pytest.MonkeyPatch, log: list[Call], gpu: FakeCuda, tmp_path: Path
) -> None:
    (tmp_path / "timing.cache").write_bytes(b"old timings")
    Builder(monkeypatch, log, "fp32")
    engine_from_onnx(ONNX, EngineOptions(precision="fp32", max_batch_size=4, timing_cache=tmp_path / "timing.cache"))
    assert bytes(calls_of(log, "create_timing_cache")[0][0]) == b"old timings"
    assert calls_of(log, "combine")


@pytest.mark.parametrize(
    ("level", "wanted"),
    [("ampere_plus", "AMPERE_PLUS"), ("same_compute_capability", "SAME_COMPUTE_CAPABILITY")],
)
def test_compatible_builds_set_their_flags(
    level: str, wanted: str, monkeypatch: pytest.MonkeyPatch, log: list[Call], gpu: FakeCuda, tmp_path: Path
) -> None:
    Builder(monkeypatch, log, "fp32")
    options = EngineOptions(
        precision="fp32",
        max_batch_size=4,
        version_compatible=True,
        hardware_compatible=level,
        timing_cache=tmp_path / "timing.cache",
    )
    engine_from_onnx(ONNX, options)
    assert trt.BuilderFlag.VERSION_COMPATIBLE in [args[0] for args in calls_of(log, "set_flag")]
    assert calls_of(log, "hardware_compatibility_level") == [(getattr(trt.HardwareCompatibilityLevel, wanted),)]


def test_graph_of_another_precision_is_refused_before_it_is_built(
    monkeypatch: pytest.MonkeyPatch, log: list[Call], gpu: FakeCuda, tmp_path: Path
) -> None:
    Builder(monkeypatch, log, "fp32")
    for precision in ("fp16", "bf16", "int8"):
        options = EngineOptions(precision=precision, max_batch_size=4, timing_cache=tmp_path / "timing.cache")
        with pytest.raises(BadDataError, match=f"WRONG_PRECISION: .*{precision} was asked for"):
            engine_from_onnx(ONNX, options)
    assert not calls_of(log, "build_serialized_network")


def test_model_that_tensorrt_cannot_parse_is_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, log: list[Call], gpu: FakeCuda, tmp_path: Path
) -> None:
    Builder(monkeypatch, log, "fp32")
    failing = Spec(trt.OnnxParser, log, parse=False, num_errors=0)
    monkeypatch.setattr(tensorrt, "OnnxParser", lambda network, logger: failing)
    options = EngineOptions(precision="fp32", max_batch_size=4, timing_cache=tmp_path / "timing.cache")
    with pytest.raises(BadDataError, match="BAD_ENGINE: TensorRT cannot build an engine of this model"):
        engine_from_onnx(ONNX, options)


# --- Reading back ----------------------------------------------------------------------------------------------------


def layers_of(*types: str) -> list[dict[str, Any]]:
    layers = [
        {"Name": f"layer {number}", "Outputs": [{"Name": f"tensor {number}", "Format/Datatype": name}]}
        for number, name in enumerate(types)
    ]
    return [*layers, {"Name": "last", "Outputs": [{"Name": "logits", "Format/Datatype": "Row major linear FP32"}]}]


def test_manifest_entry_tells_what_the_inspector_read(
    monkeypatch: pytest.MonkeyPatch, log: list[Call], gpu: FakeCuda
) -> None:
    document = json.dumps({"Layers": layers_of("Half", "Channel major FP16 format where channel % 8 == 0", "Float")})
    inspector = Spec(trt.EngineInspector, log, get_engine_information=document)
    context = Spec(trt.IExecutionContext, log)
    engine = Spec(trt.ICudaEngine, log, create_engine_inspector=inspector, create_execution_context=context)
    put_in_place_of_the_runtime(trt, tensorrt, monkeypatch, engine, log)
    options = EngineOptions(precision="fp16", max_batch_size=MAX_BATCH_SIZE, opt_batch_size=8)
    entry = spec_of(b"a plan", "0" * 64, options)
    assert entry == dataclasses.replace(SPEC, driver=entry.driver, precision="fp16", layer_types={"fp16": 2, "fp32": 1})
    assert calls_of(log, "get_engine_information") == [(trt.LayerInformationFormat.JSON,)]
    assert inspected_types(b"a plan", options) == {"fp16": 2, "fp32": 1}
    assert calls_of(log, "set_input_shape")[0] == ("images", (8, 1, 28, 28))
    assert calls_of(log, "execution_context")[0] == (context,)


@pytest.mark.parametrize(
    ("precision", "types"),
    [
        ("fp32", ("Half",)),
        ("fp32", ("Row major linear FP32", "Int8")),
        ("tf32", ("BFloat16",)),
        ("fp16", ("Row major linear FP32",)),
        ("fp16", ("Half", "BFloat16")),
        ("bf16", ("Half",)),
        ("int8", ("Float", "Row major linear FP32")),
        ("int8", ("Int8", "Half")),
        ("int8", ("FP8", "Int8")),
    ],
)
def test_engine_of_another_precision_is_refused(precision: str, types: tuple[str, ...]) -> None:
    with pytest.raises(BadDataError, match=f"WRONG_PRECISION: .*{precision} was asked for"):
        check_types(layers_of(*types), precision)


@pytest.mark.parametrize(
    ("precision", "types"),
    [
        ("fp32", ("Row major linear FP32", "Float")),
        ("tf32", ("Float",)),
        ("fp16", ("Half", "Float")),
        ("bf16", ("BFloat16", "BF16")),
        ("int8", ("Int8", "Thirty-two wide channel vectorized row major Int8 format", "Float")),
    ],
)
def test_engine_of_the_precision_asked_for_passes(precision: str, types: tuple[str, ...]) -> None:
    assert sum(check_types(layers_of(*types), precision).values()) == len(types)


def test_network_that_became_one_layer_tells_no_types() -> None:
    assert check_types(layers_of(), "fp16") == {}


def test_what_scales_the_images_may_be_float32() -> None:
    outputs = [{"Name": "scaled", "Format/Datatype": "Row major linear FP32"}]
    first = {"Name": "cast", "Inputs": [{"Name": "images"}], "Outputs": outputs}
    assert check_types([first, *layers_of()], "fp16") == {}
    assert check_types([first, *layers_of("Half")], "fp16") == {"fp16": 1}
    with pytest.raises(BadDataError, match="WRONG_PRECISION"):
        check_types([first, *layers_of("Float")], "fp16")


def test_indices_shapes_and_images_are_no_matter_of_precision() -> None:
    others = layers_of("Row major linear UINT8 format", "Int64", "Bool", "N/A due to dynamic shapes", "Half")
    shape = {"Name": "a shape", "Dimensions": [2], "Format/Datatype": "Row major linear INT8 format"}
    assert check_types([*others, {"Name": "reshape", "Outputs": [shape]}], "fp16") == {"fp16": 1}


# --- Running ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, log: list[Call], gpu: FakeCuda) -> Engine:
    return Engine(trt, tensorrt, monkeypatch, log, gpu)


def open_it(spec: EngineSpec = SPEC, max_batch_size: int = MAX_BATCH_SIZE) -> TensorRTBackend:
    return TensorRTBackend(b"a plan", spec, onnx_sha256="0" * 64, max_batch_size=max_batch_size)


@pytest.fixture
def backend(engine: Engine, gpu: FakeCuda) -> Iterator[TensorRTBackend]:
    backend = open_it()
    yield backend
    backend.close()
    assert gpu.is_clean()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 8, 11, 12])
def test_logits_are_the_models_for_every_batch_size(batch_size: int, backend: TensorRTBackend, engine: Engine) -> None:
    for seed in range(2):
        images = noise_images(batch_size, seed=seed)
        logits = backend.infer(images)
        assert logits.shape == (batch_size, 10)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, engine.model.infer(images), rtol=1e-5, atol=1e-5)


def test_warm_up_captures_one_graph_per_bucket_and_serving_captures_no_more(
    backend: TensorRTBackend, engine: Engine, gpu: FakeCuda, log: list[Call]
) -> None:
    backend.warm_up()
    assert engine.num_contexts == len(gpu.executables) == 5  # 1, 2, 4, 8, 12
    assert [args[1][0] for args in calls_of(log, "set_input_shape")] == [1, 2, 4, 8, 12]
    enqueued, launched = len(calls_of(log, "execute_async_v3")), gpu.launches
    for batch_size in range(1, MAX_BATCH_SIZE + 1):
        backend.infer(noise_images(batch_size))
    assert gpu.launches == launched + MAX_BATCH_SIZE
    assert len(calls_of(log, "execute_async_v3")) == enqueued == 10  # once to run and once to capture
    assert engine.num_contexts == 5


def test_an_answer_stays_when_the_next_one_comes(backend: TensorRTBackend) -> None:
    first = backend.infer(noise_images(2, seed=1))
    kept = first.copy()
    backend.infer(noise_images(2, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_images_may_be_read_only_or_a_part_of_a_larger_array(backend: TensorRTBackend) -> None:
    images = noise_images(8)
    received = np.frombuffer(images.tobytes(), np.uint8).reshape(images.shape)
    np.testing.assert_array_equal(backend.infer(received[::2]), backend.infer(images[::2].copy()))


@pytest.mark.parametrize(
    "images", [noise_images(2).astype(np.float32), noise_images(2)[:, :, :27], noise_images(13), noise_images(2)[:0]]
)
def test_images_of_another_dtype_or_size_are_an_error(images: Any, backend: TensorRTBackend) -> None:
    with pytest.raises(ValueError, match="images are"):
        backend.infer(images)


@pytest.mark.fault("E9", "E10", "E11")
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"version": "9.3.0.1"}, r"built for TensorRT 9\.3\.0\.1, here is"),
        (
            {"gpu": "NVIDIA L4", "compute_capabilities": ("8.9",)},
            r"built for NVIDIA L4 \(compute capability 8\.9\), here is",
        ),
        ({"onnx_sha256": "1" * 64}, r"built for model 111111111111…, here is 000000000000…"),
        ({"version_compatible": True, "version": "99.0.0.1"}, "built for TensorRT 99"),
        ({"hardware_compatible": "same_compute_capability", "compute_capabilities": ("8.0",)}, "capability 8"),
    ],
)
def test_stale_engine_is_named_before_tensorrt_sees_it(
    changed: dict[str, Any], told: str, engine: Engine, log: list[Call]
) -> None:
    with pytest.raises(BadDataError, match=f"ENGINE_STALE: .*{told}.*make export on this machine"):
        open_it(dataclasses.replace(SPEC, **changed))
    assert not calls_of(log, "deserialize_cuda_engine")


def test_compatible_engine_runs_elsewhere(engine: Engine, gpu: FakeCuda) -> None:
    major = trt.__version__.partition(".")[0]
    elsewhere = dataclasses.replace(
        SPEC, gpu="NVIDIA A100", compute_capabilities=("8.0",), hardware_compatible="ampere_plus"
    )
    earlier = dataclasses.replace(elsewhere, version=f"{major}.0.0.1", version_compatible=True)
    for spec in (elsewhere, earlier):
        backend = open_it(spec)
        assert backend.infer(noise_images(3)).shape == (3, 10)
        backend.close()
    assert gpu.is_clean()


@pytest.mark.fault("E12")
def test_engine_that_tensorrt_refuses_is_bad_data(
    monkeypatch: pytest.MonkeyPatch, log: list[Call], gpu: FakeCuda
) -> None:
    put_in_place_of_the_runtime(trt, tensorrt, monkeypatch, None, log)
    with pytest.raises(BadDataError, match=r"BAD_ENGINE: TensorRT .* cannot load the engine"):
        open_it()


def test_engine_with_other_tensors_is_bad_data(engine: Engine) -> None:
    engine.spec.answers["get_tensor_dtype"] = lambda name: trt.DataType.FLOAT
    with pytest.raises(BadDataError, match=r"BAD_ENGINE: the engine has .* the contract says"):
        open_it()


@pytest.mark.parametrize("method", ["execute_async_v3", "set_input_shape", "set_tensor_address"])
def test_refusal_by_tensorrt_is_an_error_and_no_wrong_answer(
    method: str, engine: Engine, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_it()
    make_context = engine.make_context

    def refusing(strategy: Any) -> Spec:
        context = make_context(strategy)
        context.answers[method] = False
        return context

    engine.spec.answers["create_execution_context"] = refusing
    with pytest.raises(cuda.CudaError, match="TensorRT did not"):
        backend.infer(noise_images(1))


def test_events_time_the_backends_own_stream(backend: TensorRTBackend) -> None:
    backend.warm_up()
    clock = clock_of(backend)
    assert clock is not None
    row = row_of(backend, 3, 2, 0.0, clock)
    clock.close()
    assert row["clock"] == "CUDA events"
    assert row["latency_us"] == [1000.0, 1000.0]  # one launch between two events
    assert row["images_per_s"] == [3000.0, 3000.0]
    assert all(0 < wall_us < 1e6 for wall_us in row["wall_us"])


def test_device_memory_is_what_the_backend_took(engine: Engine, gpu: FakeCuda) -> None:
    before = device_bytes("cuda")
    backend = open_it()
    taken = device_bytes("cuda:0")
    backend.close()
    assert before is not None and taken is not None
    assert taken - before >= 2 * MAX_BATCH_SIZE * (784 + 40) + engine.scratch_bytes
    assert device_bytes("cuda") == before


def test_the_floor_is_one_launch_of_two_copies(gpu: FakeCuda) -> None:
    floor = Floor("cuda", 8)
    for _ in range(2):
        assert floor.infer(noise_images(5)).shape == (5, 10)
    assert (gpu.launches, [len(work) for work in gpu.executables.values()]) == (2, [2])
    floor.close()
    assert gpu.is_clean()


def test_gpu_that_is_not_there_is_an_error(log: list[Call]) -> None:
    """On the real CUDA bindings, where there is no GPU; TensorRT's runtime would crash the process."""
    with pytest.raises(ResourceUnavailableError, match=r"NO_GPU: asked for tensorrt on cuda: cudaError"):
        open_it()
    with pytest.raises(ResourceUnavailableError, match=r"NO_GPU: asked for a TensorRT engine: cudaError"):
        engine_from_onnx(ONNX, EngineOptions(precision="fp32", max_batch_size=4))


def test_the_specs_refuse_what_tensorrt_does_not_have(log: list[Call]) -> None:
    """The checks above are worth something only if these fail."""
    context = Spec(trt.IExecutionContext, log)
    with pytest.raises(AttributeError, match="has no 'execute_async_v2'"):
        context.execute_async_v2(1)
    for wrong in ((), ("images",), ("images", (1,), 2), (3, (1,)), ("images", "shape")):
        with pytest.raises(AssertionError, match=r"no overload of IExecutionContext\.set_input_shape"):
            context.set_input_shape(*wrong)
    with pytest.raises(AssertionError, match="no overload"):
        context.set_input_shape("images", shapes=(1,))
    with pytest.raises(AssertionError, match="no overload"):
        Spec(trt.IBuilderConfig, log).set_flag(trt.DataType.HALF)
    with pytest.raises(AttributeError):
        Spec(trt.IBuilderConfig, log).no_such_setting = 1
    assert hasattr(trt.BuilderFlag, "FP16") == trt.__version__.startswith("10.")


def test_polygraphy_is_the_real_one() -> None:
    _, polygraphy = tensorrt_engine._libraries()
    assert polygraphy.CreateConfig.__module__ == "polygraphy.backend.trt.config"
    assert onnx.load_from_string(ONNX).graph.input[0].name == "images"
