"""The backends on real models, and the choice between them."""

import dataclasses
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper

from atelier.errors import BadDataError, MissingInputError, ProgramError, ResourceUnavailableError, UsageError
from export.repository import publish
from serving.backends.base import Backend
from serving.backends.onnxruntime_backend import BoundRuns, OnnxRuntimeBackend
from serving.backends.select import open_backend
from serving.backends.torch_backend import TorchBackend
from serving.manifest import (
    ENGINE_NAME,
    ONNX_NAME,
    PROGRAM_NAME,
    RTX_ENGINE_NAME,
    EngineSpec,
    Manifest,
    load_manifest,
    save_manifest,
)
from tests.export.small_model import MAX_BATCH_SIZE, exported_files, manifest_for, noise_images, truth
from tests.serving.fake_onnxruntime_gpu import onnxruntime_on_a_fake_gpu
from tests.tensorrt.fake_cuda import FakeCuda

PROGRAM, ONNX = exported_files()[PROGRAM_NAME], exported_files()[ONNX_NAME]
HAS_CUDA = torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="needs an NVIDIA GPU, and the extras `gpu`")
needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a GPU")


def backends(device: str = "cpu") -> list[Backend]:
    return [
        TorchBackend(PROGRAM, device=device, max_batch_size=MAX_BATCH_SIZE),
        OnnxRuntimeBackend(ONNX, device=device, max_batch_size=MAX_BATCH_SIZE),
    ]


@pytest.fixture(scope="module")
def of_each_kind() -> dict[str, Backend]:
    return {backend.name: backend for backend in backends()}


@pytest.fixture(params=["torch", "onnxruntime"])
def backend(of_each_kind: dict[str, Backend], request: pytest.FixtureRequest) -> Backend:
    return of_each_kind[request.param]


class TestEveryBackend:
    @pytest.mark.parametrize("batch_size", [1, 2, 7, MAX_BATCH_SIZE])
    def test_logits_are_the_models(self, backend: Backend, batch_size: int) -> None:
        images = noise_images(batch_size, seed=batch_size)
        logits = backend.infer(images)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, truth()(images), rtol=1e-5, atol=1e-5)

    def test_images_of_a_request_may_be_read_only(self, backend: Backend) -> None:
        received = np.frombuffer(noise_images(3).tobytes(), np.uint8).reshape(3, 1, 28, 28)
        np.testing.assert_array_equal(backend.infer(received), backend.infer(noise_images(3)))

    def test_images_may_be_a_part_of_a_larger_array(self, backend: Backend) -> None:
        every_second = noise_images(8)[::2]
        np.testing.assert_array_equal(backend.infer(every_second), backend.infer(every_second.copy()))

    def test_images_are_not_changed(self, backend: Backend) -> None:
        images = noise_images(3)
        backend.infer(images)
        np.testing.assert_array_equal(images, noise_images(3))

    def test_an_answer_stays_when_the_next_one_comes(self, backend: Backend) -> None:
        first = backend.infer(noise_images(2, seed=1))
        kept = first.copy()
        backend.infer(noise_images(2, seed=2))
        np.testing.assert_array_equal(first, kept)

    @pytest.mark.parametrize("images", [noise_images(2).astype(np.float32), noise_images(2)[:, :, :27]])
    def test_images_of_another_dtype_or_size_are_an_error(self, backend: Backend, images: np.ndarray) -> None:
        with pytest.raises(Exception, match=r"."):
            backend.infer(images)

    def test_warm_up_runs(self, backend: Backend) -> None:
        backend.warm_up()

    def test_device_is_told(self, backend: Backend) -> None:
        assert backend.device == "cpu"


@needs_cuda
@pytest.mark.gpu
def test_cuda_gives_the_models_logits() -> None:
    for backend in backends("cuda"):
        assert backend.device == "cuda:0"
        np.testing.assert_allclose(backend.infer(noise_images(7)), truth()(noise_images(7)), rtol=1e-5, atol=1e-5)


# --- What is asked for is done or refused -----------------------------------------------------------------------------


@needs_no_cuda
@pytest.mark.parametrize("backend", [TorchBackend, OnnxRuntimeBackend])
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_that_is_not_there_is_an_error(backend: type[TorchBackend | OnnxRuntimeBackend], device: str) -> None:
    model = PROGRAM if backend is TorchBackend else ONNX
    with pytest.raises(ResourceUnavailableError, match=rf"NO_GPU: asked for {backend.name} on cuda.*use --device cpu"):
        backend(model, device=device, max_batch_size=1)


@pytest.mark.parametrize("backend", [TorchBackend, OnnxRuntimeBackend])
@pytest.mark.parametrize("device", ["gpu", "cuda:x", "rocm", "meta", "mps", ""])
def test_an_unknown_device_is_an_error(backend: type[TorchBackend | OnnxRuntimeBackend], device: str) -> None:
    model = PROGRAM if backend is TorchBackend else ONNX
    with pytest.raises(UsageError, match=r"BAD_DEVICE: .*use cpu, cuda or cuda:<index>"):
        backend(model, device=device, max_batch_size=1)


def test_serving_onnx_never_imports_torch(small_repository: Path) -> None:
    program = """
import sys; from pathlib import Path
from serving.backends.select import open_backend; from serving.manifest import load_manifest
version_dir = Path(sys.argv[1])
manifest = load_manifest(version_dir)
open_backend("onnxruntime", "cpu", version_dir, manifest, max_batch_size=2, num_threads=1)[0].warm_up()
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(small_repository / "lenet5" / "1")]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    assert done.stdout.strip() == b"False"


class ListeningSession:
    """ONNX Runtime's session, and under which graph's number each run was asked for."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.graphs: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, run_options: Any) -> None:
        self.graphs.append(run_options.get_run_config_entry("gpu_graph_id"))
        self._session.run_with_iobinding(binding, run_options)


class TestRunsOnBoundTensors:
    """What CUDA gets, on ONNX Runtime's own tensors in host memory: all but the graphs themselves."""

    @pytest.fixture
    def runs(self) -> BoundRuns:
        session = onnxruntime.InferenceSession(ONNX, providers=["CPUExecutionProvider"])
        return BoundRuns(session, kind="cpu", index=0, max_batch_size=12)

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 8, 11, 12])
    def test_logits_are_the_models_for_every_batch_size(self, batch_size: int, runs: BoundRuns) -> None:
        for seed in range(2):
            images = noise_images(batch_size, seed=seed)
            np.testing.assert_allclose(runs.infer(images), truth()(images), rtol=1e-5, atol=1e-5)

    def test_an_answer_stays_when_the_next_one_comes(self, runs: BoundRuns) -> None:
        first = runs.infer(noise_images(2, seed=1))
        kept = first.copy()
        runs.infer(noise_images(2, seed=2))
        np.testing.assert_array_equal(first, kept)

    @pytest.mark.parametrize(
        "images", [noise_images(2).astype(np.float32), noise_images(2)[:, :, :27], noise_images(13)]
    )
    def test_images_of_another_dtype_or_size_are_an_error(self, images: np.ndarray, runs: BoundRuns) -> None:
        with pytest.raises(ValueError, match="images are"):
            runs.infer(images)

    def test_each_bucket_has_a_graph_of_its_own(self) -> None:
        session: Any = ListeningSession(onnxruntime.InferenceSession(ONNX, providers=["CPUExecutionProvider"]))
        runs = BoundRuns(session, kind="cpu", index=0, max_batch_size=12)
        used: dict[int, set[str]] = {bucket: set() for bucket in (1, 2, 4, 8, 12)}
        for batch_size, bucket in (
            (1, 1),
            (2, 2),
            (3, 4),
            (4, 4),
            (5, 8),
            (12, 12),
            (11, 12),
            (10, 12),
            (2, 2),
            (1, 1),
        ):
            runs.infer(noise_images(batch_size))
            used[bucket].add(session.graphs[-1])
        assert [len(graphs) for graphs in used.values()] == [1] * 5
        assert len(set.union(*used.values())) == 5


# --- Models that are not ours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [b"", b"not a model", ONNX[:1000], PROGRAM])
def test_what_is_no_onnx_model_is_refused(model: bytes) -> None:
    with pytest.raises(BadDataError, match=r"BAD_MODEL: .*make export"):
        OnnxRuntimeBackend(model, max_batch_size=1)


@pytest.mark.parametrize("program", [b"", b"not a program", PROGRAM[:1000], ONNX])
def test_what_is_no_program_is_refused(program: bytes) -> None:
    with pytest.raises(BadDataError, match=r"BAD_PROGRAM: .*make export"):
        TorchBackend(program, max_batch_size=1)


def renamed_input(model: ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"


def renamed_output(model: ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "probabilities"


def float_images(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def fixed_batch(model: ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4


def second_output(model: ModelProto) -> None:
    model.graph.output.append(onnx.helper.make_tensor_value_info("sigmoid", TensorProto.FLOAT, ["batch", 6, 28, 28]))


@pytest.mark.fault("E18")
@pytest.mark.parametrize("change", [renamed_input, renamed_output, float_images, fixed_batch, second_output])
def test_another_contract_of_tensors_is_refused(change: Callable[[ModelProto], None]) -> None:
    model = onnx.load_from_string(ONNX)
    change(model)
    with pytest.raises(BadDataError, match="BAD_MODEL: the model has"):
        OnnxRuntimeBackend(model.SerializeToString(), max_batch_size=1)


@pytest.mark.fault("E6")
@pytest.mark.parametrize("directory", ["", "../", "absolute"])
def test_weights_in_another_file_are_not_read(directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    model = onnx.load_from_string(ONNX)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "layers.linear1.weight")
    location = f"{tmp_path}/weights" if directory == "absolute" else f"{directory}weights"
    Path(location).write_bytes(numpy_helper.to_array(tensor).tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    with pytest.raises(BadDataError, match=r"BAD_MODEL: .*[Ee]xternal data"):
        OnnxRuntimeBackend(model.SerializeToString(), max_batch_size=1)


# --- The choice -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in exported_files().items()}
    version_dir = publish(tmp_path_factory.mktemp("models") / "lenet5", exported_files(), manifest_for(digests))
    return version_dir, load_manifest(version_dir)


Version = tuple[Path, Manifest]


def open_it(kind: str, device: str, version: Version, max_batch_size: int = 4) -> tuple[Backend, str]:
    return open_backend(kind, device, *version, max_batch_size=max_batch_size, num_threads=1)[:2]


@pytest.mark.parametrize("kind", ["torch", "onnxruntime"])
def test_the_backend_asked_for_is_opened(kind: str, version: Version) -> None:
    backend, why = open_it(kind, "cpu", version)
    assert (backend.name, backend.device, backend.max_batch_size) == (kind, "cpu", 4)
    assert why == "cpu was asked for"
    assert backend.infer(noise_images(1)).shape == (1, 10)


@needs_no_cuda
def test_auto_takes_onnxruntime_on_the_cpu_where_there_is_no_gpu_and_says_why(version: Version) -> None:
    backend, why = open_it("auto", "auto", version)
    assert (backend.name, backend.device) == ("onnxruntime", "cpu")
    assert "no TensorRT engine" in why
    assert "no CUDA here: " in why


@needs_cuda
@pytest.mark.gpu
def test_auto_takes_onnxruntime_on_cuda_where_there_is_a_gpu(version: Version) -> None:
    backend, why = open_it("auto", "auto", version)
    assert (backend.name, backend.device) == ("onnxruntime", "cuda:0")
    assert why.endswith("CUDA works here")


@pytest.mark.fault("O3")
@needs_no_cuda
@pytest.mark.parametrize("kind", ["auto", "torch", "onnxruntime"])
def test_cuda_asked_for_is_never_replaced_by_the_cpu(kind: str, version: Version) -> None:
    with pytest.raises(ResourceUnavailableError):
        open_it(kind, "cuda", version)


ENGINE = EngineSpec(
    flavour="tensorrt",
    file=ENGINE_NAME,
    version="11.4.0.106",
    precision="fp32",
    driver="580.82.07",
    gpu="NVIDIA H200",
    compute_capabilities=("9.0",),
    onnx_sha256="0" * 64,
    min_batch_size=1,
    opt_batch_size=4,
    max_batch_size=MAX_BATCH_SIZE,
    version_compatible=False,
    hardware_compatible="none",
    layer_types={"fp32": 9},
)


@pytest.fixture
def with_engine(version: Version, tmp_path: Path) -> Version:
    """The version with a `model.plan` and what a manifest says about one."""
    version_dir, manifest = version
    shutil.copytree(version_dir, tmp_path / "1")
    (tmp_path / "1" / ENGINE_NAME).write_bytes(b"a plan")
    digests = {**manifest.files, ENGINE_NAME: hashlib.sha256(b"a plan").hexdigest()}
    save_manifest(dataclasses.replace(manifest, files=digests, engines=(ENGINE,)), tmp_path / "1")
    return tmp_path / "1", load_manifest(tmp_path / "1")


def test_manifest_keeps_what_it_says_about_the_engine(with_engine: Version) -> None:
    assert with_engine[1].engines == (ENGINE,)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_tensorrt_asked_for_without_an_engine_is_refused(device: str, version: Version) -> None:
    with pytest.raises(
        MissingInputError, match=r"NO_ENGINE: version 1 has no TensorRT engine \(make export .*onnxruntime"
    ):
        open_it("tensorrt", device, version)


def test_tensorrt_asked_for_on_the_cpu_is_refused(with_engine: Version) -> None:
    with pytest.raises(UsageError, match="BAD_DEVICE: 'cpu' is no device of TensorRT's"):
        open_it("tensorrt", "cpu", with_engine)


@pytest.mark.fault("O3")
@needs_no_cuda
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_tensorrt_without_a_gpu_is_told_with_the_cure(device: str, with_engine: Version) -> None:
    with pytest.raises(
        ResourceUnavailableError, match=r"NO_GPU: asked for tensorrt on cuda.*: cudaError.*--device cpu"
    ):
        open_it("tensorrt", device, with_engine)


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda("NVIDIA H200", (9, 0))
    fake.put_in_place(monkeypatch)
    return fake


def fitting(with_engine: Version) -> tuple[Path, Manifest, EngineSpec]:
    version_dir, manifest = with_engine
    return version_dir, manifest, dataclasses.replace(ENGINE, onnx_sha256=manifest.files[ONNX_NAME])


@pytest.mark.fault("O4")
@needs_no_cuda
def test_tensorrt_that_is_not_installed_is_told_with_the_cure(with_engine: Version, h200: FakeCuda) -> None:
    version_dir, manifest, engine = fitting(with_engine)
    version = version_dir, dataclasses.replace(manifest, engines=(engine,))
    with pytest.raises(ResourceUnavailableError, match=r"TENSORRT_UNAVAILABLE: .*named 'tensorrt'.*--backend onnxr"):
        open_it("tensorrt", "cuda", version)
    assert open_it("auto", "auto", version)[1].startswith("no TensorRT here: No module named 'tensorrt'; no CUDA here")


@needs_no_cuda
def test_auto_says_why_an_engine_was_passed_over(with_engine: Version) -> None:
    backend, why = open_it("auto", "auto", with_engine)
    assert backend.name == "onnxruntime"
    assert why.startswith("no TensorRT here: cudaErrorInsufficientDriver: ")


RTX_ENGINE = dataclasses.replace(
    ENGINE,
    flavour="tensorrt-rtx",
    file=RTX_ENGINE_NAME,
    version="1.7.1.116",
    gpu="",
    driver="",
    compute_capabilities=("8.0", "8.6", "8.9", "12.0", "12.1"),
)


@pytest.mark.fault("E9", "E10")
@needs_no_cuda
def test_every_engine_that_does_not_fit_is_named(with_engine: Version, h200: FakeCuda) -> None:
    version_dir, manifest, engine = fitting(with_engine)
    other_gpu = dataclasses.replace(engine, gpu="NVIDIA L4", compute_capabilities=("8.9",))
    rtx = dataclasses.replace(RTX_ENGINE, onnx_sha256=engine.onnx_sha256)
    files = {**manifest.files, RTX_ENGINE_NAME: manifest.files[ENGINE_NAME]}
    (version_dir / RTX_ENGINE_NAME).write_bytes(b"a plan")
    manifest = dataclasses.replace(manifest, files=files, engines=(other_gpu, rtx))
    with pytest.raises(BadDataError) as failure:
        open_it("tensorrt", "cuda", (version_dir, manifest))
    told = str(failure.value)
    assert told.startswith("ENGINE_STALE: the engine model.plan was built for NVIDIA L4 (compute capability 8.9), here")
    assert "the engine model.rtx.engine was built for compute capability 8.0, 8.6, 8.9, 12.0, 12.1, here is" in told
    assert "NVIDIA H200 (compute capability 9.0)" in told and "--backend onnxruntime" in told
    assert open_it("auto", "auto", (version_dir, manifest))[0].name == "onnxruntime"


def test_auto_passes_over_a_stale_engine_and_names_it(
    with_engine: Version, h200: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="12.0.0.1"))
    version_dir, manifest, engine = fitting(with_engine)
    backend, why = open_it("auto", "auto", (version_dir, dataclasses.replace(manifest, engines=(engine,))))
    assert backend.name == "onnxruntime"
    assert "ENGINE_STALE: the engine model.plan was built for TensorRT 11.4.0.106, here is 12.0.0.1" in why


@pytest.mark.fault("E11")
def test_auto_does_not_pass_over_an_engine_that_was_changed(with_engine: Version) -> None:
    (with_engine[0] / ENGINE_NAME).write_bytes(b"another")
    with pytest.raises(BadDataError, match="HASH_MISMATCH"):
        open_it("auto", "auto", with_engine)


@pytest.mark.parametrize("kind", ["ONNXRuntime", "onnx", ""])
def test_an_unknown_backend_is_an_error(kind: str, version: Version) -> None:
    with pytest.raises(UsageError, match=r"BAD_BACKEND: .*use one of auto, torch, onnxruntime, tensorrt"):
        open_it(kind, "cpu", version)


@pytest.mark.parametrize("max_batch_size", [0, MAX_BATCH_SIZE + 1])
def test_batches_beyond_what_was_proven_are_refused(max_batch_size: int, version: Version) -> None:
    with pytest.raises(UsageError, match=f"BAD_BATCH_SIZE: max_batch_size {max_batch_size}; .*proven for 1 to 16"):
        open_it("onnxruntime", "cpu", version, max_batch_size)


@pytest.mark.parametrize(
    ("device", "proven", "expected"), [("cpu", 1024, 64), ("cuda", 1024, 256), ("cuda:0", 100, 100), ("cpu", 16, 16)]
)
def test_batches_are_as_large_as_the_device_is_worth_and_parity_was_proven_for(
    device: str, proven: int, expected: int, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device != "cpu":
        onnxruntime_on_a_fake_gpu(monkeypatch)
    manifest = dataclasses.replace(version[1], max_batch_size=proven)
    for kind in ("onnxruntime", "auto"):
        backend, *_ = open_backend(kind, device, version[0], manifest, max_batch_size=None, num_threads=1)
        assert (backend.device.partition(":")[0], backend.max_batch_size) == (device.partition(":")[0], expected)
    backend, *_ = open_backend("auto", device, version[0], manifest, max_batch_size=9, num_threads=1)
    assert backend.max_batch_size == 9


@pytest.mark.parametrize(("kind", "name"), [("torch", PROGRAM_NAME), ("onnxruntime", ONNX_NAME), ("auto", ONNX_NAME)])
def test_a_file_changed_after_export_is_refused(kind: str, name: str, tmp_path: Path, version: Version) -> None:
    version_dir, manifest = version
    (tmp_path / name).write_bytes((version_dir / name).read_bytes() + b"\0")
    with pytest.raises(BadDataError, match="HASH_MISMATCH"):
        open_it(kind, "cpu", (tmp_path, manifest))


def test_a_version_without_the_file_is_an_error(tmp_path: Path, version: Version) -> None:
    with pytest.raises(MissingInputError, match="NO_ARTIFACT"):
        open_it("onnxruntime", "cpu", (tmp_path, version[1]))


def test_every_refusal_ends_a_program_with_its_own_exit_code() -> None:
    codes = {error.exit_code for error in (BadDataError, MissingInputError, ResourceUnavailableError, UsageError)}
    assert codes == {65, 66, 69, 2}
    assert ProgramError.exit_code == 70
