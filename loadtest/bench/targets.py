"""What the figures say, and what they should: a row for each measure, with the target of each front end."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atelier.tables import aligned
from loadtest.bench.contenders import CPP_ECHO, INFER, PYTHON_ECHO
from loadtest.bench.measure import Figures
from loadtest.bench.overload import Runs, overload_rows
from loadtest.bench.rows import Row, shown, with_spread


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Of one front end; None where it has none."""

    over_cpp_echo: float | None = None
    over_python_echo: float | None = None
    over_grpcio: float | None = None
    over_classify: float | None = None
    cpu_us: float | None = None
    p99_ms: float | None = None
    alone: float | None = None  # at most, over the C++ echo and one raw inference
    over_raw: float | None = None  # 64 images a request
    first_answer_s: float | None = None
    memory_mb: float | None = None
    growth_percent: float | None = 2.0
    goodput_share: float | None = None
    refusal_ms: float | None = None


TARGETS = {
    "native": Targets(
        over_cpp_echo=0.30,
        over_grpcio=3.5,
        over_classify=0.9,
        cpu_us=45,
        p99_ms=8,
        alone=1.15,
        over_raw=0.95,
        first_answer_s=0.4,
        memory_mb=110,
        goodput_share=0.9,
        refusal_ms=5,
    ),
    "grpcio": Targets(over_python_echo=0.7, over_raw=0.75, first_answer_s=1.5, memory_mb=180),
}


def serving_rows(figures: Figures, names: Sequence[str]) -> list[Row]:
    """The rows of every front end of the run."""
    rows = [row for name in names for row in _rows_of(figures, name, "grpcio" in names and name != "grpcio")]
    echo = f"{CPP_ECHO}: CPU time of a request"
    return [*rows, Row(name=echo, unit="us", ours=figures[f"{CPP_ECHO}, CPU us"])]


def _rows_of(figures: Figures, name: str, is_beside_grpcio: bool) -> list[Row]:
    targets = TARGETS[name]

    def row(what: str, unit: str, ours: str, target: float | None, yardstick: str = "", is_limit: bool = False) -> Row:
        return Row(
            name=f"{name}: {what}",
            unit=unit,
            ours=figures[f"{name}, {ours}"],
            yardstick=figures[yardstick] if yardstick else None,
            yardstick_name=yardstick.rpartition(",")[0],
            target=target,
            is_limit=is_limit,
        )

    pairs = zip(figures[f"{CPP_ECHO}, alone us"], figures["raw, 1, us"], strict=True)
    figures[f"{CPP_ECHO} + raw, alone us"] = [echo + raw for echo, raw in pairs]
    resident_mb = figures[f"{name}, resident MB"]
    figures[f"{name}, growth"] = [100 * (resident_mb[-1] / resident_mb[0] - 1)]
    single, limit = "1 image, 128 in flight", True
    return [
        row(single, "requests/s", "1", targets.over_cpp_echo, f"{CPP_ECHO}, 1"),
        row(f"{single}, beside Python", "requests/s", "1", targets.over_python_echo, f"{PYTHON_ECHO}, 1"),
        *([row(f"{single}, beside grpcio", "requests/s", "1", targets.over_grpcio, "grpcio, 1")] * is_beside_grpcio),
        row("the same, CPU time of a request", "us", "CPU us", targets.cpu_us, is_limit=limit),
        row("the same, p50", "ms", "p50 ms", None, is_limit=limit),
        row("the same, p99", "ms", "p99 ms", targets.p99_ms, is_limit=limit),
        row(f"{single}, {INFER} beside Classify", "requests/s", f"{INFER}, 1", targets.over_classify, f"{name}, 1"),
        row("one at a time, p50", "us", "alone us", targets.alone, f"{CPP_ECHO} + raw, alone us", limit),
        row("64 images, 32 in flight", "images/s", "64", targets.over_raw, f"raw beside {name}, 64"),
        row("start to first answer", "s", "first answer s", targets.first_answer_s, is_limit=limit),
        row("memory after 1 to 6 million images", "MB", "resident MB", targets.memory_mb, is_limit=limit),
        row("its growth from the first to the sixth", "%", "growth", targets.growth_percent, is_limit=limit),
    ]


def goodput_rows(runs: Mapping[str, Runs]) -> list[Row]:
    """Past saturation, of every server: a front end, or one with its device behind a comma."""
    rows = []
    for name, of_server in runs.items():
        targets = TARGETS[name.partition(",")[0]]
        rows += overload_rows(name, of_server, least_share=targets.goodput_share, refusal_ms=targets.refusal_ms)
    return rows


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


def contenders_table(figures: Figures, names: Sequence[str], absent: Mapping[str, str]) -> str:
    """All that were asked the same, side by side: one image a request, 128 in flight. And who could not be, and why."""
    header = (
        "contender",
        "requests/s (lowest to highest)",
        f"of the {CPP_ECHO}",
        "p50, ms",
        "p99, ms",
        "CPU, us",
        "MB",
    )
    rows = [header]
    for name in names:
        ratios = [ours / echo for ours, echo in zip(figures[f"{name}, 1"], figures[f"{CPP_ECHO}, 1"], strict=True)]
        medians = (
            shown(statistics.median(figures[f"{name}, {what}"])) for what in ("p50 ms", "p99 ms", "CPU us", "MB")
        )
        p50_ms, p99_ms, cpu_us, memory_mb = medians
        rows.append(
            (
                name,
                with_spread(figures[f"{name}, 1"]),
                shown(statistics.median(ratios)),
                p50_ms,
                p99_ms,
                cpu_us,
                memory_mb,
            )
        )
    rows += [(name, f"absent: {why}", "", "", "", "", "") for name, why in absent.items()]
    return aligned(rows)
