"""The table: one measure a row, ours beside its yardstick, and whether the target is met."""

import statistics
from dataclasses import dataclass

from atelier.tables import aligned

HEADER = ("measure", "ours", "yardstick", "ratio or figure (lowest to highest)", "target")


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
        return self.name, ours, yardstick, with_spread(self.values), self.verdict


def table(rows: list[Row]) -> str:
    """Renders the rows as a Markdown table, for a terminal as for README."""
    return aligned([HEADER, *(row.cells() for row in rows)])


def with_spread(values: list[float]) -> str:
    """Formats the median, and between brackets the lowest and the highest."""
    return f"{shown(statistics.median(values))} ({shown(min(values))} to {shown(max(values))})"


def shown(figure: float) -> str:
    """Formats three digits, or all before the point."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"
