"""The report: `report.json` with every figure; `report.html`, one file, nothing fetched, readable on a phone."""

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from atelier.files import save_json, write_atomically
from loadtest.reference import latency_of
from loadtest.results.findings import Findings
from loadtest.results.measurement import PERCENTILES
from loadtest.results.plots import plots_from
from loadtest.results.sections import MEANINGS, Section, sections
from serving.manifest import MODEL_NAME

FORMAT = 1  # of report.json
STYLE_PATH = Path(__file__).with_name("page.css")
CAPTIONS = {
    "Latency": "How many requests were answered within so many milliseconds, from when they were due; each nine of "
    "the tail takes the same room.",
    "Rate sweep": "Requests of one image, from a quarter of saturation to twice past it, each with the bound for its "
    "deadline. Hollow: INVALID, the generator was late.",
    "What a batch buys": "In process, and per request to the server, which puts the requests that wait together in "
    "batches of its own.",
}
METHOD = (
    "MLPerf's LoadGen schedules the requests, and latency counts from when each was due, so nothing that kept it "
    "waiting is left out. Percentiles come from HdrHistograms, added up over processes and repeats. Every answer is "
    "compared with the reference's; the contenders of a repeat are measured one after the other, and ratios are taken "
    "within a repeat. A measurement is INVALID where the generator's own lateness, at its p99, is over a fifth of the "
    "latency or of its bound."
)


def page_from(findings: Findings, facts: dict[str, str]) -> str:
    """Renders the whole HTML document."""
    verdict, reasons = findings.verdict()
    parts = [
        f"<h1>Load test of {escape(findings.model.partition(',')[0] or MODEL_NAME)}</h1>",
        f'<p class="soft">{escape(findings.model)}; every answer against {escape(findings.reference)}</p>',
        f'<div class="verdict {verdict}"><strong>{verdict}</strong> {escape(MEANINGS[verdict])}{_list(reasons)}</div>',
        _numbers(findings),
        *(_section(section.title, _table(section)) for section in sections(findings)),
        _section("Plots", _plots(findings)),
        _section("Answers that failed", _list(findings.faults)),
        _section("How it was measured", _method(findings, facts)),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>{verdict}: load test of {escape(MODEL_NAME)}</title>"
    body = "\n".join(part for part in parts if part)
    head = f"<head>{head}{title}<style>{STYLE_PATH.read_text()}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}\n<body>\n{body}\n</body></html>\n'


def _section(title: str, content: str) -> str:
    kind = "" if title == "Plots" else ' class="short"'
    return f"<section{kind}><h2>{title}</h2>\n{content}</section>" if content else ""


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""


def _table(section: Section) -> str:
    header = "".join(f"<th{_wide(name)}>{escape(name)}</th>" for name in section.header)
    body = "".join(
        f'<tr class="{row[0].partition(" ")[0]}">'
        + "".join(f"<td{_wide(name)}>{escape(cell)}</td>" for name, cell in zip(section.header, row, strict=True))
        + "</tr>"
        for row in section.rows
    )
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
    return f'<p class="soft">{escape(section.note)}</p><div class="scroll">{table}</div>'


def _wide(column: str) -> str:
    """Hides what a phone has no room for, and what can be told from the images."""
    return ' class="wide"' if column == "requests/s" else ""


def _numbers(findings: Findings) -> str:
    """Lists the few figures that one looks for first."""
    rows = findings.rows()
    cells = []
    if run := rows.get(("served", "server")):
        cells.append((f"{run.percentile_ms(99.0):.2f} ms", f"p99 at {run.load.target_qps:,.0f} requests/s"))
    if run := rows.get(("served", "single_stream")):
        cells.append((f"{run.percentile_ms(50.0):.2f} ms", "p50, one request at a time"))
    if run := rows.get(("served", "offline")):
        cells.append((f"{run.images_per_s:,.0f}", f"images/s, {run.load.images_per_request} a request"))
    if findings.search and findings.search.qps:
        cells.append((f"{findings.search.qps:,.0f}/s", f"highest rate within {findings.search.latency_p99_ms:g} ms"))
    served = findings.asked
    bad = sum(run.count(name) for run in served for name in ("wrong", "lost", "refused"))
    if served:
        cells.append((f"{bad:,}", f"wrong, lost or refused of {sum(run.num_requests for run in served):,} answers"))
    divs = "".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for value, name in cells)
    return f'<div class="numbers">{divs}</div>' if divs else ""


def _plots(findings: Findings) -> str:
    figures = "".join(
        f"<figure>{svg}<figcaption><b>{title}.</b> {CAPTIONS[title]}</figcaption></figure>"
        for title, svg in plots_from(findings).items()
    )
    return f'<div class="plots">{figures}</div>' if figures else ""


def _method(findings: Findings, facts: dict[str, str]) -> str:
    formal = [findings.not_mlperf] if findings.not_mlperf else []
    settings = {name.replace("_", " "): fact for name, fact in facts.items()}
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in settings.items())
    return f"<p>{METHOD}</p>{_list([*formal, *findings.notes])}<dl>{entries}</dl>"


def save_report(findings: Findings, facts: dict[str, str]) -> list[Path]:
    """Writes both under the configured directory; returns their paths."""
    document, page = (findings.config.report_dir / name for name in ("report.json", "report.html"))
    save_json(document, document_from(findings, facts))
    write_atomically(page, page_from(findings, facts).encode())
    return [document, page]


def document_from(findings: Findings, facts: dict[str, str]) -> dict[str, Any]:
    """Returns every figure, each measurement by itself."""
    verdict, reasons = findings.verdict()
    search = findings.search
    return {
        "format": FORMAT,
        "verdict": verdict,
        "reasons": reasons,
        "notes": findings.notes,
        "model": findings.model,
        "reference": findings.reference,
        "machine": facts,
        "settings": asdict(findings.config),
        "references": [
            {
                "name": name,
                "batch_size": size,
                "images_per_s": [run.images_per_s for run in runs],
                "milliseconds": {
                    f"p{percentile:g}": latency_of(runs).get_value_at_percentile(percentile) / 1e3
                    for percentile in PERCENTILES
                },
            }
            for (name, size), runs in findings.references.items()
        ],
        "scenarios": [
            {
                "contender": contender,
                "scenario": scenario,
                "mark": findings.mark(contender, scenario),
                "all": run.as_document(),
            }
            | {"repeats": [each.as_document() for each in findings.runs[contender, scenario]]}
            for (contender, scenario), run in findings.rows().items()
        ],
        "ratios": {
            scenario: findings.ratios(scenario) for contender, scenario in findings.runs if contender == "served"
        },
        "batch_rates": findings.batch_rates,
        "memory": findings.memory,
        "sweep": [run.as_document() for run in findings.sweep],
        "find_max": None
        if search is None
        else {
            "latency_p99_ms": search.latency_p99_ms,
            "qps": search.qps or None,
            "limit": search.limit,
            "confirmations": [run.as_document() for run in search.confirmations],
            "probes": [run.as_document() for run in search.probes],
        },
    }
