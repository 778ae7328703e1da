"""The table, one measure a row, ours beside its yardstick, and whether the target is met; and a chart of contenders."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atelier.tables import aligned, spread
from loadtest.bench.contenders import CPP_ECHO, front_ends

HEADER = ("measure", "ours", "yardstick", "ratio or figure (lowest to highest)", "target")
OURS, LIMIT, OTHERS = "#1f6feb", "#b0b0b0", "#d9822b"
# Triton's build cannot be shipped here; its ratio was measured elsewhere, on two cores, beside the same echo.
TRITON = f"Triton 2.51 (ONNX Runtime), measured elsewhere on two cores: 0.22 to 0.27 of the {CPP_ECHO}."


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


def draw(figures: Mapping[str, Sequence[float]], names: Sequence[str], caption: str, path: Path) -> None:
    """Writes the chart, as SVG by the name's ending; bars are medians, whiskers the lowest and highest repeat."""
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
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _label(name: str) -> str:
    if name in front_ends():
        return f"Atelier, {name}"
    return f"{name}, the limit" if name == CPP_ECHO else name


def _colour(name: str) -> str:
    return OURS if name in front_ends() else LIMIT if name.endswith("echo") else OTHERS
