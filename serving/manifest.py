"""Reads and writes the manifest of an exported version: what the files are, and what was proven about them.

`artifacts/models/lenet5/<version>/manifest.json` is written last, so a version that has one is whole. A file is used
only through `read_verified`: the bytes that were hashed are the bytes that are loaded (no file format in this pipeline
notices a flipped bit by itself).
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atelier.contract import IMAGE_SHAPE, NUM_CLASSES, Images, TensorSpec
from atelier.errors import BadDataError, MissingInputError

MANIFEST_NAME = "manifest.json"
FORMAT = 2

# File name of each kind of artifact, and so of what a backend loads.
PROGRAM_NAME = "model.pt2"  # torch.export program
ONNX_NAME = "model.onnx"
LITERT_NAME = "model.tflite"
ENGINE_NAME = "model.plan"  # TensorRT engine, for one GPU
RTX_ENGINE_NAME = "model.rtx.engine"  # TensorRT for RTX engine, for every GPU of its compute capabilities
RTX_TURING_ENGINE_NAME = "model.rtx75.engine"  # the same for compute capability 7.5, which has fewer types
LAYERS_NAME = "layers.json"  # names its values and weights, for the page that looks inside

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"  # the flavours of engines, and so the names of their backends


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """Records what an engine was built from, by and for: it runs nowhere else unless it was built to be compatible."""

    flavour: str  # TENSORRT or TENSORRT_RTX
    file: str  # its name beside the manifest
    version: str  # of the library: "11.4.0.106"
    compute_capabilities: tuple[str, ...]  # of the GPUs: ("8.0", "8.6")
    precision: str
    onnx_sha256: str  # of the `model.onnx` it was built from
    min_batch_size: int
    opt_batch_size: int  # the kernels were timed at this one
    max_batch_size: int
    layer_types: dict[str, int]  # type -> tensors between layers: of the built engine, of RTX's parsed network
    # Of TensorRT proper, whose engines are for one GPU:
    gpu: str = ""  # "NVIDIA H200"
    driver: str = ""  # "580.82.07"; reported, not compared: engines run on any driver that their TensorRT does
    version_compatible: bool = False  # runs on later TensorRT of the same major version, and on the lean runtime
    hardware_compatible: str = "none"  # or "same_compute_capability", "ampere_plus"

    @property
    def target(self) -> str:
        """The GPUs that it was built for, in words."""
        capabilities = f"compute capability {', '.join(self.compute_capabilities)}"
        return f"{self.gpu} ({capabilities})" if self.gpu else capabilities


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Images with the model's logits in float64, which every server runs before it serves."""

    names: tuple[str, ...]  # "test image 4711"
    images: str  # uint8 (N, 1, 28, 28), in base64
    logits: tuple[tuple[float, ...], ...]  # (N, 10)

    @classmethod
    def of(cls, names: Sequence[str], images: Images, logits: NDArray[np.float64]) -> "Probes":
        """Packs them for the manifest."""
        rows = tuple(tuple(row) for row in logits.tolist())
        return cls(names=tuple(names), images=base64.b64encode(images.tobytes()).decode(), logits=rows)

    def arrays(self) -> tuple[Images, NDArray[np.float64]]:
        """Returns the images and the logits. Raises ValueError if they are not as many as the names."""
        images = np.frombuffer(base64.b64decode(self.images, validate=True), np.uint8)
        logits = np.array(self.logits, np.float64)
        if not self.names or logits.shape != (len(self.names), NUM_CLASSES) or not np.isfinite(logits).all():
            raise ValueError(f"{len(self.names)} probes with logits of shape {logits.shape}")
        return images.reshape(len(self.names), *IMAGE_SHAPE), logits


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
    probes: Probes
    versions: dict[str, str]  # package -> version that made it
    created: str  # ISO 8601, UTC
    engines: tuple[EngineSpec, ...] = ()  # the most specific first

    def engine_of(self, flavour: str) -> EngineSpec | None:
        """Returns the first engine of that flavour, if there is one."""
        return next((engine for engine in self.engines if engine.flavour == flavour), None)


def save_manifest(manifest: Manifest, version_dir: Path) -> None:
    """Writes `manifest.json` into a directory that nobody reads yet; publishing it whole is the exporter's work."""
    document = {"format": FORMAT, **vars(manifest)}
    (version_dir / MANIFEST_NAME).write_text(json.dumps(document, indent=2, default=vars) + "\n")


def load_manifest(version_dir: Path) -> Manifest:
    """Reads the manifest of a version that may be served: its parity was proven.

    Raises BadDataError PARITY_FAILED if it was not, and as `read_manifest`.
    """
    manifest = read_manifest(version_dir)
    if not manifest.parity_passed:
        what = f"{version_dir / MANIFEST_NAME} does not say that its parity was proven"
        raise BadDataError("PARITY_FAILED", what, "make export writes a new version")
    return manifest


def read_manifest(version_dir: Path) -> Manifest:
    """Reads the manifest, whatever it says of parity: to measure with, never to serve.

    Raises MissingInputError if there is none, BadDataError if it is malformed or of another format.
    """
    path = version_dir / MANIFEST_NAME
    again = "make export writes a new version"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingInputError("NO_MANIFEST", f"{path} does not exist", again) from None
    except ValueError as error:
        raise BadDataError("BAD_MANIFEST", f"{path} is not JSON: {error}", again) from None
    found = document.get("format") if isinstance(document, dict) else None
    if found in range(1, FORMAT):
        what = f"{path} has format {found}, in which a version has no probes; this program reads format {FORMAT}"
        raise BadDataError("OLD_MANIFEST", what, again)
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
    fields["engines"] = tuple(_engine_from(entry) for entry in fields["engines"])
    fields["probes"] = _probes_from(fields["probes"])
    return Manifest(**fields)


def _probes_from(entry: dict[str, Any]) -> Probes:
    logits = tuple(tuple(row) for row in entry["logits"])
    probes = Probes(names=tuple(entry["names"]), images=entry["images"], logits=logits)
    probes.arrays()  # ValueError if they cannot be
    return probes


def _engine_from(entry: dict[str, Any]) -> EngineSpec:
    return EngineSpec(**{**entry, "compute_capabilities": tuple(entry["compute_capabilities"])})


def read_verified(version_dir: Path, manifest: Manifest, name: str) -> bytes:
    """Reads one of the version's files, and returns its bytes if their digest is the manifest's.

    Raises MissingInputError if the file is not there or not part of the version, BadDataError if it differs.
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
    """Lists the published versions under `artifacts/models/<name>`, ascending; the server takes the last."""
    if not model_dir.is_dir():
        return []
    return sorted(int(path.name) for path in model_dir.iterdir() if path.name.isdecimal() and path.is_dir())
