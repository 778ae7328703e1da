"""Tries a version in a process of its own before a server loads it: with bounds on memory, processor and time.

Checks of files know what a model may be made of, not what a runtime makes of it. So the process holds the files to what
exports have, opens them with the runtime that is to serve, and proves them on the probes, all in one thread. What asks
for gigabytes, crashes or never ends does so there. On a GPU nothing is opened: CUDA needs more address space than any
bound leaves, so there only the files are checked.
"""

import contextlib
import ctypes
import json
import logging
import os
import resource
import signal
import sys
import time
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from atelier.errors import BadDataError, MissingInputError, ProgramError, ResourceUnavailableError, UsageError
from atelier.memory import is_out_of_memory
from serving.backends.select import files_for
from serving.children import start_process
from serving.config import ServerConfig
from serving.limits import Limits
from serving.models import ModelVersion

logger = logging.getLogger(__name__)

RUNTIMES = {"auto": "onnxruntime", "onnxruntime": "onnxruntime", "torch": "torch", "litert": "litert"}
GPUS = ("nvidiactl", "nvmap", "dxg")  # in /dev: of NVIDIA's driver, on a Jetson, and in WSL
MAX_VERDICT_BYTES = 1 << 16
NICENESS = 10
PR_SET_PDEATHSIG = 1  # prctl(2)
# What is wrong with settings or this machine, not with the version: the server finds it too, and says so.
NOT_ITS_FAULT = (MissingInputError, ResourceUnavailableError, UsageError)


class Trial:
    """Has a process try a version: once `link` is ready or the time is up, `conclude`."""

    def __init__(self, version: ModelVersion, config: ServerConfig, *, is_beside: bool = False) -> None:
        """Forks, so the caller has one thread. `is_beside` has it give way to what serves."""
        self.version, self._limits = version, config.limits
        server_pid = os.getpid()

        def work(link: Connection) -> int:
            _end_with(server_pid)
            _close_all_but(link.fileno())
            if is_beside:
                os.nice(NICENESS)
            verdict = _verdict(version, config)
            with contextlib.suppress(OSError):  # nobody waits any more
                link.send_bytes(json.dumps(verdict).encode())
            return os.EX_OK

        self._ends_s = time.monotonic() + self._limits.trial_s
        self._process, self.link = start_process(work, [], "atelier-trial")

    @property
    def left_s(self) -> float:
        """Returns how long it may still take, in seconds."""
        return max(0.0, self._ends_s - time.monotonic())

    def is_over(self) -> bool:
        """Returns whether it has ended, or should have."""
        return self.link.poll() or self.left_s == 0

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self.link.close()

    def conclude(self) -> None:
        """Raises BadDataError if the version is not to be loaded."""
        is_told = self.link.poll()
        self._process.kill()  # before it is read what it says, or half a message would be waited for
        self._process.join()
        refusal = self._told() if is_told else self._too_slow()
        self.link.close()
        if refusal:
            raise BadDataError(**refusal)

    def _told(self) -> dict[str, str]:
        """Reads what the process has said, which may be anything if the version has taken it over."""
        try:
            verdict = json.loads(self.link.recv_bytes(MAX_VERDICT_BYTES))
            return {name: str(verdict[name]) for name in _refusal("", "", "")} if verdict else {}
        except (EOFError, OSError, ValueError, LookupError, TypeError, RecursionError):
            return self._crashed(self._process.exitcode or 0)

    def _crashed(self, code: int) -> dict[str, str]:
        if code in (-signal.SIGXCPU, -signal.SIGALRM):
            return self._too_slow()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        cure = "make export writes a new version; SIGKILL may mean that the machine has too little memory"
        return _refusal("LOAD_CRASHED", f"{self.version.name} ended the process that tried it, by {how}", cure)

    def _too_slow(self) -> dict[str, str]:
        limits = self._limits
        what = f"{self.version.name} was tried for {limits.trial_s:g} s, or {limits.trial_cpu_s} s of CPU, without end"
        return _refusal("LOAD_TIMEOUT", what, "make export writes a new version")


def load_runtime(config: ServerConfig) -> None:
    """Imports the runtime that a trial opens the version with, if it is installed; none starts a thread for that."""
    if _runs_on_cpu(config) and config.backend in RUNTIMES:
        with contextlib.suppress(ImportError):
            import_module(f"serving.backends.{RUNTIMES[config.backend]}_backend")


def _runs_on_cpu(config: ServerConfig) -> bool:
    has_gpu = any(Path("/dev", name).exists() for name in GPUS)
    return config.backend == "litert" or config.device == "cpu" or (config.device == "auto" and not has_gpu)


def _end_with(server_pid: int) -> None:
    """Has the kernel end this process with the server, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server_pid:  # it has just ended
            sys.exit(os.EX_UNAVAILABLE)


def _close_all_but(link: int) -> None:
    """Closes sockets, pipes and files of the server's: what runs here has no use for them."""
    if sys.platform == "linux":
        for each in list(Path("/proc/self/fd").iterdir()):
            if int(each.name) not in (0, 1, 2, link):
                with contextlib.suppress(OSError):  # that of the listing itself
                    os.close(int(each.name))


def _verdict(version: ModelVersion, config: ServerConfig) -> dict[str, str]:
    """Returns why the version is refused; nothing if it is not."""
    signal.alarm(int(config.limits.trial_s) + 1)  # whoever waits may have died, and the kernel may not tell
    load_runtime(config)
    _limit(config.limits)
    try:
        _try_out(version, config)
    except NOT_ITS_FAULT:
        pass
    except Exception as error:  # each runtime has its own
        if is_out_of_memory(error):
            what = f"{version.name} takes more than {config.limits.trial_bytes >> 20} MiB of memory"
            return _refusal("BAD_MODEL", what, "make export writes a new version, or use a smaller --max-batch-size")
        if isinstance(error, ProgramError):
            return _refusal(error.word, error.what, error.cure, error.why)
        logger.error("%s could not be tried", version.name, exc_info=error)
        return _refusal("LOAD_FAILED", f"{type(error).__name__} while {version.name} was tried", "see the server's log")
    return {}


def _try_out(version: ModelVersion, config: ServerConfig) -> None:
    if _runs_on_cpu(config):
        version.open(replace(config, device="cpu", num_threads=1)).backend.close()
    else:
        for name in files_for(config.backend, version.manifest):
            version.read_checked(name)


def _limit(limits: Limits) -> None:
    """Bounds what is taken from now on; and if the machine's memory runs out, this process goes before the server."""
    cpu_s = int(time.process_time()) + limits.trial_cpu_s
    _lower(resource.RLIMIT_CPU, cpu_s)
    _lower(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, used_bytes + limits.trial_bytes)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


def _lower(limit: int, most: int) -> None:
    """Sets a limit of the system's, which may be lower already."""
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _refusal(word: str, what: str, cure: str, why: str = "") -> dict[str, str]:
    return {"word": word, "what": what, "cure": cure, "why": why}
