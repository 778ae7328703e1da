"""Describes the machine and what is installed on it, for reports and manifests."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path


def cpu_name() -> str:
    """Returns the processor's name and its number of cores: `AMD EPYC 7B13, 2 cores`."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{model[1] if model else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns name -> version for Python and those of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine_facts(packages: Sequence[str]) -> dict[str, str]:
    """Returns what a report says of its machine: processor, Python, versions; a missing package is `absent`."""
    versions = package_versions(packages)
    listed = ", ".join(f"{name} {versions.get(name, 'absent')}" for name in packages)
    return {"cpu": cpu_name(), "python": versions["python"], "packages": listed}


def gpu_facts() -> dict[str, str]:
    """Returns what nvidia-smi says of the first GPU; empty if there is none."""
    names = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "compute_cap")
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, (value.strip() for value in line.split(",")), strict=False))
