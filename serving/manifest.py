"""Reads and writes the manifest of an exported version: what the files are, and what was proven about them.

`artifacts/models/lenet5/<version>/manifest.json` is written last, so a version that has one is whole. A file is used
only through `read_verified`: the bytes that were hashed are the bytes that are loaded (no file format in this pipeline
notices a flipped bit by itself).
"""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atelier.contract import IMAGE_SHAPE, NUM_CLASSES, TOLERANCES, Images, TensorSpec
from atelier.errors import BadDataError, MissingInputError
from atelier.files import write_atomically
from atelier.sealed import is_sealed, parsed, record_from, sealed, unsealed
from atelier.trusted_files import read_trusted

MODEL_NAME = "lenet5"
MANIFEST_NAME, SIGNATURE_NAME = "manifest.json", "manifest.sig"
PLAIN_NAME = r"[0-9A-Za-z][0-9A-Za-z._-]*"  # of a file of the version: it leads nowhere else
MAX_MANIFEST_BYTES, MAX_FILE_BYTES = 4 << 20, 64 << 20  # LeNet-5's take 0.1 and 1.2 MiB at most
LARGEST_MAX_BATCH_SIZE = 4096
FORMAT = 3
OLD_FORMATS = {1: "no probes", 2: "no digest of its own"}
AGAIN = "make export writes a new version"

# File name of each kind of artifact, and so of what a backend loads.
PROGRAM_NAME = "model.pt2"  # torch.export program
ONNX_NAME = "model.onnx"
LITERT_NAME = "model.tflite"
ENGINE_NAME = "model.plan"  # TensorRT engine, for one GPU
RTX_ENGINE_NAME = "model.rtx.engine"  # TensorRT for RTX engine, for every GPU of its compute capabilities
RTX_TURING_ENGINE_NAME = "model.rtx75.engine"  # the same for compute capability 7.5, which has fewer types
EPOCHS_NAME = "epochs.npz"  # weights after each epoch, for the same page
LAYERS_NAME = "layers.json"  # names its values and weights, for the page that looks inside

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"  # the flavours of engines, and so the names of their backends

Check = Callable[[Path, bytes], None]  # of a version's directory and its manifest


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

    def one(self) -> Images:
        """Returns one of the images, (1, 1, 28, 28); a black one if there are none, as for a stand-in."""
        return self.arrays()[0][:1] if self.names else np.zeros((1, *IMAGE_SHAPE), np.uint8)


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


def save_manifest(manifest: Manifest, version_dir: Path, sign: Callable[[bytes], bytes] | None = None) -> None:
    """Writes `manifest.json`, and perhaps its signature, to the disk, in a directory that nobody reads yet."""
    data = sealed({"format": FORMAT, **vars(manifest)})
    if sign is not None:
        write_atomically(version_dir / SIGNATURE_NAME, sign(data))
    write_atomically(version_dir / MANIFEST_NAME, data)


def load_manifest(version_dir: Path, check: Check | None = None) -> Manifest:
    """Reads the manifest of a version that may be served: its parity was proven.

    Raises BadDataError PARITY_FAILED if it was not, and as `read_manifest`.
    """
    manifest = read_manifest(version_dir, check)
    if not manifest.parity_passed:
        what = f"{version_dir / MANIFEST_NAME} does not say that its parity was proven"
        raise BadDataError("PARITY_FAILED", what, AGAIN)
    return manifest


def read_manifest(version_dir: Path, check: Check | None = None) -> Manifest:
    """Reads the manifest, whatever it says of parity: to measure with, never to serve.

    `check` raises if the bytes are not to be looked at, such as those that nobody known has signed.
    Raises MissingInputError if there is none, BadDataError if it was changed, is malformed or of another format, and
    what `read_trusted` raises.
    """
    path = version_dir / MANIFEST_NAME
    try:
        data = read_trusted(path, version_dir.absolute().parent.parent, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise MissingInputError("NO_MANIFEST", f"{path} does not exist", AGAIN) from None
    if check is not None:
        check(version_dir, data)
    try:
        if (found := _old_format(data)) is not None:
            what = f"{path} has format {found}, which has {OLD_FORMATS[found]}; this program reads format {FORMAT}"
            raise BadDataError("OLD_MANIFEST", what, AGAIN)
        document = unsealed(data)
        if (found := document.pop("format", None)) != FORMAT:
            raise ValueError(f"it has format {found}, this program reads {FORMAT}")
        manifest = record_from(Manifest, document)
        _check_values(manifest)
        return manifest
    except ValueError as error:
        raise BadDataError("BAD_MANIFEST", f"{path}: {error}", AGAIN) from None


def _check_values(manifest: Manifest) -> None:
    """Raises ValueError for a value that no export writes."""
    digests = [manifest.checkpoint_sha256, *manifest.files.values(), *(each.onnx_sha256 for each in manifest.engines)]
    sizes = [(each.min_batch_size, each.opt_batch_size, each.max_batch_size) for each in manifest.engines]
    names = [name for name in manifest.files if not re.fullmatch(PLAIN_NAME, name)]
    foreign = [each.file for each in manifest.engines if each.file not in manifest.files]
    faults = {
        "version": manifest.version < 1 and manifest.version,
        "precision": manifest.precision not in TOLERANCES and manifest.precision,
        "classes": len({*manifest.classes} - {""}) != NUM_CLASSES and manifest.classes,
        "max_batch_size": not 1 <= manifest.max_batch_size <= LARGEST_MAX_BATCH_SIZE and manifest.max_batch_size,
        "digest": next((digest for digest in digests if not re.fullmatch("[0-9a-f]{64}", digest)), False),
        "files": bool(names) and names,
        "engines": bool(foreign) and foreign,
        "batch sizes": next((each for each in sizes if not 1 <= each[0] <= each[1] <= each[2]), False),
    }
    for field, fault in faults.items():
        if fault is not False:
            raise ValueError(f"{field} cannot be {fault!r}")
    manifest.probes.arrays()


def _old_format(data: bytes) -> int | None:
    """Returns the format of a manifest of an earlier release, which has no digest; None for any other."""
    found = None if is_sealed(data) else parsed(data).get("format")
    return found if type(found) is int and found in OLD_FORMATS else None


def read_verified(version_dir: Path, manifest: Manifest, name: str) -> bytes:
    """Reads one of the version's files, and returns its bytes if their digest is the manifest's.

    Raises MissingInputError if the file is not there or not part of the version, BadDataError if it differs, and what
    `read_trusted` raises.
    """
    path = version_dir / name
    expected = manifest.files.get(name)
    if expected is None:
        there = ", ".join(sorted(manifest.files))
        raise MissingInputError(
            "NO_ARTIFACT", f"version {manifest.version} has no {name}; it has {there}", "make export"
        )
    try:
        data = read_trusted(path, version_dir.absolute().parent.parent, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise MissingInputError("NO_ARTIFACT", f"{path} does not exist", "make export") from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        what = f"{path} has SHA-256 {found[:12]}…, its manifest says {expected[:12]}…"
        raise BadDataError("HASH_MISMATCH", what, "the file was changed after export: make export")
    return data


def find_version(repository: Path, version: int | None = None, check: Check | None = None) -> tuple[Path, Manifest]:
    """Returns the directory and manifest of the version asked for, or of the newest.

    Raises MissingInputError NO_MODEL, listing those that exist, and what `load_manifest` raises.
    """
    versions = list_versions(repository / MODEL_NAME)
    wanted = max(versions, default=None) if version is None else version
    if wanted is None or wanted not in versions:
        asked = f"no version of {MODEL_NAME}" if version is None else f"no version {version} of {MODEL_NAME}"
        what = f"{repository} has {asked} (found: {', '.join(map(str, versions)) or 'none'})"
        raise MissingInputError("NO_MODEL", what, "make export writes one")
    version_dir = repository / MODEL_NAME / str(wanted)
    manifest = load_manifest(version_dir, check)
    if (manifest.model_name, manifest.version) != (MODEL_NAME, wanted):
        what = f"{version_dir} holds version {manifest.version} of {manifest.model_name}, by its manifest"
        raise BadDataError("BAD_MANIFEST", what, "versions cannot be renamed or copied: make export writes a new one")
    return version_dir, manifest


def list_versions(model_dir: Path) -> list[int]:
    """Lists the published versions under `artifacts/models/<name>`, ascending; the server takes the last."""
    found = model_dir.iterdir() if model_dir.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdecimal() and path.is_dir())
