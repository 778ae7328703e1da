"""Each row of docs/faults.md has a test that is marked with it, or a line in SECURITY.md that says why not."""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.plugin import Figure

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "faults.md").read_text()
ROW = re.compile(r"^\| ([TESO]\d+) \|", re.MULTILINE)
RUST_MARK = re.compile(r"^ *// fault: ([TESO]\d+(?:, [TESO]\d+)*)\n(?: *#\[.*\]\n)*? *#\[test\]", re.MULTILINE)
NUM_ROWS = {"T": 18, "E": 19, "S": 56, "O": 16}


def rows() -> list[str]:
    return ROW.findall(DOCUMENT)


def marked_in_python(path: Path) -> Iterator[str]:
    """The rows of `@pytest.mark.fault("S25", ...)` above a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                yield from map(ast.literal_eval, mark.args)


@functools.cache
def sources_of_tests() -> dict[str, str]:
    """For each row that is marked, the text of all files that have a test of it."""
    found: defaultdict[str, str] = defaultdict(str)
    for path in (ROOT / "tests").rglob("*.py"):
        for row in set(marked_in_python(path)):
            found[row] += path.read_text()
    for path in (path for folder in ("src", "tests") for path in (ROOT / "native" / folder).rglob("*.rs")):
        for row in {row for marks in RUST_MARK.findall(path.read_text()) for row in marks.split(", ")}:
            found[row] += path.read_text()
    return dict(found)


def marked() -> set[str]:
    return set(sources_of_tests())


def not_tested() -> set[str]:
    """The rows that SECURITY.md lists under "Not tested, and why"."""
    section = (ROOT / "SECURITY.md").read_text().partition("## Not tested, and why")[2].partition("\n## ")[0]
    return set(re.findall(r"^- \*\*([TESO]\d+)\*\*", section, re.MULTILINE))


def test_catalogue_has_every_row_once() -> None:
    assert sorted(rows()) == sorted(
        f"{area}{number}" for area, most in NUM_ROWS.items() for number in range(1, most + 1)
    )


@pytest.mark.slow
@pytest.mark.goal("G25", of="rows of the catalogue", ci=109, release=109)
def test_every_row_has_a_test_that_asserts_its_words_or_a_reason_why_not(size: int, figure: Figure) -> None:
    words = {row: words_of(line) for line in DOCUMENT.splitlines() for row in ROW.findall(line)}
    figure(f"{len(marked())} rows have tests, {len(not_tested())} a reason why not")
    figure(f"{sum(map(len, words.values()))} words, each in a test of its row")
    assert len(words) == size
    assert words.keys() - marked() - not_tested() == set()
    assert [f"{row}: {word}" for row in words for word in words[row] if word not in sources_of_tests()[row]] == []


def words_of(text: str) -> set[str]:
    """The words that programs say, but for the names of the system's limits."""
    return set(re.findall(r"`([A-Z]+_[A-Z_]+|[A-Z]{8,})\b", text)) - {"RLIMIT_NOFILE", "RLIMIT_FSIZE"}


def test_every_word_of_the_catalogue_is_one_that_a_program_says() -> None:
    words = words_of(DOCUMENT)
    wings = [ROOT / wing for wing in ("atelier", "training", "export", "serving", "native/src")]
    sources = "".join(path.read_text() for wing in wings for kind in ("*.py", "*.rs") for path in wing.rglob(kind))
    assert len(words) > 50
    assert {word for word in words if f'"{word}"' not in sources} == set()


def test_every_mark_names_a_row_and_no_tested_row_is_said_not_to_be() -> None:
    assert marked() | not_tested() <= set(rows())
    assert marked() & not_tested() == set()
