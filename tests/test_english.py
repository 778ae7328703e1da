"""The first line of a function's docstring is a sentence that begins with a verb in the third person."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("atelier", "export", "serving")
NO_VERBS = {"As", "Images", "Its", "Rows", "This"}
MADE_BY_OTHERS = ("wire", "runtimes")


def first_lines(folder: str) -> Iterator[tuple[str, str]]:
    """Finds (place, first line) of every docstring of a function; properties are named by what they are."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if not set(path.parts) & set(MADE_BY_OTHERS):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (docstring := ast.get_docstring(node)):
                    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
                    if not decorators & {"property", "cached_property"} and node.name != "__init__":
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", docstring.splitlines()[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_begin_with_what_the_function_does(folder: str) -> None:
    without_verb = [
        f"{place}: {line}"
        for place, line in first_lines(folder)
        if not (first := line.split()[0].strip(",:;.")).isalpha()
        or not first[0].isupper()
        or not first.endswith("s")
        or first in NO_VERBS
    ]
    assert without_verb == []
