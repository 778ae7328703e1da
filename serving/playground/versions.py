"""Finds the versions to look inside: those that the supervisor holds, and the others of the repository."""

from collections.abc import Sequence
from typing import Any

from atelier.answers import ModelDescription
from atelier.errors import BadDataError, ProgramError
from serving.config import ServerConfig
from serving.manifest import MODEL_NAME, list_versions
from serving.models import ModelVersion, find_version
from serving.playground.probe import Probe

MAX_PROBES = 3  # kept open; the one that was asked for longest ago is closed for another
MAX_LISTED = 20  # the newest, to compare with


class Versions:
    """Opens a probe on a version when it is first looked into."""

    def __init__(self, config: ServerConfig, held: Sequence[ModelVersion]) -> None:
        """`held` are those whose bytes were verified before they were served, the served one first."""
        self._config, self._held = config, held
        self._probes: dict[int, Probe] = {}  # the one that was asked for last is the last

    @property
    def first(self) -> int:
        """The version that was served when this process began."""
        return self._held[0].manifest.version

    def probe(self, number: int, served: ModelDescription | None = None) -> Probe:
        """Returns the version's probe. Raises what `Probe` does, NO_MODEL, and HASH_MISMATCH if `served` is another."""
        probe = self._probes.pop(number, None) or Probe(self._version(number))
        if served is not None and served.model_version == str(number):
            _check_same(probe, served)
        self._probes[number] = probe
        while len(self._probes) > MAX_PROBES:
            del self._probes[next(iter(self._probes))]
        return probe

    def listed(self) -> list[dict[str, Any]]:
        """Describes the newest versions, ascending; what cannot be read is left out."""
        model_dir, listed = self._config.repository / MODEL_NAME, []
        for number in list_versions(model_dir)[-MAX_LISTED:]:
            try:
                manifest = find_version(self._config, number).manifest
            except (OSError, ProgramError):
                continue
            about = {"version": number, "precision": manifest.precision, "architecture": manifest.architecture}
            listed.append(about)
        return listed

    def _version(self, number: int) -> ModelVersion:
        for version in self._held:
            if version.manifest.version == number:
                return version
        return find_version(self._config, number)


def _check_same(probe: Probe, served: ModelDescription) -> None:
    """Raises BadDataError HASH_MISMATCH unless the version has the very file that answers."""
    if served.model_sha256 not in probe.manifest.files.values():
        what = f"version {served.model_version} here has no file of SHA-256 {served.model_sha256[:12]}…, which answers"
        raise BadDataError("HASH_MISMATCH", what, "it was exported anew under the same number: restart the server")
