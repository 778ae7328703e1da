"""Lets pytest run the goals' tests at either size, and keeps what they found."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.reliability.goals import GOALS, RESULTS, Result, is_release, revision

FIGURES = pytest.StashKey[list[tuple[str, str]]]()


class Figure(Protocol):
    """The fixture `figure`: keeps what was measured, in words and numbers, of one of the test's goals or of each."""

    def __call__(self, text: str, goal: str = "") -> None:
        """Keeps `0 of 200,134 lost`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--goals G1,G7`: of the tests marked `goal`, only those of these goals are run."""
    parser.addoption("--goals", default="", help="of the tests marked `goal`, run those of these only: G1,G7")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tests of goals that `--goals` does not name. Raises UsageError for a goal that there is not."""
    wanted = {name for name in config.getoption("--goals").split(",") if name}
    for item in items:
        for marker in item.iter_markers("goal"):
            if marker.args[0] not in GOALS:
                raise pytest.UsageError(f"{item.nodeid} is marked with {marker.args[0]!r}, which is no goal")
    if wanted:
        chosen = [item for item in items if wanted & {marker.args[0] for marker in item.iter_markers("goal")}]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


@pytest.fixture
def size(request: pytest.FixtureRequest) -> int:
    """How many, by the test's mark `goal`: for the gate, or for a release."""
    return int(request.node.get_closest_marker("goal").kwargs["release" if is_release() else "ci"])


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Keeps what was measured: see Figure."""
    figures = request.node.stash.setdefault(FIGURES, [])

    def keep(text: str, goal: str = "") -> None:
        figures.append((goal, text))

    return keep


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Generator[None, Any, Any]:
    """Writes the result of a goal's test to the directory that ATELIER_GOALS_RESULTS names."""
    report = yield
    directory = os.environ.get(RESULTS)
    if directory and (report.when == "call" or not report.passed) and report.when != "teardown":
        for marker in item.iter_markers("goal"):
            _result_of(item, marker, report).save(Path(directory))
    return report


def _result_of(item: pytest.Item, marker: pytest.Mark, report: pytest.TestReport) -> Result:
    ci, release = marker.kwargs["ci"], marker.kwargs["release"]
    why = "" if report.passed else report.longreprtext.strip().splitlines()[-1]
    if report.skipped and isinstance(report.longrepr, tuple):
        why = report.longrepr[2]
    return Result(
        goal=marker.args[0],
        test=item.nodeid,
        of=marker.kwargs["of"],
        ci=ci,
        release=release,
        size=release if is_release() else ci,
        figures=[text for goal, text in item.stash.get(FIGURES, []) if goal in ("", marker.args[0])],
        outcome=report.outcome,
        why=why,
        seconds=report.duration,
        revision=revision(),
    )
