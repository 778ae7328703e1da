"""Train LeNet-5 as the tutorial does: `python -m training`, or `make train`.

Read on in run.py (a run, epoch by epoch), epoch.py (its steps) and models/lenet.py (the layers).
"""

import contextlib
import os
import sys
import time
from importlib.util import find_spec

from training.config import TrainConfig, config_from
from training.dataset import load_dataset
from training.divergence import check_epochs
from training.results import result_lines, seeds_table
from training.run_record import RunRecord
from training.session import finished_runs
from training.trainer_process import StopRequest, is_first, lock_directory


def main(arguments: list[str]) -> int:
    """Trains what is not trained yet, and reports."""
    config = config_from(arguments)
    if config.summary:
        print_summary(config)
        return 0
    records = finished_runs(config) or train(config)
    for record in records:
        check_epochs(record)
    if not is_first():
        return 0
    if len(records) > 1:
        print(seeds_table(records))
    for line in result_lines(records[0]):
        print(line)
    return 0


def train(config: TrainConfig) -> list[RunRecord]:
    """Trains every seed that has no finished run; what is wrong with the data is said before torch is imported."""
    if find_spec("torch") is None:  # before anything is fetched
        raise ModuleNotFoundError("torch is not installed", name="torch")
    with lock_directory(config.checkpoint_dir) if is_first() else contextlib.nullcontext():
        started = time.perf_counter()
        dataset = load_dataset(config.data_dir, verify=not config.unverified_data)
        if not dataset.verified:
            what = f"{dataset.source} may hold anything; the checkpoint says so"
            print(f"warning: UNVERIFIED_DATA: {what}", file=sys.stderr)
        # On a busy machine OpenMP's threads wait for each other spinning, and train up to ten times slower for it: spin
        # only briefly. Read when torch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        with StopRequest() as stop:
            from training.run import train_seeds  # takes seconds: it imports torch

            return train_seeds(config, dataset, stop, started)


def print_summary(config: TrainConfig) -> None:
    """Prints the layers of the recipe's model."""
    from training.model_cost import summarize, table_from
    from training.models import model_for

    print(table_from(summarize(model_for(config.recipe))))
