"""What a process holds in memory: resident on the host, and on the GPU."""

import re
import subprocess
from pathlib import Path

from serving.errors import ResourceUnavailableError


def resident_bytes(pid: int | str = "self") -> int | None:
    """The process's resident memory, where Linux tells it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else None


def device_bytes(device: str) -> int | None:
    """What all processes hold on `device`, this one's CUDA context included; None where that is no GPU.

    Raises ResourceUnavailableError NO_GPU where it is not there.
    """
    if not device.startswith("cuda"):
        return None
    from serving.backends.cuda import CudaError, bytes_in_use, use_device

    try:
        use_device(int(device.partition(":")[2] or "0"))
        return bytes_in_use()
    except CudaError as error:
        what = f"asked for {device}: {error}"
        raise ResourceUnavailableError("NO_GPU", what, "check nvidia-smi, or use --device cpu") from None


def memory_of_process(pid: int) -> dict[str, int | None]:
    """Of another process: `resident_bytes`, and `device_bytes` as nvidia-smi tells them."""
    return {"resident_bytes": resident_bytes(pid), "device_bytes": _device_bytes_of(pid)}


def _device_bytes_of(pid: int) -> int | None:
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    for line in lines:
        owner, _, mebibytes = line.partition(", ")
        if owner == str(pid) and mebibytes.isdecimal():
            return int(mebibytes) << 20
    return None
