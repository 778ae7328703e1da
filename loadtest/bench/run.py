"""Serving beside echo servers, raw ONNX Runtime and other model servers, and training beside the tutorial's loop.

Absolute figures move with whatever else the machine does, so each repeat measures every contender in turn and what
counts is the ratio within a repeat.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atelier.files import write_atomically
from atelier.machine import machine_facts
from loadtest.bench.chart import draw
from loadtest.bench.contenders import contenders_from
from loadtest.bench.h2load import ALONE, BATCHED, SINGLE
from loadtest.bench.measure import Figures, measure_goodput, measure_serving, measure_starts, measure_training
from loadtest.bench.overload import SIZES, Runs
from loadtest.bench.peers.known import PEERS
from loadtest.bench.peers.start import running_peers
from loadtest.bench.rows import Row, table
from loadtest.bench.targets import contenders_table, goodput_rows, serving_rows, training_row
from serving.manifest import ONNX_NAME, find_version

PACKAGES = ("grpcio", "onnxruntime", "numpy", "protobuf", "torch")
LOADS = {"alone": ALONE, "single": SINGLE, "batched": BATCHED}


class Bench:
    """One run: what it measured, and what is said of it."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self._settings = settings
        self.figures: Figures = {}
        self.names: list[str] = []  # of all contenders
        self.absent: dict[str, str] = {}  # peers, and why
        self.rows: list[Row] = []
        self.goodput: Mapping[str, Runs] = {}

    def measure(self) -> None:
        """Serving, then what is past saturation, starts and training, as far as wanted."""
        settings = self._settings
        with contenders_from(settings.repository) as contenders:
            model = find_version(settings.repository, "lenet5")[0] / ONNX_NAME
            wanted = tuple(PEERS) if settings.peers else ()
            with running_peers(model, contenders.raw.infer, wanted) as (peers, self.absent):
                self.names = [*contenders.targets, *peers]
                self.figures = measure_serving(contenders, peers, settings.repeats, settings.scale)
            served = list(contenders.served)
            if settings.overload_repeats:
                peaks = {name: self._peaks(name) for name in served}
                self.goodput = measure_goodput(
                    contenders, settings.repository, peaks, settings.overload_repeats, settings.scale
                )
        self.figures |= measure_starts(settings.repository, settings.repeats)
        self.rows = serving_rows(self.figures, served) + goodput_rows(self.goodput)
        if settings.training_repeats:
            self.figures |= measure_training(settings.training_repeats, settings.loader_workers)
            self.rows.append(training_row(self.figures, settings.loader_workers))

    def _peaks(self, name: str) -> dict[int, float]:
        """Requests/s of a server, by the images of each."""
        return {size: statistics.median(self.figures[f"{name}, {size}"]) / size for size in SIZES}

    def print(self, facts: Mapping[str, str]) -> None:
        """For people."""
        settings = self._settings
        print(f"{facts['cpu']}; Python {facts['python']}; {facts['packages']}")
        print(f"{settings.repeats} repeats after one warm-up, {settings.training_repeats} of training; medians")
        print(f"{sum(self.figures['requests']):.0f} requests sent to the served model, all of them answered\n")
        print(table(self.rows) + "\n")
        print(contenders_table(self.figures, self.names, self.absent))

    def document(self, facts: Mapping[str, str], measured_at: str) -> dict[str, Any]:
        """For machines: all figures."""
        settings = self._settings
        return {
            "machine": facts,
            "date": measured_at,
            "repeats": settings.repeats,
            "warm_ups": 1,
            "scale": settings.scale,
            "requests": sum(self.figures["requests"]),
            "loads": {name: asdict(load) for name, load in LOADS.items()},
            "rows": [asdict(row) | {"is_met": row.is_met} for row in self.rows],
            "contenders": self.names,
            "absent": self.absent,
            "figures": self.figures,
            "goodput": [
                {
                    "server": name,
                    "images_per_request": size,
                    "deadline_ms": deadline_ms,
                    "factor": factor,
                    "repeats": [asdict(run) for run in runs],
                }
                for name, of_server in self.goodput.items()
                for (size, deadline_ms, factor), runs in of_server.items()
            ],
        }


def main(arguments: list[str]) -> int:
    """`python -m loadtest.bench`."""
    settings = _parser().parse_args(arguments)
    bench = Bench(settings)
    bench.measure()
    facts, measured_at = machine_facts(PACKAGES), datetime.now(UTC).date().isoformat()
    bench.print(facts)
    if settings.report:
        document = bench.document(facts, measured_at)
        write_atomically(settings.report, (json.dumps(document, indent=1) + "\n").encode())
    if settings.chart:
        caption = f"{facts['cpu']}, {measured_at}; h2load on the same cores; medians of {settings.repeats} repeats"
        draw(bench.figures, bench.names, caption, settings.chart)
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
        "--overload-repeats", type=int, default=3, help="how often each rate past saturation; 0 leaves them out"
    )
    parser.add_argument(
        "--training-repeats", type=int, default=5, help="how often both train two epochs; 0 leaves it out"
    )
    parser.add_argument("--loader-workers", type=int, default=0, help="processes of the tutorial's DataLoader")
    parser.add_argument(
        "--peers", action="store_true", help="install TorchServe, KServe and LitServe in .cache/peers too"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="shorter runs, for a rehearsal: 0.05")
    parser.add_argument("--report", type=Path, help="also write all figures as JSON: reports/bench-<date>.json")
    parser.add_argument("--chart", type=Path, help="also draw the contenders: docs/peers.svg")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser
