"""Writes the gate's result for people and for programs: a table, `parity.md` and `parity.json`."""

import dataclasses
import json
import math
from typing import Any

from atelier.contract import TOLERANCES, Tolerance
from atelier.tables import aligned
from export.parity import ParityReport, RuntimeParity

HEADER = ("runtime", "max_abs_diff", "top-1 agreement", "accuracy", "batch invariance", "pass")


def table_from(report: ParityReport) -> str:
    """Writes one line per runtime, in aligned Markdown."""
    truth = ("float64 truth", "0", "100 %", f"{report.truth_accuracy:.4f}", "", "")
    return aligned([HEADER, truth, *(_row(runtime) for runtime in report.runtimes)])


def _row(runtime: RuntimeParity) -> tuple[str, ...]:
    return (
        f"{runtime.runtime} on {runtime.device}",
        f"{runtime.max_abs_diff:.2e}",
        f"{100 * runtime.top1_agreement:.5g} %",
        f"{runtime.accuracy:.4f}",
        f"{runtime.max_batch_movement:.2e}, {runtime.num_batch_flips} flips",
        "pass" if runtime else "FAIL",
    )


def reports_from(report: ParityReport, made_with: dict[str, str]) -> dict[str, bytes]:
    """Writes the report in both forms: file name -> content."""
    return {"parity.json": json_from(report, made_with), "parity.md": markdown_from(report, made_with)}


def json_from(report: ParityReport, made_with: dict[str, str]) -> bytes:
    """Writes every number of the report; NaN and infinity, which JSON does not have, as strings."""
    document: dict[str, Any] = {"passed": bool(report), **dataclasses.asdict(report)}
    for entry, runtime in zip(document["runtimes"], report.runtimes, strict=True):
        entry["passed"] = bool(runtime)
        entry.update({name: str(value) for name, value in entry.items() if _has_no_json(value)})
    for entry in document["pairs"]:
        entry.update({name: str(value) for name, value in entry.items() if _has_no_json(value)})
    return (json.dumps({**document, "made_with": made_with}, indent=2, allow_nan=False) + "\n").encode()


def _has_no_json(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def markdown_from(report: ParityReport, made_with: dict[str, str]) -> bytes:
    """Writes the report to read."""
    tolerance, batch_sizes = report.tolerance, ", ".join(map(str, report.batch_sizes))
    sections = [
        f"# Parity, {report.precision}: {'pass' if report else 'FAIL'}",
        f"Compared: {report.num_test_images:,} test images and {report.num_edge_images:,} edge images (all 0, all 255, "
        f"every single pixel, noise, near ties), in batches of {batch_sizes}.",
        "The truth is the model in float64. A logit passes if |found - truth| <= "
        f"{tolerance.atol:g} + {tolerance.rtol:g} * |truth|. The class must be the truth's, except at the "
        f"{report.num_ties} ties: images whose two best logits are, in truth, less than {tolerance.tie_margin:g} "
        f"apart.{_further_rules(report.precision, tolerance)} Batch invariance: how far a logit moves, and how many "
        "classes flip, with the size of the batch an image lands in.",
        table_from(report),
        "## Where the largest differences are",
        "\n".join(_worst_line(runtime) for runtime in report.runtimes),
        f"The fault: {report.first_divergence}." if report.first_divergence else "",
        "## Between the runtimes",
        "\n".join(
            f"- {' and '.join(pair.runtimes)}: max_abs_diff {pair.max_abs_diff:.2e}, mean {pair.mean_abs_diff:.2e}, "
            f"top-1 agreement {100 * pair.top1_agreement:.5g} %"
            for pair in report.pairs
        ),
        "## Made with",
        "\n".join(f"- {name}: {value}" for name, value in made_with.items()),
    ]
    return ("\n\n".join(section for section in sections if section) + "\n").encode()


def _further_rules(precision: str, tolerance: Tolerance) -> str:
    if precision == "fp32":
        return ""
    fp32 = TOLERANCES["fp32"]
    return (
        f" Accuracy on the test images may be {100 * tolerance.max_accuracy_loss:g} points below the truth's. The "
        f"torch program is the reference in fp32, held to {fp32.atol:g} + {fp32.rtol:g} * |truth|."
    )


def _worst_line(runtime: RuntimeParity) -> str:
    return (
        f"- {runtime.runtime} on {runtime.device}: {runtime.worst_image_name} uses {100 * runtime.tolerance_used:.3g} "
        f"% of its tolerance. Of {runtime.num_compared:,} logits {runtime.num_outside:,} are outside and "
        f"{runtime.num_non_finite:,} not finite; max_rel_diff {runtime.max_rel_diff:.2e}, "
        f"mean_abs_diff {runtime.mean_abs_diff:.2e}"
    )
