"""Measures the goals of reliability, G1 to G26, and prints for each what was promised and what was found.

make reliability                       each at the gate's size, in minutes
make reliability-full                  each at a release's size, in hours; goes on where it was stopped
python -m tests.reliability --only G7  one goal
"""

import contextlib
import datetime
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from atelier.machine import machine_facts
from atelier.program import run_program
from atelier.settings import names_in, parse_settings
from atelier.tables import aligned
from tests.reliability.goals import GOALS, RELEASE, RESULTS, Result, revision

HEADER = ("goal", "promise", "counted", "in the gate", "for a release", "measured", "at size", "verdict", "minutes")
PACKAGES = ("torch", "onnx", "onnxruntime", "grpcio", "numpy")
RESULTS_DIR = Path("artifacts/reliability")  # of each test, a file each
SHORT = 300  # characters of a failure


@dataclass(frozen=True, kw_only=True)
class ReliabilitySettings:
    """The command line."""

    only: str = ""
    """Goals, separated by commas: G1,G7; none measures all."""

    full: bool = False
    """Sizes for a release. What this commit has already passed at that size is not measured again."""

    again: bool = False
    """Measure everything, whatever was measured before."""

    report_dir: Path | None = None
    """Where reliability-<date>.md is written; without it, in reports/ if all goals are measured."""


def main(arguments: list[str]) -> int:
    """Returns 1 if a goal was missed, or has no figure."""
    settings = parse_settings(
        ReliabilitySettings,
        arguments,
        prog="python -m tests.reliability",
        description=__doc__ or "",
        epilog="goals:\n" + "\n".join(f"  {name:<4} {promise}" for name, promise in GOALS.items()),
    )
    goals = names_in(settings.only, GOALS, "--only")
    now, gate = revision(), RESULTS_DIR / "gate"
    directory = RESULTS_DIR / "release" if settings.full else gate
    if settings.again:
        for path in directory.glob("G*.json"):
            path.unlink()
    kept = [result for result in results_in(directory) if is_done(result, now)]
    _measure(goals, directory.resolve(), kept, full=settings.full)
    # What was not yet measured at a release's size is shown at the gate's.
    by_test = {(each.goal, each.test): each for path in (gate, directory) for each in results_in(path)}
    found = sorted((each for each in by_test.values() if each.goal in goals), key=_place)
    text = report_of(goals, found, now)
    print("\n" + text)
    directory = settings.report_dir or (RESULTS_DIR if settings.only else Path("reports"))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"reliability-{datetime.date.today().isoformat()}.md"
    path.write_text(text + "\n")
    print(f"report: {path}")
    # A test that is skipped says what a front end does not promise; some test of each goal must have passed.
    has_figure = {each.goal for each in found if each.outcome == "passed"}
    return int(any(each.outcome == "failed" for each in found) or not has_figure.issuperset(goals))


def is_done(result: Result, now: str) -> bool:
    """Returns whether it need not be measured again: it passed at this very commit, with no file changed."""
    return result.outcome == "passed" and result.revision == now and not now.endswith("+")


def results_in(directory: Path) -> list[Result]:
    """Reads the results, in the order of the goals."""
    return sorted((Result.load(path) for path in directory.glob("G*.json")), key=_place)


def _place(result: Result) -> tuple[int, str]:
    return int(result.goal[1:]), result.test


def _measure(goals: list[str], directory: Path, kept: list[Result], *, full: bool) -> None:
    """Runs pytest on the goals' tests, one at a time: many of them measure time."""
    environment = os.environ | {RESULTS: str(directory)} | ({RELEASE: "1"} if full else {})
    command = [sys.executable, "-m", "pytest", "-m", "goal", "--goals", ",".join(goals), "-o", "timeout=0"]
    command += [f"--deselect={result.test}" for result in kept]
    with contextlib.suppress(KeyboardInterrupt):  # what was measured is printed
        subprocess.run([*command, "-q", "-rfs", "--no-header"], env=environment, check=False)


def report_of(goals: list[str], results: list[Result], now: str) -> str:
    """Renders the report as Markdown, a row for each test of a goal."""
    facts = machine_facts(PACKAGES)
    rows = [HEADER, *(row for goal in goals for row in _rows(goal, [e for e in results if e.goal == goal], now))]
    date = datetime.date.today().isoformat()
    head = [
        f"# Reliability goals, {date}",
        f"Commit {now}; {facts['cpu']}; Python {facts['python']}; {facts['packages']}.",
    ]
    return "\n\n".join([*head, aligned(rows)])


def _rows(goal: str, results: list[Result], now: str) -> list[tuple[str, ...]]:
    if not results:
        return [(goal, GOALS[goal], "", "", "", "", "", "NOT MEASURED", "")]
    return [
        (
            goal,
            GOALS[goal] if index == 0 else "",
            _counted(result),
            _number(result.ci),
            _number(result.release),
            "; ".join(result.figures) or "-",
            _number(result.size),
            _verdict(result, now),
            f"{result.seconds / 60:.1f}",
        )
        for index, result in enumerate(results)
    ]


def _verdict(result: Result, now: str) -> str:
    """Returns it with the commit that it is about, if that is another one than now."""
    word = "met" if result.outcome == "passed" else f"{result.outcome.upper()}: {_cell(result.why)}"
    return word if result.revision == now else f"{word} ({result.revision})"


def _counted(result: Result) -> str:
    """Returns what is counted, and with which of a test's parameters."""
    _, bracket, parameters = result.test.partition("[")
    return f"{result.of} ({parameters.rstrip(']')})" if bracket else result.of


def _number(size: int) -> str:
    return f"{size:,}" if size else "all"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:SHORT]


if __name__ == "__main__":
    sys.exit(run_program(main))
