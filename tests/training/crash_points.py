"""Saves a checkpoint over another one, and fails at a given point: `python -m tests.training.crash_points DIR died`.

For each call into the operating system that saving makes, a child process is forked, saves, and ends without warning
right before that call (`died`), or is told there that the disk is full (`full`). The parent then loads the checkpoint,
and prints which of the two it found.
"""

import errno
import os
import shutil
import sys
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from training.checkpoint import load_checkpoint, save_checkpoint
from training.models import LeNet5, initialise
from training.run_record import RunRecord, load_record

CALLS = ("open", "write", "flush", "fsync", "replace", "rename", "close", "unlink")
FAILED, FINISHED = 9, 0


def save_and_fail(how: str, directory: Path, weights: dict[str, Tensor], record: RunRecord, point: int) -> None:
    """Ends the process; saving fails before the `point`-th call of `CALLS`, counted from 1, if there are as many."""
    num_calls = 0

    def count(_frame: FrameType, event: str, function: object) -> None:
        nonlocal num_calls
        if event == "c_call" and getattr(function, "__name__", "") in CALLS:
            num_calls += 1
            if num_calls == point and how == "died":
                os._exit(FAILED)
            if num_calls == point:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.setprofile(count)
    try:
        save_checkpoint(directory, weights, record)
    except OSError as error:
        os._exit(FAILED if error.errno == errno.ENOSPC else 1)
    os._exit(FINISHED)


def weights_of(seed: int) -> dict[str, Tensor]:
    """Seeded weights."""
    model = LeNet5()
    initialise(model, seed)
    return model.state_dict()


def main(directory: Path, how: str) -> None:
    """Prints one line per point: `died old 1` or `died new 1`, then `finished new 1`; 1 set of weights is left."""
    torch.set_num_threads(1)  # a fork takes no threads along
    record, old, new = load_record(directory)[0], weights_of(1), weights_of(2)
    save_checkpoint(directory, old, record)
    point, exit_code = 0, FAILED
    while exit_code == FAILED:
        point += 1
        scene = directory.with_name(f"{directory.name}-{point}")
        shutil.copytree(directory, scene)
        child = os.fork()
        if child == 0:
            save_and_fail(how, scene, new, record, point)
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = load_checkpoint(scene).state_dict
        which = [name for name, weights in (("old", old), ("new", new)) if same(found, weights)]
        save_checkpoint(scene, new, record)  # and the next save clears away what the dead one left
        num_files = len(list(scene.glob("*weights*")))
        print({FAILED: how, FINISHED: "finished"}[exit_code], *which, num_files)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether all tensors are equal, bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
