"""Targets: a row for each measure, with what the figures say and what each front end should reach."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from atelier.tables import aligned, spread
from loadtest.bench.contenders import CPP_ECHO, INFER, PYTHON_ECHO
from loadtest.bench.measure import Figures
from loadtest.bench.overload import Runs, overload_rows
from loadtest.bench.rows import Row, shown

NATIVE, GRPCIO = "native", "grpcio"
SINGLE = "1 image, 128 in flight"
GOODPUT = {NATIVE: (0.9, 5.0)}  # the least past saturation, of its best up to it; and ms that a refusal may take


class Measure(NamedTuple):
    """One row of each front end that has this figure and its yardstick."""

    what: str
    unit: str
    figure: str
    targets: Mapping[str, float] = {}  # by front end: the least, or without a yardstick in requests or images the most
    yardstick: str = ""  # {} is the front end
    is_limit: bool = False


MEASURES = (
    Measure(SINGLE, "requests/s", "1", {NATIVE: 0.30}, f"{CPP_ECHO}, 1"),
    Measure(f"{SINGLE}, beside Python", "requests/s", "1", {GRPCIO: 0.7}, f"{PYTHON_ECHO}, 1"),
    Measure(f"{SINGLE}, beside grpcio", "requests/s", "1", {NATIVE: 3.5}, f"{GRPCIO}, 1"),
    Measure("the same, CPU time of a request", "us", "CPU us", {NATIVE: 45}, is_limit=True),
    Measure("the same, p50", "ms", "p50 ms", is_limit=True),
    Measure("the same, p99", "ms", "p99 ms", {NATIVE: 8}, is_limit=True),
    Measure(f"{SINGLE}, {INFER} beside Classify", "requests/s", f"{INFER}, 1", {NATIVE: 0.9}, "{}, 1"),
    Measure("one at a time, p50", "us", "alone us", {NATIVE: 1.15}, f"{CPP_ECHO} + raw, alone us", is_limit=True),
    Measure("64 images, 32 in flight", "images/s", "64", {NATIVE: 0.95, GRPCIO: 0.75}, "raw beside {}, 64"),
    Measure("start to first answer", "s", "first answer s", {NATIVE: 0.4, GRPCIO: 1.5}, is_limit=True),
    Measure("memory after 1 to 6 million images", "MB", "resident MB", {NATIVE: 110, GRPCIO: 180}, is_limit=True),
    Measure("its growth from the first to the sixth", "%", "growth", {NATIVE: 2, GRPCIO: 2}, is_limit=True),
)


def serving_rows(figures: Figures, names: Sequence[str]) -> list[Row]:
    """Makes the rows of every front end of the run."""
    pairs = zip(figures[f"{CPP_ECHO}, alone us"], figures["raw, 1, us"], strict=True)
    figures[f"{CPP_ECHO} + raw, alone us"] = [echo + raw for echo, raw in pairs]
    for name in names:
        resident_mb = figures[f"{name}, resident MB"]
        figures[f"{name}, growth"] = [100 * (resident_mb[-1] / resident_mb[0] - 1)]
    rows = [_row(figures, name, measure) for name in names for measure in MEASURES if _has(figures, name, measure)]
    return [*rows, Row(name=f"{CPP_ECHO}: CPU time of a request", unit="us", ours=figures[f"{CPP_ECHO}, CPU us"])]


def _has(figures: Figures, name: str, measure: Measure) -> bool:
    yardstick = measure.yardstick.format(name)
    return not yardstick or (yardstick in figures and yardstick != f"{name}, {measure.figure}")


def _row(figures: Figures, name: str, measure: Measure) -> Row:
    yardstick = measure.yardstick.format(name)
    return Row(
        name=f"{name}: {measure.what}",
        unit=measure.unit,
        ours=figures[f"{name}, {measure.figure}"],
        yardstick=figures[yardstick] if yardstick else None,
        yardstick_name=yardstick.rpartition(",")[0],
        target=measure.targets.get(name),
        is_limit=measure.is_limit,
    )


def goodput_rows(runs: Mapping[str, Runs]) -> list[Row]:
    """Makes the rows past saturation of every server: a front end, or one with its device behind a comma."""
    rows = []
    for name, of_server in runs.items():
        least_share, refusal_ms = GOODPUT.get(name.partition(",")[0], (None, None))
        rows += overload_rows(name, of_server, least_share=least_share, refusal_ms=refusal_ms)
    return rows


def training_row(figures: Figures) -> Row:
    """Makes the row of training."""
    return Row(
        name="training, two epochs with evaluation",
        unit="examples/s",
        ours=figures["training"],
        yardstick=figures["tutorial's loop"],
        yardstick_name="the tutorial's loop",
        target=3.0,
    )


def contenders_table(figures: Figures, names: Sequence[str], absent: Mapping[str, str]) -> str:
    """Renders side by side all that were asked one image a request, 128 in flight; and why others were not."""
    ratio = f"of the {CPP_ECHO}"
    rows = [("contender", "requests/s (lowest to highest)", ratio, "p50, ms", "p99, ms", "CPU, us", "MB")]
    for name in names:
        rates = figures[f"{name}, 1"]
        ratios = [ours / echo for ours, echo in zip(rates, figures[f"{CPP_ECHO}, 1"], strict=True)]
        others = [figures[f"{name}, {what}"] for what in ("p50 ms", "p99 ms", "CPU us", "MB")]
        of_echo, p50, p99, cpu, memory = (shown(statistics.median(values)) for values in (ratios, *others))
        rows.append((name, spread(rates, shown), of_echo, p50, p99, cpu, memory))
    rows += [(name, f"absent: {why}", "", "", "", "", "") for name, why in absent.items()]
    return aligned(rows)
