"""The verdict, in one screen."""

from loadtest.backend_speed import Speed
from loadtest.load.scenarios import SCENARIOS
from loadtest.reference import latency_of
from loadtest.results.findings import FAIL, INTERRUPTED, INVALID, PASS, Findings, median_and_range
from loadtest.results.measurement import PERCENTILES, Measurement

COLUMNS = f"{'':<28}{'requests/s':>11}{'images/s':>11}{'p50':>9}{'p90':>9}{'p99':>9}{'p99.9':>9} ms"
MEANINGS = {
    PASS: "every answer was right and in time, and the generator kept its schedule",
    FAIL: "do not trust this server with this load",
    INVALID: "the figures are not to be relied on, for these reasons; try a quieter machine, a lower rate, or longer",
    INTERRUPTED: "not the whole test",
}


def screen(findings: Findings) -> str:
    """The table, the ratios, where the time went, the faults and the verdict."""
    blocks = [_table(findings), _ratios(findings), _split(findings), _sweep(findings), _search(findings)]
    return "\n\n".join("\n".join(lines) for lines in (*blocks, _verdict(findings)) if lines)


def _table(findings: Findings) -> list[str]:
    rows = findings.rows()
    pairs = [(contender, scenario) for scenario in SCENARIOS for contender in ("echo", "served")]
    lines = [
        _reference_row(f"{name}, {size} at a time", size, runs) for (name, size), runs in findings.references.items()
    ]
    lines += [
        _row(f"{contender} {scenario}", rows[contender, scenario], findings.mark(contender, scenario))
        for contender, scenario in pairs
        if (contender, scenario) in rows
    ]
    return [COLUMNS, *lines] if lines else []


def _row(name: str, run: Measurement, mark: str) -> str:
    figures = "".join(f"{run.percentile_ms(percentile):>9.2f}" for percentile in PERCENTILES)
    return f"{name:<28}{run.requests_per_s:>11,.0f}{run.images_per_s:>11,.0f}{figures}  {mark}".rstrip()


def _reference_row(name: str, size: int, runs: list[Speed]) -> str:
    rate = sum(run.images_per_s for run in runs) / len(runs)
    latency = latency_of(runs)
    figures = "".join(f"{latency.get_value_at_percentile(percentile) / 1e3:>9.2f}" for percentile in PERCENTILES)
    return f"{name:<28}{rate / size:>11,.0f}{rate:>11,.0f}{figures}"


def _ratios(findings: Findings) -> list[str]:
    """A row for each yardstick, a column for each scenario; not for `server`, whose rate is given and not reached."""
    ratios = {scenario: findings.ratios(scenario) for scenario in SCENARIOS if scenario != "server"}
    ratios = {scenario: of_scenario for scenario, of_scenario in ratios.items() if of_scenario}
    if not ratios:
        return []
    lines = [f"images/s over{'':<16}" + "".join(f"{scenario:>24}" for scenario in ratios)]
    for yardstick in next(iter(ratios.values())):
        cells = [median_and_range(values[yardstick]) if values.get(yardstick) else "" for values in ratios.values()]
        lines.append(f"{yardstick:<28}" + "".join(f"{cell:>24}" for cell in cells))
    return [*lines, f"ratios within each of {findings.rounds}: median (lowest to highest)"]


def _split(findings: Findings) -> list[str]:
    lines = []
    for run in findings.served:
        parts = {name: run.mean_ms(name) for name in ("lateness", "transport", "queue", "inference")}
        if parts["inference"]:
            figures = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
            figures += f"; {run.mean_batch_size:.1f} images a batch" if run.batch_sizes else ""
            lines.append(f"  {run.load.scenario:<14} {figures}")
    return ["where the time went, mean ms (lateness is the generator's)", *lines] if lines else []


def _sweep(findings: Findings) -> list[str]:
    if not findings.sweep:
        return []
    bound = findings.config.latency_p99_ms
    lines = [
        f"  {'offered':>9}{'goodput':>9}{'p99 ms':>10}{'refused':>9}{'lost':>7}   goodput: right within {bound:g} ms"
    ]
    for run in findings.sweep:
        figures = (
            f"{run.goodput_qps:>9,.0f}{run.percentile_ms(99.0):>10.1f}{run.count('refused'):>9,}{run.count('lost'):>7,}"
        )
        lines.append(f"  {run.load.target_qps:>9,.0f}{figures}{'   INVALID' if run.invalid_because else ''}")
    return ["through saturation, requests/s of one image", *lines]


def _search(findings: Findings) -> list[str]:
    search = findings.search
    if search is None or not search.qps:
        return []
    p99s = [run.percentile_ms(99.0) for run in search.confirmations]
    held = f"p99 {median_and_range(p99s, 1)} ms in {len(p99s)} runs of {search.confirmations[0].elapsed_s:.1f} s"
    return [
        f"highest rate within {search.latency_p99_ms:g} ms: {search.qps:,.0f} requests/s; {held}",
        f"  the next did not: {search.limit}",
    ]


def _verdict(findings: Findings) -> list[str]:
    verdict, reasons = findings.verdict()
    served = findings.served
    counts = {name: sum(run.count(name) for run in findings.asked) for name in ("correct", "wrong", "lost", "refused")}
    lines = []
    if served:
        names = {"correct": "right", "wrong": "wrong", "lost": "lost", "refused": "refused"}
        answered = ", ".join(f"{counts[name]:,} {word}" for name, word in names.items())
        lines.append(f"answers: {answered}; each compared with {findings.reference}")
        validity = ", ".join(f"{run.load.scenario} {run.loadgen_validity or 'none'}" for run in served)
        lines.append(f"LoadGen's own verdict, for durations of {findings.config.duration_s:g} s: {validity}")
        lines += [findings.mlperf_shortfall] if findings.mlperf_shortfall else []
    blamed = [*findings.asked, *(run for run in findings.sweep if run.count("wrong"))]
    faults = [f"{run.load.scenario}: {fault}" for run in blamed for fault in run.faults]
    lines += [f"  {fault}" for fault in faults[:5]] if verdict == FAIL else []
    lines += [f"note: {note}" for note in findings.notes]
    lines += [f"  {reason}" for reason in reasons]
    return [*lines, f"{verdict}: {MEANINGS[verdict]}"]
