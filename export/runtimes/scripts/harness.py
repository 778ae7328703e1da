"""What each script here does around its runtime: answers all images, then times the batches that it is told to.

`python <script>.py FUNCTION MODEL IMAGES.npy LOGITS.npy SCRATCH_DIR` runs in the runtime's own environment: nothing
here is imported from elsewhere in the project. It says one line `RESULT <json>` when the logits are written, and one
for each line `<batch size> <seconds>` on stdin.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

BATCH_SIZES = (1, 64)


def serve(open_model):
    """Answers and times. `open_model(path, scratch)` returns a version, and a function that gives the runner of a size.

    A runner takes images, uint8 (size, 1, 28, 28), and returns logits (size, 10).
    """
    model, images_path, logits_path, scratch = sys.argv[1:]
    images = np.load(images_path)
    version, runner_for = open_model(model, scratch)
    runners = {size: runner_for(size) for size in BATCH_SIZES}
    np.save(logits_path, np.stack([_all_logits(run, images, size) for size, run in runners.items()]))
    _say(version=version)
    for line in sys.stdin:
        size, seconds = line.split()
        _say(images_per_s=_rate(runners[int(size)], images, int(size), float(seconds)))


def convert(tool, *arguments):
    """Runs a converter that was installed beside this Python; if it fails its last line is the reason."""
    command = [Path(sys.executable).with_name(tool), *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603
    print(done.stdout, file=sys.stderr)
    if done.returncode:
        sys.exit(f"{tool}: {done.stdout.strip().splitlines()[-1]}")


def _all_logits(run, images, size):
    """(N, 10); the last batch is filled up, since some runtimes know one batch size only."""
    padded = np.concatenate([images, images[: -len(images) % size]])
    batches = (padded[start : start + size] for start in range(0, len(images), size))
    return np.concatenate([np.array(run(batch), np.float32) for batch in batches])[: len(images)]


def _rate(run, images, size, seconds):
    """Images per second of CPU time, of all threads: what else runs on the core is not the runtime's."""
    batches = [images[start : start + size] for start in range(0, len(images) - size + 1, size)]
    run(batches[0])
    num_calls, started = 0, time.process_time()
    while (taken := time.process_time() - started) < seconds:
        run(batches[num_calls % len(batches)])
        num_calls += 1
    return num_calls * size / taken


def _say(**what):
    print("\nRESULT " + json.dumps(what), flush=True)
