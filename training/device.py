"""The device where the arithmetic happens, so that it gives the same numbers every time."""

import ctypes
import os
import resource
import sys

import torch

from atelier.errors import ResourceUnavailableError
from atelier.machine import cpu_name

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES = 2**30
LARGEST_KEPT_BYTES = 2**25  # of one tensor: mallopt takes no more; a step of the largest recipe has 19 MB


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """Returns the device for `--device`; what was asked for by name and is not there is an error, never replaced.

    Of several processes on one machine each has a GPU of its own, by its `local_rank`, unless a GPU is named. A GPU
    becomes the one that this process uses where none is named: its streams and graphs are on that.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and num_gpus == 0):
        return torch.device("cpu")
    named = None if wanted == "auto" else torch.device(wanted).index
    index = local_rank if named is None else named
    if index >= num_gpus:
        what = f"asked for {wanted}, but torch {torch.__version__} sees {num_gpus} GPUs"
        raise ResourceUnavailableError("NO_GPU", what, "check nvidia-smi, or use --device cpu or --device auto")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def set_precision(precision: str, device: torch.device) -> None:
    """Decides how float32 is multiplied: in full, or in TF32, which keeps 10 bits of 23.

    Convolutions in PyTorch use TF32 unless told otherwise. bf16 is the steps' own matter (epoch_steps.py). Raises
    ResourceUnavailableError NO_SUCH_PRECISION if the device cannot do what was asked for.
    """
    is_able = {
        "fp32": True,
        "tf32": device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0),
        "bf16": device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0),
    }
    if not is_able[precision]:
        what = f"asked for {precision} on {device} ({hardware_of(device)}), which has no such arithmetic"
        raise ResourceUnavailableError("NO_SUCH_PRECISION", what, "use --precision fp32, or an Ampere GPU or later")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def make_deterministic(num_threads: int) -> None:
    """Makes the same recipe, seed and machine (and threads, on a CPU) give the same weights, bit for bit."""
    # Read when CUDA starts; cuBLAS is deterministic with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # A launch for each new tensor, to make a fault repeatable that we do not have.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    if num_threads:
        torch.set_num_threads(num_threads)


def forget_peak_memory(device: torch.device) -> None:
    """Resets the device's peak. The process's own cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Returns the bytes this process had at most: `resident`, and on a GPU what torch's allocator gave out and held."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2)
    peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["device_allocated"] = torch.cuda.max_memory_allocated(device)
        peak["device_reserved"] = torch.cuda.max_memory_reserved(device)
    return peak


def keep_memory() -> None:
    """Makes glibc keep what is freed: each step asks for the same megabytes, and the kernel clears what it gives.

    Of 2.5 million page faults in 40 s of steps 0.13 million are left. Other C libraries stay as they are: mallopt(3).
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        set_option(M_TRIM_THRESHOLD, KEPT_BYTES)


def hardware_of(device: torch.device) -> str:
    """Returns the device's name as its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"
