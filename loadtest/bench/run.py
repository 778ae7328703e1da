"""Serving beside a bare gRPC echo server and raw ONNX Runtime, and training beside the tutorial's loop, in one run.

Absolute figures move with whatever else the machine does, so each repeat measures every contender in turn and what
counts is the ratio within a repeat.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from atelier.machine import machine_facts
from loadtest.bench.contenders import check_count, contenders_from, seconds_to_first_answer, steps
from loadtest.bench.h2load import BATCHED, MILLION, SINGLE, Generator
from loadtest.bench.rows import Row, table
from loadtest.bench.training_speed import training_rates
from loadtest.memory import resident_bytes_of

PACKAGES = ("grpcio", "onnxruntime", "numpy", "protobuf", "torch")
Figures = dict[str, list[float]]  # by what was measured; one a repeat


def measure_serving(repository: Path, repeats: int, scale: float) -> tuple[Figures, int]:
    """Runs every contender `repeats` times, in turn; the figures, and how many requests were sent and answered."""
    generator = Generator(scale)
    figures: Figures = defaultdict(list)
    with contenders_from(repository) as contenders:
        served = contenders.servers["served"]
        round_of_steps = steps(contenders, generator, scale)
        for step in round_of_steps.values():  # warm-up, not counted
            step()
        with tqdm(total=repeats * len(round_of_steps), unit="run", disable=None) as progress:
            for _ in range(repeats):
                for name, step in round_of_steps.items():
                    progress.set_description(name)
                    for figure, value in step().items():
                        figures[figure].append(value)
                    progress.update()
        for _ in range(2):
            generator.offer(served, MILLION)
            figures["resident, MB"].append(resident_bytes_of(served.process.pid) / 1e6)
        generator.count(served, 1)  # the one that told the size of a reply
        num_sent = sum(
            check_count(contenders.servers[name], generator.num_sent[contenders.servers[name].target])
            for name in ("served", "served without metrics", "served by one")
        )
    for _ in range(repeats):
        figures["first answer, s"].append(seconds_to_first_answer(repository))
    return figures, num_sent


def measure_training(repeats: int, num_workers: int) -> Figures:
    """Examples/s of ours and of the tutorial's loop."""
    figures: Figures = {"training": [], "tutorial's loop": []}
    for _ in tqdm(range(repeats), desc="training, two epochs each", unit="run", disable=None):
        ours, tutorials = training_rates(num_workers, num_epochs=2)
        figures["training"].append(ours)
        figures["tutorial's loop"].append(tutorials)
    return figures


def serving_rows(figures: Figures) -> list[Row]:
    """What the figures say of serving."""

    def row(name: str, unit: str, ours: str, yardstick: str, target: float | None, is_limit: bool = False) -> Row:
        return Row(
            name=name,
            unit=unit,
            ours=figures[ours],
            yardstick=figures[yardstick],
            yardstick_name=yardstick.split(",")[0],
            target=target,
            is_limit=is_limit,
        )

    pairs = zip(figures["echo on uvloop, p50, us"], figures["raw, 1, us"], strict=True)
    figures["echo on uvloop + raw, p50"] = [echo + raw for echo, raw in pairs]
    resident_mb = figures["resident, MB"]
    growth = [100 * (resident_mb[-1] / resident_mb[0] - 1)]
    return [
        row("1 image a request, 128 in flight", "requests/s", "served, 1", "echo, 1", 0.7),
        row("the same", "requests/s", "served, 1", "echo on uvloop, 1", 0.8),
        row("the same, metrics on over metrics off", "requests/s", "served, 1", "served without metrics, 1", 0.98),
        row("the same, one process (--workers 1)", "requests/s", "served by one, 1", "echo, 1", 0.7),
        row("the same, one process", "requests/s", "served by one, 1", "echo on uvloop, 1", None),
        row("64 images a request, 32 in flight", "images/s", "served, 64", "raw, 64", 0.9),
        row("the same, one process", "images/s", "served by one, 64", "raw, 64", 0.75),
        row("one request at a time, p50", "us", "served, p50, us", "echo on uvloop + raw, p50", 1.2, is_limit=True),
        row("CPU time of 1,000 requests of 1 image", "s", "served, CPU", "echo on uvloop, CPU", 1.3, is_limit=True),
        Row(name="start to first answer", unit="s", ours=figures["first answer, s"], target=1.5, is_limit=True),
        Row(name="memory after 2 and 3 million images", unit="MB", ours=resident_mb, target=180, is_limit=True),
        Row(name="its growth between the two", unit="%", ours=growth, target=2, is_limit=True),
    ]


def training_row(figures: Figures, num_workers: int) -> Row:
    """What the figures say of training."""
    return Row(
        name="training, two epochs with evaluation",
        unit="examples/s",
        ours=figures["training"],
        yardstick=figures["tutorial's loop"],
        yardstick_name=f"the tutorial's loop, {num_workers} loader processes",
        target=3.0,
    )


def main(arguments: list[str]) -> int:
    """`python -m loadtest.bench`."""
    settings = _parser().parse_args(arguments)
    figures, num_sent = measure_serving(settings.repository, settings.repeats, settings.scale)
    rows = serving_rows(figures)
    if settings.training_repeats:
        figures |= measure_training(settings.training_repeats, settings.loader_workers)
        rows.append(training_row(figures, settings.loader_workers))
    facts = machine_facts(PACKAGES)
    print(f"{facts['cpu']}; Python {facts['python']}; {facts['packages']}")
    print(f"{settings.repeats} repeats after one warm-up, {settings.training_repeats} of training; medians")
    print(f"{num_sent} requests sent to the served model, all of them answered\n")
    print(table(rows))
    if settings.report:
        document = {"machine": facts, "repeats": settings.repeats, "warm_ups": 1, "scale": settings.scale}
        document |= {"requests": num_sent, "loads": {"single": asdict(SINGLE), "batched": asdict(BATCHED)}}
        document |= {"rows": [asdict(row) | {"is_met": row.is_met} for row in rows], "figures": figures}
        settings.report.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("artifacts/models"), help="what export wrote")
    parser.add_argument("--repeats", type=int, default=7, help="how often each contender of serving runs, in turn")
    parser.add_argument(
        "--training-repeats", type=int, default=5, help="how often both train two epochs; 0 leaves it out"
    )
    parser.add_argument("--loader-workers", type=int, default=0, help="processes of the tutorial's DataLoader")
    parser.add_argument("--scale", type=float, default=1.0, help="fewer requests, for a rehearsal: 0.05")
    parser.add_argument("--report", type=Path, help="also write all figures as JSON: reports/bench-<date>.json")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser
