"""What a training run says at its end: the tutorial's lines, and the spread over several seeds."""

import dataclasses
import json
import statistics
from collections.abc import Sequence

from training.record import EpochMetrics, RunRecord

SEEDS_NAME = "seeds.json"
# Dive into Deep Learning, section 7.6: one run, on a GPU.
TUTORIAL = {"train_loss": 0.347, "train_acc": 0.872, "test_acc": 0.852}


def epoch_line(record: RunRecord) -> str:
    """The last completed epoch's results."""
    last = record.metrics[-1]
    return f"epoch {last.epoch:>2}/{record.recipe.num_epochs}: {_results(last)} ({last.seconds:.1f} s)"


def _results(metrics: EpochMetrics) -> str:
    accuracies = {"val acc": metrics.val_acc, "test acc": metrics.test_acc}
    known = "".join(f", {name} {value:.3f}" for name, value in accuracies.items() if value is not None)
    return f"train loss {metrics.train_loss:.3f}, train acc {metrics.train_acc:.3f}{known}"


def result_lines(record: RunRecord) -> list[str]:
    """The tutorial's two lines, the second of them for both ways to count seconds."""
    last = record.metrics[-1]
    num_examples = record.num_train_images * record.completed_epochs
    step_seconds = sum(metrics.step_seconds for metrics in record.metrics)
    rate, wall_rate = num_examples / step_seconds, num_examples / record.wall_seconds
    return [
        _results(last),
        f"{rate:.1f} examples/sec on {record.device} (training steps alone, as the tutorial counts)",
        f"{wall_rate:.1f} examples/sec on {record.device} (wall clock, with data loading and evaluation)",
    ]


def spread(records: Sequence[RunRecord]) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation of each result of the last epoch over two runs or more."""
    results = {name: [getattr(record.metrics[-1], name) for record in records] for name in TUTORIAL}
    return {name: (statistics.mean(values), statistics.stdev(values)) for name, values in results.items()}


def seeds_table(records: Sequence[RunRecord]) -> str:
    """One line per seed, then their spread, then the tutorial's figures."""
    lines = [f"{'seed':<10}" + "".join(f"{name.replace('_', ' '):>16}" for name in TUTORIAL)]
    for record in records:
        results = "".join(f"{getattr(record.metrics[-1], name):>16.3f}" for name in TUTORIAL)
        lines.append(f"{record.seed:<10}{results}")
    lines.append(
        f"{'mean ± sd':<10}" + "".join(f"{f'{mean:.3f} ± {sd:.3f}':>16}" for mean, sd in spread(records).values())
    )
    lines.append(f"{'tutorial':<10}" + "".join(f"{value:>16.3f}" for value in TUTORIAL.values()))
    return "\n".join(lines)


def seeds_json(records: Sequence[RunRecord]) -> bytes:
    """The same as JSON, with what is needed to judge it."""
    first = records[0]
    document = {
        "seeds": [{"seed": record.seed, **dataclasses.asdict(record.metrics[-1])} for record in records],
        "mean": {name: mean for name, (mean, _) in spread(records).items()},
        "standard_deviation": {name: sd for name, (_, sd) in spread(records).items()},
        "tutorial": TUTORIAL,
        "recipe": dataclasses.asdict(first.recipe),
        "hardware": first.hardware,
        "device": first.device,
        "versions": first.versions,
    }
    return (json.dumps(document, indent=2) + "\n").encode()
