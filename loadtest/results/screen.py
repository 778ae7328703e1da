"""Shows the report on the screen."""

from atelier.tables import aligned
from loadtest.results.findings import FAIL, INTERRUPTED, INVALID, PASS, Findings
from loadtest.results.sections import Section, sections

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
    blamed = [*findings.asked, *(run for run in findings.sweep if run.count("wrong"))]
    faults = [f"{run.load.scenario}: {fault}" for run in blamed for fault in run.faults]
    lines += [f"  {fault}" for fault in faults[:5]] if verdict == FAIL else []
    lines += [f"note: {note}" for note in findings.notes]
    lines += [f"  {reason}" for reason in reasons]
    return [*lines, f"{verdict}: {MEANINGS[verdict]}"]
