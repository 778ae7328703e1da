"""One runtime's script as a process: started, asked for its speed, and ended, whatever it does."""

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atelier.errors import ProgramError

RESULT = "RESULT "
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
ONE_THREAD |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}


@dataclass(kw_only=True, eq=False)
class Session:
    """A script that has answered all images."""

    title: str
    process: "subprocess.Popen[str]"
    stderr_path: Path
    limit_s: float
    version: str = ""

    def images_per_s(self, batch_size: int, duration_s: float) -> float:
        """Returns its speed, measured for so long. Raises ProgramError RUNTIME as `reply` does."""
        pipe = self.process.stdin
        with suppress(OSError):  # then there is no reply either, and that is reported
            if pipe is not None:
                print(f"{batch_size} {duration_s}", file=pipe, flush=True)
        return float(self.reply()["images_per_s"])

    def reply(self) -> dict[str, Any]:
        """Returns the next result. Raises ProgramError RUNTIME if it ends first, or takes longer than its limit."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.kill()

        timer = threading.Timer(self.limit_s, expire)
        timer.start()
        try:
            for line in self.process.stdout or ():
                if line.startswith(RESULT):
                    reply: dict[str, Any] = json.loads(line.removeprefix(RESULT))
                    return reply
        finally:
            timer.cancel()
        what = f"{self.title} took longer than {self.limit_s:g} s" if expired.is_set() else self._end()
        raise ProgramError("RUNTIME", what)

    def pin(self, core: int) -> None:
        """Keeps all its threads on one core, if the system can."""
        with suppress(OSError, AttributeError):
            for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})

    def kill(self) -> None:
        """Ends it with all that it started: they are a process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _end(self) -> str:
        code = self.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines = self.stderr_path.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        if lines[-1].startswith("Node.js v"):  # its traceback ends with that, and begins with the error
            lines = [line for line in lines if re.match(r"\w*Error: ", line)][:1] or lines
        return f"{self.title} {how}: {lines[-1].strip()[:300]}"


@contextmanager
def session(title: str, command: Sequence[str], scratch: Path, limit_s: float) -> Iterator[Session]:
    """Starts the script in `scratch`, which is its home too. Raises ProgramError RUNTIME if it does not answer."""
    surroundings = os.environ | ONE_THREAD | {"HOME": str(scratch), "TMPDIR": str(scratch)}
    surroundings.pop("PYTHONPATH", None)
    stderr_path = scratch / "stderr.txt"
    with stderr_path.open("w") as stderr:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=scratch,
            env=surroundings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            process_group=0,
        )
    running = Session(title=title, process=process, stderr_path=stderr_path, limit_s=limit_s)
    try:
        running.version = str(running.reply()["version"])
        yield running
    finally:
        running.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()


def logits_in(path: Path, num_images: int) -> NDArray[np.float32]:
    """Returns (2, N, 10): the logits in batches of 1 and of 64. Raises ProgramError RUNTIME if they are not that."""
    try:
        logits = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ProgramError("RUNTIME", "it wrote no logits", why=str(error)) from None
    if logits.shape != (2, num_images, 10) or logits.dtype != np.float32:
        raise ProgramError(
            "RUNTIME", f"its logits are {logits.dtype} {logits.shape}, not float32 (2, {num_images}, 10)"
        )
    found: NDArray[np.float32] = logits
    return found
