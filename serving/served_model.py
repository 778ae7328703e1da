"""The model behind a server: which version, on which backend, and why."""

from dataclasses import dataclass

from atelier.errors import BadDataError, MissingInputError
from serving.backends.base import Backend
from serving.backends.select import open_backend
from serving.config import ServerConfig
from serving.manifest import FILE_OF_BACKEND, Manifest, list_versions, load_manifest


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model loaded on its device."""

    manifest: Manifest
    backend: Backend
    sha256: str  # of the file that was loaded
    introduction: tuple[str, ...] = ()  # for people: which model this is, on what, and why


def load_model(config: ServerConfig) -> ServedModel:
    """The newest version, or the one asked for, on the backend asked for.

    Raises ProgramError where there is none, it is not what its manifest says, or the backend cannot run here.
    """
    model_dir = config.repository / config.model
    versions = list_versions(model_dir)
    version = max(versions, default=None) if config.model_version is None else config.model_version
    if version is None or version not in versions:
        there = ", ".join(map(str, versions)) or "none"
        wanted = "any version" if version is None else f"version {version}"
        what = f"{config.repository} has not {wanted} of {config.model}; there: {there}"
        raise MissingInputError("NO_MODEL", what, "make export writes one")
    version_dir = model_dir / str(version)
    manifest = load_manifest(version_dir)
    if (manifest.model_name, manifest.version) != (config.model, version):
        what = f"{version_dir} holds version {manifest.version} of {manifest.model_name}, by its manifest"
        raise BadDataError("BAD_MANIFEST", what, "versions cannot be renamed or copied: make export writes a new one")
    backend, why = open_backend(
        config.backend,
        config.device,
        version_dir,
        manifest,
        max_batch_size=config.max_batch_size,
        num_threads=config.num_threads,
    )
    sha256 = manifest.files[FILE_OF_BACKEND[backend.name]]
    introduction = (
        f"{config.model} version {version} from {version_dir}, {manifest.precision}, sha256 {sha256[:12]}…",
        f"{backend.name} on {backend.device}: {why}",
    )
    return ServedModel(manifest=manifest, backend=backend, sha256=sha256, introduction=introduction)
