"""The table: one measure a row, ours beside its yardstick, and whether the target is met."""

import statistics
from dataclasses import dataclass


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

    @property
    def values(self) -> list[float]:
        """What the target is for: the ratios, or our figures."""
        if self.yardstick is None:
            return self.ours
        return [ours / yardstick for ours, yardstick in zip(self.ours, self.yardstick, strict=True)]

    @property
    def is_met(self) -> bool | None:
        """By the median; None where there is no target."""
        if self.target is None:
            return None
        median = statistics.median(self.values)
        return median <= self.target if self.is_limit else median >= self.target

    def cells(self) -> tuple[str, str, str, str, str]:
        """Name, ours, yardstick, the value with its spread, and the verdict."""
        low, middle, high = min(self.values), statistics.median(self.values), max(self.values)
        yardstick = ""
        if self.yardstick is not None:
            yardstick = f"{_shown(statistics.median(self.yardstick))} ({self.yardstick_name})"
        verdict = ""
        if self.target is not None:
            verdict = (
                f"{'at most' if self.is_limit else 'at least'} {self.target:g}: {'met' if self.is_met else 'MISSED'}"
            )
        spread = f"{_shown(middle)} ({_shown(low)} to {_shown(high)})"
        return self.name, f"{_shown(statistics.median(self.ours))} {self.unit}", yardstick, spread, verdict


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, for a terminal as for README."""
    cells = [("measure", "ours", "yardstick", "ratio or figure (lowest to highest)", "target")]
    cells += [row.cells() for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"
