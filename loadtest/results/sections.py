"""Sections of the report as tables: on the screen and on the page they are the same."""

from collections.abc import Sequence
from typing import NamedTuple

from atelier.tables import aligned, spread
from loadtest.load.scenarios import SCENARIOS
from loadtest.reference import latency_of
from loadtest.results.findings import FAIL, INTERRUPTED, INVALID, PASS, Findings
from loadtest.results.measurement import PERCENTILES, Measurement

Row = tuple[str, ...]


class Section(NamedTuple):
    """A table with a sentence on how to read it; without rows there is nothing to show."""

    title: str
    note: str
    header: Row
    rows: Sequence[Row]


def sections(findings: Findings) -> list[Section]:
    """Lists those that have something to show."""
    parts = (_contenders, _ratios, _split, _sweep, _search)
    return [section for section in (part(findings) for part in parts) if section.rows]


def _contenders(findings: Findings) -> Section:
    rows: list[Row] = []
    for (name, size), runs in findings.references.items():
        rate, latency = sum(run.images_per_s for run in runs) / len(runs), latency_of(runs)
        tail = (f"{latency.get_value_at_percentile(percentile) / 1e3:.2f}" for percentile in PERCENTILES)
        rows.append((f"{name}, {size} at a time", f"{rate / size:,.0f}", f"{rate:,.0f}", *tail, ""))
    measured = findings.rows()
    pairs = [(contender, scenario) for scenario in SCENARIOS for contender in ("echo", "served")]
    rows += [
        (f"{contender} {scenario}", *_figures(measured[contender, scenario]), findings.mark(contender, scenario))
        for contender, scenario in pairs
        if (contender, scenario) in measured
    ]
    header = ("", "requests/s", "images/s", *(f"p{percentile:g} ms" for percentile in PERCENTILES), "")
    return Section(
        "Contenders", f"{findings.config.repeats} repeats of {findings.config.duration_s:g} s together", header, rows
    )


def _figures(run: Measurement) -> Row:
    tail = (f"{run.percentile_ms(percentile):.2f}" for percentile in PERCENTILES)
    return f"{run.requests_per_s:,.0f}", f"{run.images_per_s:,.0f}", *tail


def _ratios(findings: Findings) -> Section:
    """Makes a row for each yardstick, a column for each scenario but `server`, whose rate is given and not reached."""
    ratios = {scenario: findings.ratios(scenario) for scenario in SCENARIOS if scenario != "server"}
    ratios = {scenario: of_scenario for scenario, of_scenario in ratios.items() if of_scenario}
    yardsticks = next(iter(ratios.values()), {})
    rows = [
        (
            f"over {yardstick}",
            *(spread(values[yardstick]) if values.get(yardstick) else "" for values in ratios.values()),
        )
        for yardstick in yardsticks
    ]
    note = "Images/s of the served model, ratios within each repeat: median (lowest to highest)"
    return Section("Ratios", note, ("", *ratios), rows)


def _split(findings: Findings) -> Section:
    names = ("lateness", "transport", "queue", "inference")
    rows = [
        (
            run.load.scenario,
            *(f"{run.mean_ms(name):.2f}" for name in names),
            f"{run.mean_batch_size:.1f}" if run.batch_sizes else "",
        )
        for run in findings.served
        if run.mean_ms("inference")
    ]
    header = ("", *(f"{name} ms" for name in names), "images a batch")
    return Section("Where the time went", "Means; lateness is the generator's", header, rows)


def _sweep(findings: Findings) -> Section:
    rows = [
        (
            f"{run.load.target_qps:,.0f}",
            f"{run.goodput_qps:,.0f}",
            f"{run.percentile_ms(50.0):.1f}",
            f"{run.percentile_ms(99.0):.1f}",
            f"{run.mean_batch_size:.1f}" if run.batch_sizes else "",
            *(f"{run.count(name):,}" for name in ("refused", "lost", "wrong")),
            "INVALID" if run.invalid_because else "",
        )
        for run in findings.sweep
    ]
    bound = f"{findings.config.latency_p99_ms:g} ms"
    note = f"Requests of one image per second, with a deadline of {bound}; goodput is what was rightly answered by then"
    header = ("offered", "goodput", "p50 ms", "p99 ms", "images a batch", "refused", "lost", "wrong", "")
    return Section("Through saturation", note, header, rows)


def _search(findings: Findings) -> Section:
    search, rows = findings.search, []
    if search is not None and search.qps:
        p99s = [run.percentile_ms(99.0) for run in search.confirmations]
        rows = [(f"{search.qps:,.0f}", spread(p99s, 1), str(len(p99s)), search.limit)]
    note = f"The highest rate with p99 within {findings.config.latency_p99_ms:g} ms, and what the next came to"
    return Section("Highest rate", note, ("requests/s", "p99 ms", "runs", "the next"), rows)


MEANINGS = {
    PASS: "every answer was right and in time, and the generator kept its schedule",
    FAIL: "do not trust this server with this load",
    INVALID: "the figures are not to be relied on, for these reasons; try a quieter machine, a lower rate, or longer",
    INTERRUPTED: "not the whole test",
}


def screen(findings: Findings) -> str:
    """Renders the tables, the faults and the verdict."""
    return "\n\n".join([*map(_text, sections(findings)), "\n".join(_verdict(findings))])


def _text(section: Section) -> str:
    return f"{section.title}: {section.note}\n{aligned([section.header, *section.rows])}"


def _verdict(findings: Findings) -> list[str]:
    verdict, reasons = findings.verdict()
    served = findings.served
    counts = {name: sum(run.count(name) for run in findings.asked) for name in ("correct", "wrong", "lost", "refused")}
    lines = []
    if served:
        names = {"correct": "right", "wrong": "wrong", "lost": "lost", "refused": "refused"}
        answered = ", ".join(f"{counts[name]:,} {word}" for name, word in names.items())
        lines.append(f"answers: {answered}; each compared with {findings.reference}")
        lines += [findings.not_mlperf] if findings.not_mlperf else []
    lines += [f"  {fault}" for fault in findings.faults[:5]] if verdict == FAIL else []
    lines += [f"note: {note}" for note in findings.notes]
    lines += [f"  {reason}" for reason in reasons]
    return [*lines, f"{verdict}: {MEANINGS[verdict]}"]
