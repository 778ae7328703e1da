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
from training.idx_files import FILES
from training.process import StopRequest, lock_directory
from training.results import result_lines, seeds_table
from training.run_record import RunRecord, find_finished


def main(arguments: list[str]) -> int:
    """Trains what is not trained yet, and reports."""
    config = config_from(arguments)
    if config.summary:
        print_summary(config)
        return 0
    records = find_all_finished(config) or train(config)
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
        dataset = load_dataset(config.data_dir, verify=config.verify_data)
        if not dataset.verified:
            what = f"{dataset.source} may hold anything; the checkpoint says so"
            print(f"warning: UNVERIFIED_DATA: {what}", file=sys.stderr)
        # On a busy machine OpenMP's threads wait for each other spinning, and train up to ten times slower for it: spin
        # only briefly. Read when torch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        with StopRequest() as stop:
            from training.run import train_seeds  # takes seconds: it imports torch

            return train_seeds(config, dataset, stop, started)


def is_first() -> bool:
    """Whether this process speaks and writes: of several that `torchrun` started, the first."""
    return os.environ.get("RANK", "0") == "0"


def find_all_finished(config: TrainConfig) -> list[RunRecord]:
    """The records of all seeds where there is nothing left to train, else none. Needs neither data nor torch.

    A data directory or a GPU that was asked for is looked at even so: what is not there is an error.
    """
    if config.again or not config.verify_data or config.data_dir or os.environ.get("FASHION_MNIST_DIR"):
        return []
    if config.device.startswith("cuda") or "RANK" in os.environ:
        return []
    digests = {file.name: file.sha256 for file in FILES}
    records = [
        find_finished(directory, config.recipe, seed, digests, config.precision)
        for seed, directory in config.run_dirs.items()
    ]
    if not all(records):
        return []
    print(f"{config.checkpoint_dir} is trained already (--again trains it anew):")
    return [record for record in records if record]


def print_summary(config: TrainConfig) -> None:
    """The layers of the recipe's model."""
    from training.model_cost import summarize, table_from
    from training.models import model_for

    print(table_from(summarize(model_for(config.recipe))))
