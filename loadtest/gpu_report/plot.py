"""Latency over batch size, as a picture for the GPU report."""

import statistics
from pathlib import Path

from loadtest.gpu_report.pages import Document, results_of


def save_plot(document: Document, path: Path) -> bool:
    """Latency over batch size, a line per backend and precision; False where there is nothing to draw."""
    results = list(results_of(document, "latency"))
    if not results:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for result in results:
        sizes = [row["batch_size"] for row in result["rows"]]
        medians = [statistics.median(row["latency_us"]) for row in result["rows"]]
        axes.plot(sizes, medians, marker="o", label=f"{result['backend']} {result['precision']}")
    axes.set(xscale="log", yscale="log", xlabel="images in a batch", ylabel="latency in microseconds")
    axes.set_title(f"{'REHEARSAL on a CPU, ' if document['rehearsal'] else ''}{document['date']}")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return True
