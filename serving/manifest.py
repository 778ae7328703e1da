"""The manifest of an exported version: what the files are, and what was proven about them.

`artifacts/models/lenet5/<version>/manifest.json` is written last, so a version that has one is whole. A file is used
only through `read_verified`: the bytes that were hashed are the bytes that are loaded (no file format in this pipeline
notices a flipped bit by itself).
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atelier.contract import TensorSpec
from atelier.errors import BadDataError, MissingInputError

MANIFEST_NAME = "manifest.json"
FORMAT = 1

# File name of each kind of artifact, and so of what a backend loads.
PROGRAM_NAME = "model.pt2"  # torch.export program
ONNX_NAME = "model.onnx"
ENGINE_NAME = "model.plan"  # TensorRT engine
LITERT_NAME = "model.tflite"
FILE_OF_BACKEND = {
    "torch": PROGRAM_NAME,
    "onnxruntime": ONNX_NAME,
    "tensorrt": ENGINE_NAME,
    "litert": LITERT_NAME,
}


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What a TensorRT engine was built from, by and for: it runs nowhere else unless it was built to be compatible."""

    tensorrt: str  # "11.4.0.106"
    driver: str  # "580.82.07"; told, not compared: engines run on any driver that their TensorRT does
    gpu: str  # "NVIDIA H200"
    compute_capability: str  # "9.0"
    onnx_sha256: str  # of the `model.onnx` it was built from
    min_batch_size: int
    opt_batch_size: int  # the kernels were timed at this one
    max_batch_size: int
    version_compatible: bool  # runs on later TensorRT of the same major version, and on the lean runtime
    hardware_compatible: str  # "none", "same_compute_capability" or "ampere_plus"
    layer_types: dict[str, int]  # type -> tensors between layers, as the engine inspector reads them back


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One exported version. All digests are SHA-256, in hexadecimal."""

    model_name: str
    version: int
    architecture: str
    precision: str  # "fp32"
    classes: tuple[str, ...]  # the index is the label
    input: TensorSpec
    output: TensorSpec
    max_batch_size: int  # the largest batch that parity was proven for
    opset: int
    checkpoint_sha256: str
    parity_passed: bool
    files: dict[str, str]  # file name -> digest
    versions: dict[str, str]  # package -> version that made it
    created: str  # ISO 8601, UTC
    engine: EngineSpec | None = None  # where the version has a TensorRT engine


def save_manifest(manifest: Manifest, version_dir: Path) -> None:
    """Writes `manifest.json` into a directory that nobody reads yet; publishing it whole is the exporter's work."""
    document = {"format": FORMAT, **dataclasses.asdict(manifest)}
    (version_dir / MANIFEST_NAME).write_text(json.dumps(document, indent=2) + "\n")


def load_manifest(version_dir: Path) -> Manifest:
    """The manifest of a version that may be served: its parity was proven.

    Raises BadDataError PARITY_FAILED where it was not, and as `read_manifest`.
    """
    manifest = read_manifest(version_dir)
    if not manifest.parity_passed:
        what = f"{version_dir / MANIFEST_NAME} does not say that its parity was proven"
        raise BadDataError("PARITY_FAILED", what, "make export writes a new version")
    return manifest


def read_manifest(version_dir: Path) -> Manifest:
    """The manifest, whatever it says of parity: to measure with, never to serve.

    Raises MissingInputError where there is none, BadDataError where it is malformed or of another format.
    """
    path = version_dir / MANIFEST_NAME
    again = "make export writes a new version"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingInputError("NO_MANIFEST", f"{path} does not exist", again) from None
    except ValueError as error:
        raise BadDataError("BAD_MANIFEST", f"{path} is not JSON: {error}", again) from None
    try:
        return _manifest_from(document)
    except (KeyError, TypeError, ValueError) as error:
        raise BadDataError("BAD_MANIFEST", f"{path}: {error!r}", again) from None


def _manifest_from(document: dict[str, Any]) -> Manifest:
    fields = dict(document)
    found = fields.pop("format")
    if found != FORMAT:
        raise ValueError(f"format {found}, this program reads {FORMAT}")
    for name in ("input", "output"):
        spec = fields[name]
        fields[name] = TensorSpec(**{**spec, "shape": tuple(spec["shape"])})
    fields["classes"] = tuple(fields["classes"])
    if fields.get("engine"):
        fields["engine"] = EngineSpec(**fields["engine"])
    return Manifest(**fields)


def read_verified(version_dir: Path, manifest: Manifest, name: str) -> bytes:
    """The bytes of one of the version's files, once their digest is the manifest's.

    Raises MissingInputError where the file is not there or not part of the version, BadDataError where it differs.
    """
    path = version_dir / name
    expected = manifest.files.get(name)
    if expected is None:
        there = ", ".join(sorted(manifest.files))
        raise MissingInputError(
            "NO_ARTIFACT", f"version {manifest.version} has no {name}; it has {there}", "make export"
        )
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise MissingInputError("NO_ARTIFACT", f"{path} does not exist", "make export") from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        what = f"{path} has SHA-256 {found[:12]}…, its manifest says {expected[:12]}…"
        raise BadDataError("HASH_MISMATCH", what, "the file was changed after export: make export")
    return data


def find_version(repository: Path, model: str, version: int | None = None) -> tuple[Path, Manifest]:
    """Returns the directory and manifest of the version asked for, or of the newest.

    Raises MissingInputError NO_MODEL, listing those that exist, and what `load_manifest` raises.
    """
    versions = list_versions(repository / model)
    wanted = max(versions, default=None) if version is None else version
    if wanted is None or wanted not in versions:
        asked = f"no version of {model}" if version is None else f"no version {version} of {model}"
        what = f"{repository} has {asked} (found: {', '.join(map(str, versions)) or 'none'})"
        raise MissingInputError("NO_MODEL", what, "make export writes one")
    version_dir = repository / model / str(wanted)
    manifest = load_manifest(version_dir)
    if (manifest.model_name, manifest.version) != (model, wanted):
        what = f"{version_dir} holds version {manifest.version} of {manifest.model_name}, by its manifest"
        raise BadDataError("BAD_MANIFEST", what, "versions cannot be renamed or copied: make export writes a new one")
    return version_dir, manifest


def list_versions(model_dir: Path) -> list[int]:
    """The published versions under `artifacts/models/<name>`, ascending; the server takes the last."""
    if not model_dir.is_dir():
        return []
    return sorted(int(path.name) for path in model_dir.iterdir() if path.name.isdecimal() and path.is_dir())
