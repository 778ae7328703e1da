"""Aligns tables for people: Markdown, which reads well in a terminal too."""

import statistics
from collections.abc import Callable, Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Renders rows of text as one Markdown table; the first row is the header."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def spread(values: Sequence[float], shown: int | Callable[[float], str] = 2) -> str:
    """Formats `median (lowest to highest)`; `shown` is how a figure is, or the digits behind its point."""
    low, middle, high = (
        shown(value) if callable(shown) else f"{value:,.{shown}f}"
        for value in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} ({low} to {high})"
