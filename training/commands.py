"""Commands of the trainer, as messages print them: each works when pasted into the shell that started this process."""

import os
import shlex
import sys
from pathlib import Path


def train_command(*options: object) -> str:
    """Names the trainer with `options` as this process was started: through make, torchrun, or Python itself."""
    arguments = shlex.join(str(option) for option in options)
    if "RANK" in os.environ:
        return f"{_torchrun()} -m training {arguments}".strip()
    if not _is_in_project():
        return f"{_python()} -m training {arguments}".strip()
    quoted = shlex.quote(arguments.replace("$", "$$"))  # a dollar sign is make's, unless doubled
    return f"make train ARGS={quoted}" if options else "make train"


def _is_in_project() -> bool:
    """Returns whether `make train`, typed here, would run this very Python."""
    venv = Path(".venv")
    return Path("Makefile").is_file() and venv.exists() and venv.samefile(sys.prefix)


def _python() -> str:
    """Names the interpreter, as short as it can be said from here."""
    path, here = Path(sys.executable), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _torchrun() -> str:
    """Names the launcher, if all processes are on this machine: only the user knows how several find each other."""
    on_this_machine, everywhere = (os.environ.get(name, "1") for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if on_this_machine != everywhere:
        return "on every machine the same torchrun ..."
    return f"{_python()} -m torch.distributed.run --nproc-per-node {on_this_machine}"
