"""The GPU report to read: tables in Markdown."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from atelier.tables import aligned

Document = dict[str, Any]
PEAKS = ("resident", "device_allocated", "device_reserved")


def markdown_from(document: Document, plot_stem: str = "") -> str:
    """Everything that was measured by now, with n and spread; and what was not, with the reason."""
    sections = [f"# GPU report, {document['date']}"]
    if document["rehearsal"]:
        sections = [
            f"# Rehearsal of the GPU report, {document['date']}",
            "**This is a rehearsal on a CPU, shortened. No figure of it says anything about a GPU.**",
        ]
    sections += [
        _unfinished(document),
        _host(document),
        _steps(document),
        _training(document),
        _parity(document),
        _latency(document),
    ]
    if plot_stem:
        sections.append(f"![Latency over batch size]({plot_stem}.png)")
    sections += [_serving(document), _memory(document)]
    return "\n\n".join(section for section in sections if section) + "\n"


def results_of(document: Document, kind: str) -> Iterator[dict[str, Any]]:
    """Of the steps of that kind: all that have one, for one that failed may have found something out."""
    for step in document["steps"]:
        if step["result"] and step["name"].split()[0] == kind:
            yield step["result"]


def _spread(values: Sequence[float], digits: int = 0) -> str:
    """`median (lowest to highest)`."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def _host(document: Document) -> str:
    lines = []
    for host in results_of(document, "host"):
        gpu = ", ".join(f"{name} {value}" for name, value in host["gpu"].items()) or "none"
        lines += [f"- GPU: {gpu}", f"- CPU: {host['cpu']}", f"- Python {host['python']}"]
        lines += [f"- {package} {version}" for package, version in host["versions"].items()]
    return "\n".join(["## Host", "", *lines])


def _unfinished(document: Document) -> str:
    missing = [step["name"] for step in document["steps"] if step["status"] in ("running", "not run")]
    if not missing:
        return ""
    return f"**Not finished: {len(missing)} of {len(document['steps'])} steps are missing, from `{missing[0]}` on.**"


def _steps(document: Document) -> str:
    steps = document["steps"]
    rows = [(step["name"], step["status"], f"{step['seconds']:.1f}") for step in steps]
    reasons = [f"- {step['name']}: {' '.join(step['reason'].split())}" for step in steps if step["reason"]]
    table = aligned([("step", "outcome", "seconds"), *rows])
    return "\n\n".join(filter(None, ["## Steps", table, "\n".join(reasons)]))


def _training(document: Document) -> str:
    rows = []
    for result in results_of(document, "train"):
        runs = result["runs"]
        figures = [
            _spread([run[name] for run in runs])
            for name in (
                *("examples_per_s_steps", "examples_per_s_wall"),
                *("examples_per_s_steady_steps", "examples_per_s_steady_with_evaluation"),
            )
        ]
        rows.append(
            [
                result["recipe"],
                result["precision"],
                str(len(runs)),
                *figures,
                _spread([run["test_acc"] for run in runs], 4),
            ]
        )
    if not rows:
        return ""
    header = (
        "recipe",
        "precision",
        "seeds",
        "steps alone",
        "wall clock",
        "steps, steady",
        "with evaluation, steady",
        "test accuracy",
    )
    note = "Examples/s. The wall clock counts data loading and, on CUDA, capturing; steady leaves out the first epoch."
    return f"## Training\n\n{note}\n\n{aligned([header, *rows])}\n\n{_floor(document)}".rstrip()


def _floor(document: Document) -> str:
    lines = []
    for floor in results_of(document, "floor"):
        lines.append(
            f"The floor: a step of {floor['batch_size']} images is {floor['multiply_adds_per_step']:,} multiply-adds, "
            f"{floor['image_bytes_per_step']:,} bytes of images and {floor['launches_per_step']} launches."
        )
        if "launch_floor_us" in floor:
            lines.append(
                f"A graph of as many kernels that do nothing takes {floor['launch_floor_us']:.1f} us: no more than "
                f"{floor['launch_floor_examples_per_s']:,.0f} examples/s."
            )
    return " ".join(lines)


def _parity(document: Document) -> str:
    """Of every try of every export, refused ones too."""
    tries = [(result["precision"], each) for result in results_of(document, "export") for each in result["tries"]]
    if not tries:
        return ""
    rows = [
        [
            f"{precision}, --engine {each['engine_option']}",
            f"{row['runtime']} on {row['device']}",
            row["precision"],
            f"{float(row['max_abs_diff']):.2e}",
            f"{100 * row['top1_agreement']:.5g} %",
            f"{row['accuracy']:.4f}",
            "pass" if row["passed"] else "FAIL",
            "published" if each["status"] == "ok" else "refused",
        ]
        for precision, each in tries
        for row in each["parity"]
    ]
    header = ("export", "runtime", "tolerance of", "max_abs_diff", "top-1 agreement", "accuracy", "pass", "the version")
    note = "A version is published, and may be served, only where all its rows pass."
    outcomes = [
        f"- {precision}, --engine {each['engine_option']}: "
        + ". ".join(filter(None, (each["outcome"], each["about_engine"])))
        for precision, each in tries
    ]
    return "\n\n".join(
        ["## Export and parity", note, *([aligned([header, *rows])] if rows else []), "\n".join(outcomes)]
    )


def _latency(document: Document) -> str:
    results = list(results_of(document, "latency"))
    rows = [
        [
            result["backend"],
            result["precision"],
            str(row["batch_size"]),
            row["clock"],
            _spread(row["latency_us"], 1),
            _spread(row["images_per_s"]),
            _spread(row["wall_us"], 1),
        ]
        for result in results
        for row in result["rows"]
    ]
    if not rows:
        return ""
    header = ("backend", "precision", "batch", "clock", "latency, us", "images/s", "by the wall clock, us")
    note = (
        "From images in host memory to logits in host memory, one call at a time; medians over repeats, lowest to "
        "highest. Latency and images/s are by the row's clock; CUDA events are recorded on the backend's stream before "
        "and after each call. The floor is the copies alone, in one launch."
    )
    proofs = [
        f"- {result['backend']}, {result['precision']}: {result['probes']}" for result in results if result["probes"]
    ]
    parts = [f"## Latency and throughput on {results[0]['device']}", note, aligned([header, *rows]), "\n".join(proofs)]
    return "\n\n".join(filter(None, parts))


def _memory(document: Document) -> str:
    rows = []
    for result in results_of(document, "train"):
        peaks = [run["peak_memory"] for run in result["runs"]]
        found = [max((peak[name] for peak in peaks if name in peak), default=None) for name in PEAKS]
        rows.append([f"training, {result['recipe']}, {result['precision']}, at most", *map(_mebibytes, found)])
    for result in results_of(document, "latency"):
        memory = result["memory"]
        found = [memory["resident_bytes"], memory["device_bytes"], None]
        rows.append([f"{result['backend']}, {result['precision']}", *map(_mebibytes, found)])
    for result in results_of(document, "serve"):
        memory = result["report"]["memory"]
        found = [memory.get("resident_bytes"), memory.get("device_bytes"), None]
        rows.append([f"server, {served_by(result)}", *map(_mebibytes, found)])
    if not rows:
        return ""
    header = ("of", "resident, MiB", "on the GPU, MiB", "held there by PyTorch's allocator, MiB")
    note = (
        "Resident: of the process, of the server of all its processes, shared pages once. On the GPU: of training what "
        "PyTorch gave out, of a backend what the memory in use there grew by with it, without the CUDA context, of the "
        "server what nvidia-smi says of its processes."
    )
    return f"## Memory\n\n{note}\n\n{aligned([header, *rows])}"


def _mebibytes(num_bytes: int | None) -> str:
    return "not measured" if num_bytes is None else f"{num_bytes / (1 << 20):,.1f}"


def served_by(result: dict[str, Any]) -> str:
    """Names model, runtime, device, precision, and the front end."""
    return f"{result['report']['model']}, front end {result['front_end']}"


def _serving(document: Document) -> str:
    results = list(results_of(document, "serve"))
    return "\n\n".join(["## Served, beside the references in process", *map(_served, results)]) if results else ""


def _served(result: dict[str, Any]) -> str:
    report = result["report"]
    settings, ratios = report["settings"], report["ratios"].get("offline", {})
    lines = [
        f"- {served_by(result)}: {report['verdict']}. {settings['offline_images_per_request']} images a request, "
        f"{settings['processes']} x {settings['in_flight']} in flight; every answer compared with {report['reference']}"
    ]
    for row in report["scenarios"]:
        rounds, answers = row["rounds"], row["all"]["requests"]
        p50, p99 = (_spread([each["milliseconds"]["latency"][name] for each in rounds], 1) for name in ("p50", "p99"))
        lines.append(
            f"- {row['contender']}: {_spread([each['images_per_s'] for each in rounds])} images/s {row['mark']}; "
            f"latency p50 {p50} ms, p99 {p99} ms; {answers['correct']:,} requests right, {answers['wrong']} wrong, "
            f"{answers['lost']} lost, {answers['refused']} refused"
        )
    for row in report["references"]:
        name = f"{row['name']}, {row['batch_size']} at a time"
        over = f"; served over it {_spread(ratios[name], 2)}" if ratios.get(name) else ""
        lines.append(f"- {name}: {_spread(row['images_per_s'])} images/s{over}")
    return "\n".join(lines)
