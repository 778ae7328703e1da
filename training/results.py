"""Results that a training run prints at its end: the tutorial's lines, and the spread over several seeds."""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from atelier.tables import aligned
from training.run_record import EpochMetrics, RunRecord

SEEDS_NAME = "seeds.json"
# Dive into Deep Learning, section 7.6: one run, on a GPU.
TUTORIAL = {"train_loss": 0.347, "train_acc": 0.872, "test_acc": 0.852}


def epoch_line(record: RunRecord) -> str:
    """Renders the last completed epoch's results."""
    last = record.metrics[-1]
    return f"epoch {last.epoch:>2}/{record.recipe.num_epochs}: {_results(last)} ({last.seconds:.1f} s)"


def _results(metrics: EpochMetrics) -> str:
    accuracies = {"val acc": metrics.val_acc, "test acc": metrics.test_acc}
    known = "".join(f", {name} {value:.3f}" for name, value in accuracies.items() if value is not None)
    loss = f"{metrics.train_loss:.3f}" if metrics.train_loss < 1e4 else f"{metrics.train_loss:.3g}"
    return f"train loss {loss}, train acc {metrics.train_acc:.3f}{known}"


def result_lines(record: RunRecord) -> list[str]:
    """Returns the tutorial's two lines, the second of them for both ways to count seconds."""
    last = record.metrics[-1]
    num_examples = record.num_train_images * record.completed_epochs
    step_seconds = sum(metrics.step_seconds for metrics in record.metrics)
    rate, wall_rate = num_examples / step_seconds, num_examples / record.wall_seconds
    return [
        _results(last),
        f"{rate:.1f} examples/sec on {record.device} (training steps alone, as the tutorial counts)",
        f"{wall_rate:.1f} examples/sec on {record.device} (wall clock, with data loading and evaluation)",
    ]


# Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom.
T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Spread(NamedTuple):
    """One result of the last epoch over two seeds or more."""

    mean: float
    sd: float  # sample standard deviation: how far one run is from another
    interval: tuple[float, float]  # of 95 %, around the mean: where many more seeds would bring it


def spreads_of(records: Sequence[RunRecord]) -> dict[str, Spread]:
    """Returns mean, standard deviation and 95 % interval of each result that the tutorial names."""
    return {name: _spread([getattr(record.metrics[-1], name) for record in records]) for name in TUTORIAL}


def _spread(values: Sequence[float]) -> Spread:
    mean, sd = statistics.mean(values), statistics.stdev(values)
    freedom = len(values) - 1
    # Beyond the table its last value is used: too wide by at most 4 %.
    t = T_95[min(freedom, len(T_95)) - 1]
    half_width = t * sd / math.sqrt(len(values))
    return Spread(mean=mean, sd=sd, interval=(mean - half_width, mean + half_width))


def seeds_table(records: Sequence[RunRecord]) -> str:
    """Renders one line per seed, then their spread, then the tutorial's figures."""
    rows = [["seed", *(name.replace("_", " ") for name in TUTORIAL)]]
    rows += [[str(each.seed), *(f"{getattr(each.metrics[-1], name):.4f}" for name in TUTORIAL)] for each in records]
    spreads = spreads_of(records).values()
    rows.append(["mean ± sd", *(f"{each.mean:.4f} ± {each.sd:.4f}" for each in spreads)])
    rows.append(["95 %", *("{:.4f} to {:.4f}".format(*each.interval) for each in spreads)])
    if records[0].recipe.name == "tutorial":
        rows.append(["tutorial", *(f"{value:.3f}" for value in TUTORIAL.values())])
    return aligned(rows)


def seeds_json(records: Sequence[RunRecord]) -> bytes:
    """Returns the same as JSON, with what is needed to judge it."""
    first, spreads = records[0], spreads_of(records)
    document = {
        "seeds": [{"seed": record.seed, **dataclasses.asdict(record.metrics[-1])} for record in records],
        "mean": {name: spread.mean for name, spread in spreads.items()},
        "standard_deviation": {name: spread.sd for name, spread in spreads.items()},
        "interval_95": {name: spread.interval for name, spread in spreads.items()},
        "tutorial": TUTORIAL,
        "recipe": dataclasses.asdict(first.recipe),
        "hardware": first.hardware,
        "device": first.device,
        "versions": first.versions,
    }
    return (json.dumps(document, indent=2) + "\n").encode()
