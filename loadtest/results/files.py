"""Files of a load test: `report.json` with every figure, `report.html` to look at."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atelier.files import write_atomically
from loadtest.reference import latency_of
from loadtest.results.findings import Findings
from loadtest.results.measurement import PERCENTILES
from loadtest.results.page import page_from

FORMAT = 1


def save_report(findings: Findings, facts: dict[str, str]) -> list[Path]:
    """Writes both under the configured directory; returns their paths."""
    document, page = (findings.config.report_dir / name for name in ("report.json", "report.html"))
    save_json(document, document_from(findings, facts))
    write_atomically(page, page_from(findings, facts).encode())
    return [document, page]


def save_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a document whole or not at all, for programs; makes its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(document, indent=1, default=str) + "\n").encode())


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
