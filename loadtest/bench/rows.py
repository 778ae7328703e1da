"""The tables, one measure a row, with what each front end should reach, or one contender; and the contenders' chart."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from atelier.tables import aligned, spread
from loadtest.bench.contenders import CPP_ECHO, INFER, PYTHON_ECHO
from loadtest.front_ends import FRONT_ENDS, GRPCIO, NATIVE

Figures = dict[str, list[float]]  # one a repeat

HEADER = ("measure", "ours", "yardstick", "ratio or figure (lowest to highest)", "target")
OURS, LIMIT, OTHERS = "#1f6feb", "#b0b0b0", "#d9822b"
# Triton's build cannot be shipped here; its ratio was measured elsewhere, on two cores, beside the same echo.
TRITON = f"Triton 2.51 (ONNX Runtime), measured elsewhere on two cores: 0.22 to 0.27 of the {CPP_ECHO}."
ONE_IMAGE = "1 image, 128 in flight"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measure, taken `len(ours)` times.

    With a yardstick, what counts is the ratio within each repeat: absolute figures move with whatever else the machine
    does. Without one, it is our figure itself.
    """

    name: str
    unit: str
    ours: list[float]
    yardstick: list[float] | None = None
    yardstick_name: str = ""
    target: float | None = None
    is_limit: bool = False  # the target is the most that may be, not the least
    invalid: str = ""  # why these figures say nothing; empty if they do

    @property
    def values(self) -> list[float]:
        """What the target is for: the ratios, or our figures."""
        if self.yardstick is None:
            return self.ours
        return [ours / yardstick for ours, yardstick in zip(self.ours, self.yardstick, strict=True)]

    @property
    def is_met(self) -> bool | None:
        """By the median; None if there is no target, or the figures say nothing."""
        if self.target is None or self.invalid:
            return None
        median = statistics.median(self.values)
        return median <= self.target if self.is_limit else median >= self.target

    @property
    def verdict(self) -> str:
        """The target and what became of it, in words."""
        if self.invalid:
            return f"INVALID: {self.invalid}"
        if self.target is None:
            return ""
        bound = "at most" if self.is_limit else "at least"
        return f"{bound} {self.target:g}: {'met' if self.is_met else 'MISSED'}"

    def cells(self) -> tuple[str, str, str, str, str]:
        """Returns name, ours, yardstick, the value with its spread, and the verdict."""
        yardstick = ""
        if self.yardstick is not None:
            yardstick = f"{shown(statistics.median(self.yardstick))} ({self.yardstick_name})"
        ours = f"{shown(statistics.median(self.ours))} {self.unit}"
        return self.name, ours, yardstick, spread(self.values, shown), self.verdict


def table(rows: list[Row]) -> str:
    """Renders the rows as a Markdown table, for a terminal as for README."""
    return aligned([HEADER, *(row.cells() for row in rows)])


def shown(figure: float) -> str:
    """Formats three digits, or all before the point."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"


# --- Measures of the front ends, and contenders side by side ----------------------------------------------------------


class Measure(NamedTuple):
    """One row of each front end that has this figure and its yardstick."""

    what: str
    unit: str
    figure: str
    targets: Mapping[str, float] = {}  # by front end: the least, or without a yardstick in requests or images the most
    yardstick: str = ""  # {} is the front end
    is_limit: bool = False


MEASURES = (
    Measure(ONE_IMAGE, "requests/s", "1", {NATIVE: 0.30}, f"{CPP_ECHO}, 1"),
    Measure(f"{ONE_IMAGE}, beside Python", "requests/s", "1", {GRPCIO: 0.7}, f"{PYTHON_ECHO}, 1"),
    Measure(f"{ONE_IMAGE}, beside grpcio", "requests/s", "1", {NATIVE: 3.5}, f"{GRPCIO}, 1"),
    Measure("the same, CPU time of a request", "us", "CPU us", {NATIVE: 45}, is_limit=True),
    Measure("the same, p50", "ms", "p50 ms", is_limit=True),
    Measure("the same, p99", "ms", "p99 ms", {NATIVE: 8}, is_limit=True),
    Measure(f"{ONE_IMAGE}, {INFER} beside Classify", "requests/s", f"{INFER}, 1", {NATIVE: 0.9}, "{}, 1"),
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


def draw(figures: Mapping[str, Sequence[float]], names: Sequence[str], caption: str, path: Path) -> None:
    """Writes the chart as SVG; bars are medians, whiskers the lowest and highest repeat."""
    import matplotlib as mpl  # only when there is something to draw: it takes a while to import
    from matplotlib.figure import Figure

    rates = {name: figures[f"{name}, 1"] for name in names}
    ordered = sorted(rates, key=lambda name: statistics.median(rates[name]))
    medians = [statistics.median(rates[name]) for name in ordered]
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "atelier"}):
        figure = Figure(figsize=(8, 1.3 + 0.36 * len(ordered)), layout="constrained")
        axes = figure.subplots()
        below = [median - min(rates[name]) for name, median in zip(ordered, medians, strict=True)]
        above = [max(rates[name]) - median for name, median in zip(ordered, medians, strict=True)]
        labels = [_label(name) for name in ordered]
        axes.barh(labels, medians, xerr=(below, above), color=[_colour(name) for name in ordered], ecolor="#555555")
        for place, (name, median) in enumerate(zip(ordered, medians, strict=True)):
            end, shift = (max(rates[name]), place), (4, 0)
            axes.annotate(f"{median:,.0f}", end, shift, textcoords="offset points", va="center", fontsize=9)
        axes.set_xlim(0, 1.15 * max(max(values) for values in rates.values()))
        axes.set_title("Requests per second: one image each, 128 in flight", loc="left", fontsize=11)
        axes.xaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
        figure.supxlabel(f"{caption}\n{TRITON}", fontsize=7.5, x=0.01, ha="left", color="#555555")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def _is_ours(name: str) -> bool:
    return name.partition(",")[0] in FRONT_ENDS


def _label(name: str) -> str:
    if _is_ours(name):
        return f"Atelier, {name}"
    return f"{name}, the limit" if name == CPP_ECHO else name


def _colour(name: str) -> str:
    return OURS if _is_ours(name) else LIMIT if name.endswith("echo") else OTHERS
