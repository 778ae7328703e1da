"""NVIDIA's own TensorRT bindings, importable on a machine that has neither a GPU nor TensorRT.

The bindings come from PyPI. The libraries that they are linked against do not, and their C++ classes are never made
here: nine symbols in three stand-in libraries are enough to import them. What one gets is the real classes, enums and
signatures of that release, which `specs.py` makes objects of.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from atelier.errors import ResourceUnavailableError
from export.rtx_engine import rtx_library

VERSIONS = ("10.16.1.11", "11.4.0.106")
LEAN_VERSION = "11.4.0.106"
CACHE = Path(__file__).parents[2] / ".cache" / "tensorrt"

_SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)
_LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")


# The gate sets this: there, that the bindings are not to be had is a failure.
REQUIRED = "ATELIER_REQUIRE_TENSORRT_BINDINGS"


class NotToBeHadError(Exception):
    """Why the bindings cannot be had here."""


def bindings_of(version: str) -> Path:
    """A directory with the modules `tensorrt_bindings` and `tensorrt` of that version, made at the first call."""
    directory = CACHE / version
    if not directory.exists():
        building = CACHE / f".{version}.{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)
        pip_install(building, f"tensorrt-cu13-bindings=={version}")
        _build_stand_ins(building, version.partition(".")[0])
        (building / "tensorrt.py").write_text(
            "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
        )
        _put(building, directory)
    return directory


def lean_runtime() -> Path:
    """A directory with the whole lean runtime, which is all on PyPI: real libraries, and no stand-ins."""
    directory = CACHE / f"lean-{LEAN_VERSION}"
    if not directory.exists():
        building = CACHE / f".lean.{os.getpid()}"
        packages = [f"tensorrt-lean-cu13-{part}=={LEAN_VERSION}" for part in ("bindings", "libs")]
        pip_install(building, *packages)
        _put(building, directory)
    return directory


def not_to_be_had(error: Exception) -> NoReturn:
    """Fails the test in the gate, and elsewhere skips it."""
    if os.environ.get(REQUIRED):
        pytest.fail(str(error))
    pytest.skip(f"TensorRT's API is NOT CHECKED: {error}")


def rtx_bindings() -> Any:
    """TensorRT for RTX itself, bindings and libraries, which `make setup` installs."""
    try:
        return rtx_library()
    except ResourceUnavailableError as error:
        not_to_be_had(error)


def environment_for(directory: Path) -> dict[str, str]:
    """For a process that is to import from that directory; it sees no GPU, where there is one."""
    path = os.pathsep.join([str(directory), str(Path(__file__).parents[2])])
    return {**os.environ, "PYTHONPATH": path, "LD_LIBRARY_PATH": str(directory), "CUDA_VISIBLE_DEVICES": ""}


def pip_install(directory: Path, *requirements: str) -> None:
    """Raises NotToBeHadError with pip's last words."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps"]
    command += ["--no-compile", "--only-binary=:all:", "--target", str(directory), *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotToBeHadError(f"pip cannot install {' '.join(requirements)}: {done.stderr.strip()[-300:]}")


def _build_stand_ins(directory: Path, major: str) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise NotToBeHadError(
            "there is no C compiler for the stand-in libraries (Debian and Ubuntu: apt-get install gcc)"
        )
    source = directory / "stand_in.c"
    source.write_text("\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in _SYMBOLS))
    for library in _LIBRARIES:
        target = directory / f"{library}.so.{major}"
        command = [
            compiler,
            "-shared",
            "-fPIC",
            "-nostdlib",
            f"-Wl,-soname,{target.name}",
            "-o",
            str(target),
            str(source),
        ]
        subprocess.run(command, check=True)


def _put(building: Path, directory: Path) -> None:
    """Of two test runs that make it at once, the second one's is thrown away."""
    try:
        building.rename(directory)
    except OSError:
        shutil.rmtree(building)
