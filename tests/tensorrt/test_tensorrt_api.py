"""Our TensorRT code is held to the real API of two releases, without a GPU and without TensorRT."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tensorrt.bindings import (
    VERSIONS,
    NotToBeHadError,
    bindings_of,
    environment_for,
    lean_runtime,
    not_to_be_had,
    rtx_bindings,
)

CHECKS = Path(__file__).parent / "api_checks.py"


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_our_code_makes_only_calls_that_exist_in(version: str) -> None:
    try:
        directory = bindings_of(version)
    except NotToBeHadError as error:
        not_to_be_had(error)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)]
    done = subprocess.run(command, env=environment_for(directory), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_real_lean_runtime_is_not_started_where_there_is_no_gpu() -> None:
    """Its constructor only logs that there is no driver, and the first call after that ends the process."""
    try:
        directory = lean_runtime()
    except NotToBeHadError as error:
        not_to_be_had(error)
    program = """
from serving.backends.tensorrt_backend import TensorRTBackend
from serving.backends.tensorrt_fit import library_for
from atelier.errors import ResourceUnavailableError
from serving.manifest import EngineSpec
spec = EngineSpec(flavour="tensorrt", file="model.plan", version="11.4.0.106", compute_capabilities=("9.0",),
    precision="fp32", onnx_sha256="", min_batch_size=1, opt_batch_size=1, max_batch_size=1, layer_types={},
    version_compatible=True)
print(library_for(spec, "cuda").__version__)
try:
    TensorRTBackend(b"", spec, onnx_sha256="", max_batch_size=1)
except ResourceUnavailableError as error:
    print(error)
"""
    libraries = directory / "tensorrt_lean_libs"
    environment = environment_for(directory) | {"LD_LIBRARY_PATH": str(libraries), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, refusal = done.stdout.splitlines()
    assert version == "11.4.0.106"
    assert refusal.startswith("NO_GPU: asked for tensorrt on cuda: cudaError")


@pytest.mark.slow
def test_both_flavours_work_in_one_process() -> None:
    """As in an export on a host with a GPU; their classes have the same names in C++, which bindings may not like."""
    rtx_bindings()
    try:
        directory = lean_runtime()
    except NotToBeHadError as error:
        not_to_be_had(error)
    program = """
import tensorrt_lean_bindings
from export.engine_options import EngineOptions
from export.rtx_engine import rtx_engines_from_onnx
from serving.manifest import ONNX_NAME
from tests.export.small_model import exported_files
files, specs = rtx_engines_from_onnx(exported_files()[ONNX_NAME], "", EngineOptions(precision="fp32", max_batch_size=8))
print([*files], specs[0].version.partition(".")[0], tensorrt_lean_bindings.Dims((1, 2)))
"""
    environment = environment_for(directory) | {"LD_LIBRARY_PATH": str(directory / "tensorrt_lean_libs")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.strip().endswith("['model.rtx.engine'] 1 (1, 2)"), done
