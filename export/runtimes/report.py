"""The table of runtimes, for people and for programs."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from atelier.contract import TOLERANCES
from atelier.tables import aligned, spread
from export.runtimes.known import ABSENT
from export.runtimes.measure import BATCH_SIZES, REPEAT_S, Result, Task

HEADER = (
    *("tutorial's table", "runtime", "route", "max_abs_diff", "class flips"),
    *("images/s at 1", "of ONNX Runtime", "at 64", "of ONNX Runtime", "MB", "verdict"),
)
FASTER = 1.15  # from here on it is worth a backend


def table_from(results: Sequence[Result]) -> str:
    """One line per runtime, and one per framework of the tutorial that has no route."""
    absent = [(framework, framework, *[""] * 8, f"absent: {why}") for framework, why in ABSENT.items()]
    return aligned([HEADER, *(_row(result) for result in results), *absent])


def _row(result: Result) -> tuple[str, ...]:
    runtime, parity = result.runtime, result.parity
    name = f"{runtime.title} {result.version}".strip()
    if parity is None:
        return runtime.framework, name, runtime.route, *[""] * 7, f"absent: {result.why}"
    speeds = [cell for size in BATCH_SIZES for cell in _speed(result, size)]
    megabytes = "" if result.megabytes is None else f"{result.megabytes:,.0f}"
    return (
        *(runtime.framework, name, runtime.route, f"{parity.max_abs_diff:.2e}", str(num_flips(result))),
        *(*speeds, megabytes, verdict(result)),
    )


def _speed(result: Result, size: int) -> tuple[str, str]:
    if not result.rates[size]:  # ONNX Runtime's own, if no other was measured beside it
        return "", ""
    return f"{statistics.median(result.rates[size]):,.0f}", spread(result.ratios(size))


def num_flips(result: Result) -> int:
    """Returns how many images outside ties have another class than the truth's, at either batch size."""
    parity = result.parity  # whose truth value is its verdict
    return 0 if parity is None else round((1 - parity.top1_agreement) * parity.num_decided)


def verdict(result: Result) -> str:
    """Returns the gate's, with what speaks against it."""
    parity = result.parity
    if parity is None or parity:
        return "pass" if parity else "absent"
    outside = f"{parity.num_outside:,} of {parity.num_compared:,} logits outside"
    return f"FAIL: {outside}, {num_flips(result)} class flips, worst {parity.worst_image_name}"


def markdown_from(results: Sequence[Result], task: Task, facts: Mapping[str, str], date: str) -> bytes:
    """The report to read."""
    tolerance = TOLERANCES[task.precision]
    faster = [
        f"{result.runtime.title} at {size}: {statistics.median(result.ratios(size)):.2f}"
        for result in results
        for size in BATCH_SIZES
        if result.parity and result.rates[size] and statistics.median(result.ratios(size)) >= FASTER
    ]
    sections = [
        f"# The served model in other runtimes, {date}",
        f"{facts['cpu']}; Python {facts['python']}; {facts['packages']}.",
        "Each runtime was given a copy of the served files, in an environment of its own, and answered "
        f"{len(task.truth):,} test images in batches of 1 and of 64. A logit passes if |found - truth| <= "
        f"{tolerance.atol:g} + {tolerance.rtol:g} * |truth|, the truth being the model in float64; the class must be "
        "the truth's except at ties.",
        f"Speed: images per second of CPU time, one thread on one core, {task.repeats} repeats of {REPEAT_S:g} s in "
        "turn with ONNX Runtime; medians, and the ratio within a repeat (lowest to highest). What Python takes of a "
        "call is in it, as it is in ONNX Runtime's. MB is what the packages take, converters included; ExecuTorch and "
        "PyTorch use the PyTorch of our own environment.",
        table_from(results),
        f"At least {FASTER:g} of ONNX Runtime's speed: {'; '.join(faster) or 'none'}.",
    ]
    return ("\n\n".join(sections) + "\n").encode()


def json_from(results: Sequence[Result], task: Task, facts: Mapping[str, str], date: str) -> bytes:
    """Every number."""
    rows: list[dict[str, Any]] = [
        asdict(result) | {"passed": bool(result.parity), "class_flips": num_flips(result)} for result in results
    ]
    document = {"date": date, "machine": dict(facts), "repeats": task.repeats, "absent": ABSENT, "runtimes": rows}
    return (json.dumps(document, indent=1) + "\n").encode()
