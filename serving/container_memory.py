"""Watches the memory of the container that a server runs in, so that it sheds load before the kernel ends it.

The limit is that of its control group, or of a group around that. What the kernel can take back at once, pages of files
that were not used lately, does not count: this is Kubernetes' working set.
https://docs.kernel.org/admin-guide/cgroup-v2.html#memory, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

import logging
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

LITTLE_BYTES = 64 << 10  # of a message: more is large
SHED_LARGE, SHED_ALL = 0.80, 0.90  # of the limit
SLACK = 0.02  # below which a level is left again
UNLIMITED_BYTES = 1 << 60  # what cgroup v1 says without a limit is larger still


class Pressure(IntEnum):
    """Says what is refused because memory is short."""

    NOTHING = 0
    LARGE = 1  # messages above LITTLE_BYTES; native: also what is compressed, and many or large pictures
    ALL = 2


CONSEQUENCES = {
    Pressure.NOTHING: "nothing is refused for it any more",
    Pressure.LARGE: "large requests are refused",
    Pressure.ALL: "all requests are refused",
}


class Names(NamedTuple):
    """Names the files of a version of cgroups."""

    limit: str
    usage: str
    reclaimable: str  # in memory.stat


V1 = Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = Names("memory.max", "memory.current", "inactive_file")


class ContainerMemory:
    """Reads how full the groups of this process are. Without groups, or a limit, nothing is refused."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> None:
        """`own` names the groups of the process, as the kernel does for `/proc/self/cgroup`."""
        self._pressure = Pressure.NOTHING
        self._groups = _groups(root, own)

    def pressure(self) -> Pressure:
        """Returns what to refuse now; a change stands in the log."""
        share = max((_share(*group) for group in self._groups), default=0.0)
        levels = ((Pressure.LARGE, SHED_LARGE), (Pressure.ALL, SHED_ALL))
        reached = [level for level, start in levels if share >= start - SLACK * (level <= self._pressure)]
        pressure = max(reached, default=Pressure.NOTHING)
        if pressure != self._pressure:
            logger.warning("the container's memory is %.0f %% full: %s", 100 * share, CONSEQUENCES[pressure])
            self._pressure = pressure
        return pressure


def _groups(root: Path, own: Path) -> list[tuple[Path, Names]]:
    """Returns the group of this process and those around it. A container often sees its own as the root."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _number_of, controllers, path in lines:
        if controllers == "memory":
            top, names = root / "memory", V1
        elif controllers == "":
            top, names = root, V2
        else:
            continue
        group = top / path.lstrip("/")
        while group.is_relative_to(top):
            if (group / names.usage).exists():
                found.append((group, names))
            if group == top:
                break
            group = group.parent
    return found


def _share(directory: Path, names: Names) -> float:
    """Returns how full a group is: 0 to 1; 0 without a limit, which may change."""
    limit, usage = _number(directory / names.limit), _number(directory / names.usage)
    if not limit or limit >= UNLIMITED_BYTES or usage is None:
        return 0.0
    if usage < (SHED_LARGE - SLACK) * limit:
        return usage / limit  # memory.stat, which takes the kernel longer, can only make it less
    try:
        lines = (directory / "memory.stat").read_text().splitlines()
    except OSError:
        return usage / limit
    reclaimable = next((int(value) for name, value in map(str.split, lines) if name == names.reclaimable), 0)
    return (usage - reclaimable) / limit


def _number(path: Path) -> int | None:
    """Returns the number in a file; None if there is none, as in `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
