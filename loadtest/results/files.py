"""What stays of a load test: `report.json` with every figure, `report.html` to look at."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.reference import latency_of
from loadtest.results.findings import Findings
from loadtest.results.measurement import PERCENTILES
from loadtest.results.page import page_from

FORMAT = 1


def save_report(findings: Findings, facts: dict[str, str]) -> list[Path]:
    """Writes both under the configured directory; their paths."""
    directory = findings.config.output_dir
    directory.mkdir(parents=True, exist_ok=True)
    document = json.dumps(document_from(findings, facts), indent=1) + "\n"
    return [
        _written(directory / "report.json", document),
        _written(directory / "report.html", page_from(findings, facts)),
    ]


def document_from(findings: Findings, facts: dict[str, str]) -> dict[str, Any]:
    """Every figure, each measurement by itself."""
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
        "settings": {name: _plain(value) for name, value in asdict(findings.config).items()},
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
            | {"rounds": [each.as_document() for each in findings.runs[contender, scenario]]}
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


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _written(path: Path, text: str) -> Path:
    """Whole or not at all."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text, encoding="utf-8")
    return partial.replace(path)
