"""Plots of the report, as SVG to put into a page: text stays text, and the page's width decides the size.

Each contender keeps its colour and line through all of them, so that they can be told apart in print too.
"""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from hdrh.histogram import HdrHistogram

from loadtest.reference import latency_of
from loadtest.results.findings import Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (5.2, 3.7)  # inches: at the width of a phone the letters are still readable
# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = {
    "PyTorch": "#d55e00",
    "ONNX Runtime": "#009e73",
    "TensorRT": "#cc79a7",
    "echo": "#7f7f7f",
    "served": "#0072b2",
}
LINES = {"single_stream": "-", "multi_stream": "--", "server": "-."}
NINES = (0.0, 50.0, 90.0, 99.0, 99.9)


def plots_from(findings: Findings) -> dict[str, str]:
    """Draws what was measured: SVG by title."""
    plots: dict[str, str] = {}
    has_lines = any(scenario in LINES for _, scenario in findings.runs)
    has_lines |= any(batch_size == 1 for _, batch_size in findings.references)
    for title, has_data, draw in (
        ("Latency", has_lines, _draw_latency),
        ("Rate sweep", bool(findings.sweep), _draw_sweep),
        ("What a batch buys", bool(findings.batch_rates), _draw_batch_rates),
    ):
        if has_data:
            plots[title] = _svg(title, findings, draw)
    return plots


def _svg(title: str, findings: Findings, draw: Callable[[Findings, "Figure"], None]) -> str:
    import matplotlib as mpl  # only when there is something to draw: it takes a while to import
    from matplotlib.figure import Figure

    # Names within an SVG count in the whole page: the salt keeps those of two plots apart.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 10.0}
    style |= {"font.family": ["DejaVu Sans", "sans-serif"], "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(findings, figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ', rf'<svg role="img" aria-label="{title}" \1', svg, count=1
    )


def _draw_latency(findings: Findings, figure: "Figure") -> None:
    """Draws cumulative distributions, the tail stretched: each nine takes as much room as the one before."""
    axes = figure.add_subplot()
    for (name, size), runs in findings.references.items():
        if size == 1:
            _distribution(axes, latency_of(runs), f"{name}, in process", COLOURS[name], ":")
    for (contender, scenario), run in findings.rows().items():
        if scenario in LINES:
            _distribution(
                axes, run.histograms["latency"], f"{contender}, {scenario}", COLOURS[contender], LINES[scenario]
            )
    if any(scenario == "server" for _, scenario in findings.runs):
        axes.axvline(findings.config.latency_p99_ms, color="black", linewidth=0.8)
        axes.annotate(
            " bound", (findings.config.latency_p99_ms, 0.02), rotation=90, va="bottom", ha="right", fontsize=8
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks([_nines(percentile) for percentile in NINES], [f"{percentile:g}" for percentile in NINES])
    axes.set(xlabel="latency, ms", ylabel="per cent of requests within", ylim=(0, 3.3))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.45, -0.17), ncols=2, frameon=False)


def _nines(percentile: float) -> float:
    return float(-np.log10(1.0 - percentile / 100.0))


def _distribution(axes: "Axes", histogram: HdrHistogram, label: str, colour: str, style: str) -> None:
    if not histogram.get_total_count():
        return
    percentiles = [100.0 * (1.0 - 10.0**-nines) for nines in np.linspace(0.0, 3.3, 150)]
    values_ms = [max(histogram.get_value_at_percentile(percentile), 1) / 1e3 for percentile in percentiles]
    axes.plot(
        values_ms, [_nines(percentile) for percentile in percentiles], style, color=colour, label=label, linewidth=1.6
    )


def _draw_sweep(findings: Findings, figure: "Figure") -> None:
    """Draws above what was answered in time of what was offered, below how long it took."""
    above, below = figure.subplots(2, sharex=True)
    offered = [run.load.target_qps for run in findings.sweep]
    bound_ms = findings.config.latency_p99_ms
    above.plot([0, max(offered)], [0, max(offered)], color="#bbbbbb", linewidth=1, label="all of it")
    goodput = [run.goodput_qps for run in findings.sweep]
    p99_ms = [max(run.percentile_ms(99.0), 1e-3) for run in findings.sweep]
    for axes, values in ((above, goodput), (below, p99_ms)):
        axes.plot(offered, values, "-", color=COLOURS["served"], linewidth=1.6)
        for run, x, y in zip(findings.sweep, offered, values, strict=True):
            face = "white" if run.invalid_because else COLOURS["served"]
            axes.plot([x], [y], "o", color=COLOURS["served"], markerfacecolor=face, markersize=5)
        axes.grid(alpha=0.3)
    above.set(ylabel=f"right within\n{bound_ms:g} ms, per s", ylim=(0, None))
    above.legend(fontsize=8, frameon=False)
    below.axhline(bound_ms, color="black", linewidth=0.8)
    below.set(ylabel="p99, ms", xlabel="offered, requests/s", yscale="log", xlim=(0, None))
    below.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    below.yaxis.set_minor_formatter(_minor)


def _draw_batch_rates(findings: Findings, figure: "Figure") -> None:
    """Draws images per second against the images of a batch in process, or of a request to the server."""
    axes = figure.add_subplot()
    for name, rates in findings.batch_rates.items():
        label = "served, images a request" if name == "served" else f"{name}, images a batch"
        marker = "o" if name == "served" else "s" if name == "PyTorch" else "^"
        axes.plot(list(rates), list(rates.values()), f"-{marker}", color=COLOURS[name], label=label, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_minor_formatter(_minor)
    axes.set(xlabel="images", ylabel="images/s")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)


def _minor(value: float, _position: float) -> str:
    """Labels only the twos and fives between the powers of ten."""
    return f"{value:,.6g}" if f"{value:.0e}"[0] in "25" else ""
