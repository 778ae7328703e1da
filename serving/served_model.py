"""The model behind a server: which version, on which backend, and why."""

from dataclasses import dataclass

from serving.backends.base import Backend
from serving.backends.select import open_backend
from serving.config import ServerConfig
from serving.errors import MissingInputError
from serving.manifest import FILE_OF_BACKEND, Manifest, list_versions, load_manifest


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model loaded on its device."""

    manifest: Manifest
    backend: Backend
    sha256: str  # of the file that was loaded


def load_model(config: ServerConfig) -> ServedModel:
    """The newest version, or the one asked for, on the backend asked for; says which, and why that backend.

    Raises ProgramError where there is none, it is not what its manifest says, or the backend cannot run here.
    """
    model_dir = config.repository / config.model
    versions = list_versions(model_dir)
    version = config.model_version or max(versions, default=None)
    if version is None or version not in versions:
        there = ", ".join(map(str, versions)) or "none"
        what = f"no version {version or ''} of {config.model} in {config.repository}; there: {there}"
        raise MissingInputError("NO_MODEL", what, "make export writes one")
    version_dir = model_dir / str(version)
    manifest = load_manifest(version_dir)
    backend, why = open_backend(
        config.backend,
        config.device,
        version_dir,
        manifest,
        max_batch_size=min(config.max_batch_size, manifest.max_batch_size),
        num_threads=config.num_threads,
    )
    sha256 = manifest.files[FILE_OF_BACKEND[backend.name]]
    print(f"atelier: {config.model} version {version} from {version_dir}, {manifest.precision}, sha256 {sha256[:12]}…")
    print(f"atelier: {backend.name} on {backend.device}: {why}", flush=True)
    return ServedModel(manifest=manifest, backend=backend, sha256=sha256)
