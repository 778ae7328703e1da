"""Renders the GPU report to read: tables in Markdown, and a plot of latencies."""

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from atelier.tables import aligned, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Document = dict[str, Any]
DASHES: dict[str, Any] = {"fp32": "-", "tf32": "--", "fp16": "-.", "bf16": ":", "int8": (0, (6, 1, 1, 1, 1, 1))}
REHEARSAL = "**This is a rehearsal on a CPU, shortened. No figure of it says anything about a GPU.**"


def markdown_from(document: Document, plot_stem: str = "") -> str:
    """Renders everything that was measured by now, with n and spread; and what was not, with the reason."""
    title = f"# GPU report, {document['date']}" + (f"\n\n{REHEARSAL}" if document["rehearsal"] else "")
    plot = f"![Latency over batch size]({plot_stem}.png)" if plot_stem else ""
    sections = (section(document) for section in (_host, _steps, _training, _parity, _latency, _serving))
    return "\n\n".join(filter(None, [title, *sections, plot])) + "\n"


def results_of(document: Document, kind: str) -> Iterator[dict[str, Any]]:
    """Yields the results of all steps of that kind that have one; one that failed may have found something out."""
    for step in document["steps"]:
        if step["result"] and step["name"].split()[0] == kind:
            yield step["result"]


def _section(title: str, note: str, header: Sequence[str], rows: Sequence[Sequence[str]], lines: str = "") -> str:
    table = aligned([header, *rows]) if rows else ""
    return "\n\n".join(filter(None, [f"## {title}", note, table, lines])) if table or lines else ""


def _spread(values: Sequence[float], digits: int = 0) -> str:
    return spread(values, digits) if len(values) > 1 else f"{values[0]:,.{digits}f}"


def _mebibytes(memory: dict[str, Any], *kinds: str) -> list[str]:
    held = [memory.get(kind) for kind in kinds]
    return ["not measured" if num_bytes is None else f"{num_bytes / (1 << 20):,.1f}" for num_bytes in held]


def _host(document: Document) -> str:
    rows: list[tuple[str, str]] = []
    for host in results_of(document, "host"):
        rows += [("CPU", host["cpu"]), *host["gpu"].items(), *host["versions"].items()]
    return _section("Host", "", ("hardware and versions", ""), rows)


def _steps(document: Document) -> str:
    steps = document["steps"]
    missing = [step["name"] for step in steps if step["status"] in ("running", "not run")]
    note = f"Not finished: {len(missing)} of {len(steps)} steps are missing, from `{missing[0]}` on." if missing else ""
    rows = [(step["name"], step["status"], f"{step['seconds']:.1f}") for step in steps]
    reasons = [f"- {step['name']}: {' '.join(step['reason'].split())}" for step in steps if step["reason"]]
    return _section("Steps", note, ("step", "outcome", "seconds"), rows, "\n".join(reasons))


def _training(document: Document) -> str:
    rows = []
    for result in results_of(document, "train"):
        runs = result["runs"]
        rates = (_spread([run[f"examples_per_s_{name}"] for run in runs]) for name in ("wall", "steady_steps"))
        peak = max((run["peak_memory"] for run in runs), key=lambda peak: int(peak["resident"]))
        held = _mebibytes(peak, "resident", "device_allocated")
        accuracy = _spread([run["test_acc"] for run in runs], 4)
        rows.append([result["recipe"], result["precision"], str(len(runs)), *rates, accuracy, *held])
    header = ("recipe", "precision", "seeds", "wall clock", "steps, steady", "test accuracy", "MiB", "MiB on the GPU")
    note = "Examples/s. The wall clock counts data loading and, on CUDA, capturing; steady leaves out the first epoch."
    note += " Memory is the most that was held, on the GPU what PyTorch gave out."
    return _section("Training", note, header, rows)


def _parity(document: Document) -> str:
    rows, outcomes = [], []
    for result in results_of(document, "export"):
        for each in result["tries"]:
            name = f"{result['precision']}, --engine {each['engine_option']}"
            outcomes.append(f"- {name}: {'. '.join(filter(None, (each['outcome'], each['about_engine'])))}")
            for row in each["parity"]:
                figures = f"{float(row['max_abs_diff']):.2e}", f"{100 * row['top1_agreement']:.5g} %"
                verdict = "pass" if row["passed"] else "FAIL", "published" if each["status"] == "ok" else "refused"
                runtime = f"{row['runtime']} on {row['device']}"
                rows.append([name, runtime, row["precision"], *figures, f"{row['accuracy']:.4f}", *verdict])
    header = ("export", "runtime", "tolerance of", "max_abs_diff", "top-1 agreement", "accuracy", "pass", "the version")
    note = "A version is published, and may be served, only if all its rows pass."
    return _section("Export and parity", note, header, rows, "\n".join(outcomes))


def _latency(document: Document) -> str:
    rows, proofs = [], []
    for result in results_of(document, "latency"):
        name = (result["backend"], result["precision"])
        proofs += [f"- {', '.join(name)}: {result['probes']}"] if result["probes"] else []
        held = _mebibytes(result["memory"], "resident_bytes", "device_bytes")
        for row in result["rows"]:
            figures = _spread(row["latency_us"], 1), _spread(row["images_per_s"]), _spread(row["wall_us"], 1)
            rows.append([*name, str(row["batch_size"]), row["clock"], *figures, *held])
    header = ("backend", "precision", "batch", "clock", "latency, us", "images/s", "by the wall clock, us")
    note = "From images to logits in host memory, one call at a time, by the row's clock: medians (lowest to highest). "
    note += "The floor is the copies alone, in one launch. Memory on the GPU is without the CUDA context."
    return _section("Latency", note, (*header, "MiB", "MiB on the GPU"), rows, "\n".join(proofs))


def _serving(document: Document) -> str:
    lines, rows = [], []
    for result in results_of(document, "serve"):
        report, front_end = result["report"], result["front_end"]
        held = " and ".join(_mebibytes(report["memory"], "resident_bytes", "device_bytes"))
        lines.append(f"- {front_end}: {report['model']}: {report['verdict']}; memory in MiB, on the GPU too: {held}")
        for row in report["scenarios"]:
            latencies, answers = [each["milliseconds"]["latency"] for each in row["repeats"]], row["all"]["requests"]
            p50, p99 = (_spread([latency[name] for latency in latencies], 1) for name in ("p50", "p99"))
            counts = ", ".join(f"{answers[name]:,} {name}" for name in ("correct", "wrong", "lost", "refused"))
            rate = _spread([each["images_per_s"] for each in row["repeats"]])
            rows.append([f"{front_end}: {row['contender']} {row['mark']}".strip(), rate, p50, p99, counts, ""])
        for row in report["references"]:
            name = f"{row['name']}, {row['batch_size']} at a time"
            ratios = report["ratios"].get("offline", {}).get(name)
            over = _spread(ratios, 2) if ratios else ""
            rows.append([f"{front_end}: {name}", _spread(row["images_per_s"]), "", "", "", over])
    header = ("front end", "images/s", "p50, ms", "p99, ms", "requests", "served over it")
    note = "64 images a request, 32 in flight, every answer compared; beside it the references in process."
    return _section("Served", note, header, rows, "\n".join(lines))


def plot_of(document: Document) -> "Figure | None":
    """Draws latency over batch size, a colour for each backend and dashes for each precision; None without any."""
    from matplotlib.figure import Figure

    figure, colours = Figure(figsize=(9, 5), layout="constrained"), dict[str, str]()
    axes = figure.add_subplot()
    for result in results_of(document, "latency"):
        backend, precision, rows = result["backend"], result["precision"], result["rows"]
        colour = colours.setdefault(backend, f"C{len(colours)}")
        medians = [statistics.median(row["latency_us"]) for row in rows]
        style = {"color": colour, "linestyle": DASHES[precision], "marker": "o", "label": f"{backend} {precision}"}
        axes.plot([row["batch_size"] for row in rows], medians, **style)
    if not axes.lines:
        return None
    sizes = sorted({row["batch_size"] for result in results_of(document, "latency") for row in result["rows"]})
    axes.set(xscale="log", yscale="log", xlabel="images in a batch", ylabel="latency in microseconds")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"{'REHEARSAL on a CPU, ' if document['rehearsal'] else ''}{document['date']}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
