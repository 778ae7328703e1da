"""Memory of a program with all its processes: resident on the host, and on the GPU."""

import contextlib
import subprocess

import psutil


def processes_of(pid: int) -> list[psutil.Process]:
    """Returns a program's first process and those that it started."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def resident_bytes_of(pid: int) -> int:
    """Sums up what all its processes hold; pages that they share count once (PSS), if the system reports it."""
    total = 0
    for process in processes_of(pid):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)  # only Linux tells what is shared
    return total


def memory_of(pid: int) -> dict[str, int | None]:
    """Reads both of a program's, in bytes; the device's is None if nvidia-smi reports nothing."""
    return {"resident_bytes": resident_bytes_of(pid), "device_bytes": device_bytes_of(pid)}


def device_bytes_of(pid: int) -> int | None:
    """Sums up what all its processes hold on GPUs, contexts included; None if nvidia-smi reports nothing."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    pids = {str(process.pid) for process in processes_of(pid)}
    rows = [line.split(", ") for line in lines]
    mebibytes = [int(row[1]) for row in rows if len(row) == 2 and row[0] in pids and row[1].isdecimal()]
    return sum(mebibytes) << 20 if mebibytes else None
