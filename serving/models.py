"""Loads the model behind a server: which version, verified once, on which backend, and why."""

from dataclasses import dataclass, field
from pathlib import Path

from serving.backends.base import Backend
from serving.backends.proof import Proof, prove
from serving.backends.select import files_for, open_backend
from serving.config import ServerConfig
from serving.manifest import Manifest, find_version, read_verified

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

    def read(self, name: str) -> bytes:
        """Returns a file's verified bytes. Raises what `read_verified` does."""
        if name not in self._files:
            self._files[name] = read_verified(self.directory, self.manifest, name)
        return self._files[name]

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
            read=self.read,
            cache_dir=config.repository.parent / KERNELS_DIR,
        )
        proof = prove(backend, manifest)
        sha256 = manifest.files[file]
        name = f"{manifest.model_name} version {manifest.version} from {self.directory}"
        introduction = (
            f"{name}, {manifest.precision}, sha256 {sha256[:12]}…",
            f"{backend.name} on {backend.device}: {why}",
            str(proof),
        )
        return ServedModel(manifest=manifest, backend=backend, sha256=sha256, introduction=introduction, proof=proof)


def read_version(config: ServerConfig) -> ModelVersion:
    """Reads the newest version, or the one asked for, as far as its backend may need it.

    Raises ProgramError if there is none, or it is not what its manifest says.
    """
    directory, manifest = find_version(config.repository, config.model, config.model_version)
    version = ModelVersion(directory=directory, manifest=manifest)
    for name in files_for(config.backend, manifest):
        version.read(name)
    return version


def load_model(config: ServerConfig) -> ServedModel:
    """Reads and opens what the settings ask for. Raises ProgramError."""
    return read_version(config).open(config)
