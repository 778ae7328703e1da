"""One bar chart of all contenders: requests per second, one image a request, 128 in flight."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from loadtest.bench.contenders import CPP_ECHO, front_ends

OURS, LIMIT, OTHERS = "#1f6feb", "#b0b0b0", "#d9822b"
# Triton's build cannot be shipped here; its ratio was measured elsewhere, on two cores, beside the same echo.
TRITON = f"Triton 2.51 (ONNX Runtime), measured elsewhere on two cores: 0.22 to 0.27 of the {CPP_ECHO}."


def draw(figures: Mapping[str, Sequence[float]], names: Sequence[str], caption: str, path: Path) -> None:
    """Writes the chart, as SVG by the name's ending; bars are medians, whiskers the lowest and highest repeat."""
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
