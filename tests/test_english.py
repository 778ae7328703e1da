"""The first line of a function's docstring is a sentence that begins with a verb in the third person."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("atelier", "training", "export", "serving", "loadtest")
FRAGMENTS = {"As", "By", "From", "How", "Of", "What", "When", "Where", "Whether", "Which", "Who"}
NO_VERBS = {"As", "Images", "Its", "Rows", "This"}
MADE_BY_OTHERS = ("wire", "runtimes")


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(folder: str) -> Iterator[tuple[str, Documented, str]]:
    """Finds (place, node, first line) of every docstring."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if not set(path.parts) & set(MADE_BY_OTHERS):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, Documented) and (docstring := ast.get_docstring(node)):
                    line = getattr(node, "lineno", 1)
                    yield f"{path.relative_to(ROOT)}:{line}", node, docstring.splitlines()[0]


def is_plain_function(node: Documented) -> bool:
    """Leaves out properties, which are named by what they are, and `__init__`, for which the class speaks."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return node.name != "__init__" and not decorators & {"property", "cached_property", "setter"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_begin_with_what_the_function_does(folder: str) -> None:
    without_verb = [
        f"{place}: {line}"
        for place, node, line in docstrings(folder)
        if is_plain_function(node) and not is_verb(line.split()[0].strip(",:;."))
    ]
    assert without_verb == []


def is_verb(word: str) -> bool:
    """Guesses by the form."""
    return word.isalpha() and word[0].isupper() and word.endswith("s") and word not in NO_VERBS


@pytest.mark.parametrize("folder", FOLDERS)
def test_modules_and_classes_are_no_subordinate_clauses(folder: str) -> None:
    fragments = [
        f"{place}: {line}"
        for place, node, line in docstrings(folder)
        if isinstance(node, ast.Module | ast.ClassDef) and line.split()[0] in FRAGMENTS
    ]
    assert fragments == []
