"""Loads the model behind a server: which version, verified once, on which backend, and why."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from atelier.errors import BadDataError
from serving import manifest as manifests
from serving.backends.base import Backend
from serving.backends.onnx_check import check_onnx
from serving.backends.program_check import check_program
from serving.backends.proof import Proof, prove
from serving.backends.select import files_for, open_backend
from serving.config import ServerConfig
from serving.manifest import ONNX_NAME, PROGRAM_NAME, TENSORRT, TENSORRT_RTX, Manifest, read_verified
from serving.signatures import signature_check

KERNELS_DIR = "tensorrt-rtx-kernels"  # beside the repository, as is the export's cache of timings


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model loaded on its device."""

    manifest: Manifest
    backend: Backend
    sha256: str  # of the file that was loaded
    introduction: tuple[str, ...] = ()  # for people: which model this is, on what, and why
    proof: Proof | None = None  # that it gives the model's logits here; none for a stand-in


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """Holds a version whose bytes are verified once: whoever opens it later gets these, whatever the disk holds."""

    directory: Path
    manifest: Manifest
    _files: dict[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The version, for people."""
        return f"{self.manifest.model_name} version {self.manifest.version}"

    @property
    def is_read(self) -> bool:
        """Returns whether files of it are held."""
        return bool(self._files)

    @property
    def sha256(self) -> str:
        """The digest of the manifest, which has those of all files."""
        return hashlib.sha256(json.dumps(vars(self.manifest), default=vars).encode()).hexdigest()

    def read(self, name: str) -> bytes:
        """Returns a file's verified bytes, of which nothing is looked at yet. Raises what `read_verified` does."""
        if name not in self._files:
            self._files[name] = read_verified(self.directory, self.manifest, name)
        return self._files[name]

    def read_checked(self, name: str) -> bytes:
        """Returns a file that a runtime may see. Raises as `read`, `check_onnx` and `check_program`."""
        data = self.read(name)
        if name == ONNX_NAME:
            check_onnx(data, self.manifest.opset, self.manifest.max_batch_size)
        elif name == PROGRAM_NAME:
            check_program(data)
        return data

    def open(self, config: ServerConfig) -> ServedModel:
        """Opens it on the backend asked for, and proves it on the probes.

        Raises ProgramError if that cannot run here, and BadDataError PARITY_HERE if it gives other logits.
        """
        manifest = self.manifest
        backend, why, file = open_backend(
            config.backend,
            config.device,
            self.directory,
            manifest,
            max_batch_size=config.max_batch_size,
            num_threads=config.num_threads,
            read=self.read_checked,
            cache_dir=config.repository.parent / KERNELS_DIR,
        )
        try:
            proof = prove(backend, manifest)
        except BaseException:
            backend.close()
            raise
        sha256 = manifest.files[file]
        introduction = (
            f"{self.name} from {self.directory}, {manifest.precision}, sha256 {sha256[:12]}…",
            f"{backend.name} on {backend.device}: {why}",
            str(proof),
        )
        return ServedModel(manifest=manifest, backend=backend, sha256=sha256, introduction=introduction, proof=proof)

    def open_beside(self, served: ServedModel, config: ServerConfig) -> ServedModel:
        """Opens it as `served` is opened, for the same calls, and proves it.

        Raises ProgramError as `open`, and BadDataError OTHER_CONTRACT if its classes or tensors are others.
        """
        ours, theirs = served.manifest, self.manifest
        for what in ("classes", "input", "output"):
            if getattr(ours, what) != getattr(theirs, what):
                cure = "start a server of its own for it"
                raise BadDataError(
                    "OTHER_CONTRACT", f"{self.name} has another {what} than version {ours.version}", cure
                )
        backend = served.backend
        kind = "tensorrt" if backend.name in (TENSORRT, TENSORRT_RTX) else backend.name
        return self.open(replace(config, backend=kind, device=backend.device))


def find_version(config: ServerConfig, number: int | None = None) -> ModelVersion:
    """Finds a version and reads its manifest: this one, the one that the settings name, or the newest.

    Raises ProgramError if there is none, or its manifest is damaged, or not signed as the settings want it.
    """
    check = signature_check(config.require_signature) if config.require_signature else None
    number = number or config.model_version
    directory, manifest = manifests.find_version(config.repository, number, check)
    return ModelVersion(directory=directory, manifest=manifest)


def read_version(config: ServerConfig, number: int | None = None) -> ModelVersion:
    """Reads a version as far as its backend may need it. Raises what `find_version` does, and for files `read`."""
    version = find_version(config, number)
    for name in files_for(config.backend, version.manifest):
        version.read(name)
    return version


def load_model(config: ServerConfig) -> ServedModel:
    """Reads and opens what the settings ask for. Raises ProgramError."""
    return read_version(config).open(config)
